//! What the behaviour tests share: servers under every dispatch, plain peers, scripts and logs.

#![allow(
    dead_code,
    unused_imports,
    reason = "every test binary uses its own part of this"
)]

pub(crate) mod counting;
mod frames;
#[cfg(feature = "tracing")]
pub(crate) mod lines;
mod peer;
mod process;
mod script;
mod server;
mod timing;

pub(crate) use frames::{decode, echo, echo_frames, frame, pattern, read_frame};
pub(crate) use peer::{Mute, Peer, closed_port, limited_pair, loopback, pair, socket_pair};
pub(crate) use process::{
    asleep_in, cpu_time, descriptors, handler_threads, in_child, limit_descriptors, only_test,
    settled_descriptors, settled_threads, test_path, threads,
};
pub(crate) use script::{Log, Script, giving};
pub(crate) use server::{
    Case, Kind, Server, Threads, Transport, bounded, every, every_blocking, fresh_path, listener,
    on_tcp, one_thread,
};
pub(crate) use timing::{let_pass, outlast, soon};

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before a test is given up. Generous: the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_or(what, condition, String::new);
}

/// As [`eventually`]; if it fails, the message ends with what is `seen` then.
#[track_caller]
pub(crate) fn eventually_or(
    what: &str,
    mut condition: impl FnMut() -> bool,
    seen: impl FnOnce() -> String,
) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        if Instant::now() >= deadline {
            panic!("waited {LIMIT:?} for: {what} {}", seen());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A door that handlers can be held at.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    inner: Arc<(Mutex<GateState>, Condvar)>,
}

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: usize,
    arrived: usize,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Waits until the gate is open.
    pub(crate) fn pass(&self) {
        let (state, changed) = &*self.inner;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        state.arrived += 1;
        changed.notify_all();
        while !state.open {
            let (next, timeout) = changed.wait_timeout(state, LIMIT * 2).unwrap();
            state = next;
            assert!(!timeout.timed_out(), "a gate was never opened");
        }
        state.waiting -= 1;
    }

    /// Lets everybody through, now and later.
    pub(crate) fn open(&self) {
        let (state, changed) = &*self.inner;
        // Also after a thread gave up: this may run while a failed test unwinds.
        state.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        changed.notify_all();
    }

    /// Waits until this many have come to the gate, those that went through included.
    #[track_caller]
    pub(crate) fn wait_arrived(&self, count: usize) {
        let (state, changed) = &*self.inner;
        let mut state = state.lock().unwrap();
        let deadline = Instant::now() + LIMIT;
        while state.arrived < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} of {count} came to the gate",
                state.arrived
            );
            state = changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(crate) fn arrived(&self) -> usize {
        self.inner.0.lock().unwrap().arrived
    }
}

/// Opens its gate when it goes out of scope, so that a failed test does not hang.
pub(crate) struct OpenOnDrop(pub(crate) Gate);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}
