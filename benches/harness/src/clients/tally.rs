//! When callers call, what they record, and what that cost the process.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::Job;
use crate::{load, sys};

/// What all callers together have seen.
pub(crate) struct Tally {
    /// Calls recorded.
    pub(crate) calls: u64,
    /// How long recording took.
    pub(crate) elapsed: Duration,
    /// Latency of the calls in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// CPU time of the process while recording.
    pub(crate) cpu: Duration,
    /// How often its threads have waited while recording, where that is known.
    pub(crate) waits: Option<u64>,
}

/// Tells callers whether to go on, and whether to record.
pub(super) struct Gate {
    recording: AtomicBool,
    ended: AtomicBool,
    /// A call was recorded.
    seen: AtomicBool,
    /// Calls left to begin, where their number is given.
    left: AtomicU64,
}

/// The record of one caller.
pub(super) struct Calls<'a> {
    gate: &'a Gate,
    latency: Histogram<u64>,
}

impl Gate {
    pub(super) fn new(job: &Job) -> Self {
        Self {
            recording: AtomicBool::new(job.requests.is_some()),
            ended: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            left: AtomicU64::new(job.requests.unwrap_or(u64::MAX)),
        }
    }

    /// Waits, not for ever, until something was recorded or the callers have ended.
    fn wait_for_one(&self) {
        let limit = Instant::now() + load::PATIENCE;
        let done = || self.seen.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed);
        while !done() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The record of one more caller.
    pub(super) fn caller(&self) -> Calls<'_> {
        Calls {
            gate: self,
            latency: load::histogram(),
        }
    }

    /// Lets the callers call for as long as `job` says, and returns the time recorded and the CPU
    /// used in it. `callers` runs them and returns when all have ended.
    pub(super) fn run(
        &self,
        job: &Job,
        callers: impl FnOnce() -> io::Result<Histogram<u64>> + Send,
    ) -> io::Result<Tally> {
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| {
                let result = callers();
                self.ended.store(true, Ordering::Relaxed);
                result
            });
            if job.requests.is_none() {
                std::thread::sleep(job.warmup);
            }
            let start = Look::take()?;
            self.recording.store(true, Ordering::Relaxed);
            let end = if job.requests.is_none() {
                std::thread::sleep(job.measure);
                self.wait_for_one();
                let end = Look::take()?;
                self.ended.store(true, Ordering::Relaxed);
                Some(end)
            } else {
                None
            };
            let panicked = || Err(io::Error::other("the callers have panicked"));
            let latency = calling.join().unwrap_or_else(|_| panicked())?;
            let end = end.map_or_else(Look::take, Ok)?;
            Ok(Tally {
                calls: latency.len(),
                elapsed: end.time - start.time,
                latency,
                cpu: end.cpu - start.cpu,
                waits: Some(end.waits - start.waits),
            })
        })
    }
}

/// The clocks and counts of this process at a moment.
struct Look {
    time: Instant,
    cpu: Duration,
    waits: u64,
}

impl Look {
    fn take() -> io::Result<Self> {
        Ok(Self {
            time: Instant::now(),
            cpu: sys::own_cpu_time()?,
            waits: sys::own_waits()?,
        })
    }
}

impl Calls<'_> {
    /// The start of the next call; `None` when it is time to end.
    pub(super) fn begin(&self) -> Option<Instant> {
        if self.gate.ended.load(Ordering::Relaxed) {
            return None;
        }
        if self.gate.left.load(Ordering::Relaxed) != u64::MAX {
            let take = |left: u64| left.checked_sub(1);
            self.gate
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .ok()?;
        }
        Some(Instant::now())
    }

    /// The call begun at `start` has its answer.
    pub(super) fn end(&mut self, start: Instant) {
        let recording = self.gate.recording.load(Ordering::Relaxed);
        if recording && !(self.gate.ended.load(Ordering::Relaxed) && self.is_timed()) {
            self.latency
                .saturating_record(start.elapsed().as_nanos() as u64);
            if !self.gate.seen.load(Ordering::Relaxed) {
                self.gate.seen.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_timed(&self) -> bool {
        self.gate.left.load(Ordering::Relaxed) == u64::MAX
    }

    /// What was recorded.
    pub(super) fn finish(self) -> Histogram<u64> {
        self.latency
    }
}

/// The records of several callers as one.
pub(super) fn together(
    parts: impl IntoIterator<Item = io::Result<Histogram<u64>>>,
) -> io::Result<Histogram<u64>> {
    let mut all = load::histogram();
    for part in parts {
        all.add(part?)
            .map_err(|error| io::Error::other(format!("histograms differ: {error}")))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(requests: Option<u64>) -> Job {
        Job {
            addr: ([127, 0, 0, 1], 0).into(),
            callers: 1,
            shared: false,
            size: 1,
            warmup: Duration::from_millis(1),
            measure: Duration::from_millis(5),
            requests,
        }
    }

    fn call(gate: &Gate) -> Histogram<u64> {
        let mut calls = gate.caller();
        while let Some(start) = calls.begin() {
            std::thread::yield_now();
            calls.end(start);
        }
        calls.finish()
    }

    #[test]
    fn a_given_number_of_calls_is_made() {
        let job = job(Some(100));
        let gate = Gate::new(&job);
        let tally = gate
            .run(&job, || {
                let (one, two) = (call(&gate), call(&gate));
                together([Ok(one), Ok(two)])
            })
            .unwrap();
        assert_eq!(tally.calls, 100);
    }

    #[test]
    fn a_given_time_is_kept() {
        let job = job(None);
        let gate = Gate::new(&job);
        let tally = gate.run(&job, || Ok(call(&gate))).unwrap();
        assert!(tally.calls > 0 && tally.elapsed >= job.measure);
        assert!(tally.cpu > Duration::ZERO);
    }

    #[test]
    fn failing_callers_fail_the_job() {
        let job = job(Some(1));
        let gate = Gate::new(&job);
        assert!(
            gate.run(&job, || Err(io::ErrorKind::BrokenPipe.into()))
                .is_err()
        );
    }
}
