//! What handlers are asked to do besides echoing: sleep, or compute.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::frame::Kind;

/// How long a sleeping handler sleeps.
pub(crate) const NAP: Duration = Duration::from_millis(10);
/// How long one sleeps that is to outlast a burst.
pub(crate) const REST: Duration = Duration::from_secs(1);
/// How long a computing handler computes on an undisturbed core.
pub(crate) const COMPUTATION: Duration = Duration::from_micros(50);

static STEPS: AtomicU64 = AtomicU64::new(0);

/// Fixes the steps of one computation for this process.
///
/// Servers that are compared are given the same number, so that none computes less than another.
pub(crate) fn set_steps(steps: u64) {
    STEPS.store(steps, Ordering::Relaxed);
}

/// Measures how many steps fill [`COMPUTATION`] here: the fastest of several tries counts.
pub(crate) fn calibrate() -> u64 {
    const TRIAL: u64 = 100_000;
    let fastest = (0..20)
        .map(|_| {
            let start = Instant::now();
            steps(TRIAL);
            start.elapsed()
        })
        .min()
        .unwrap_or(COMPUTATION);
    let per_step = fastest.as_secs_f64() / TRIAL as f64;
    ((COMPUTATION.as_secs_f64() / per_step) as u64).max(1)
}

/// Computes for about [`COMPUTATION`].
pub(crate) fn compute() {
    steps(STEPS.load(Ordering::Relaxed));
}

/// Does what `kind` asks for on this thread, blocking it.
pub(crate) fn block_for(kind: Kind) {
    match kind {
        Kind::Sleep => std::thread::sleep(NAP),
        Kind::Rest => std::thread::sleep(REST),
        Kind::Compute => compute(),
        Kind::Echo | Kind::Sink => {}
    }
}

/// A chain of dependent operations: it cannot be shortened by doing several at once.
fn steps(count: u64) {
    let mut value = black_box(1u64);
    for _ in 0..count {
        value = value
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        value ^= value >> 33;
    }
    black_box(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_finds_a_count() {
        assert!(calibrate() > 1);
    }
}
