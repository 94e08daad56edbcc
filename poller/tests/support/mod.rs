//! Shared by the integration tests: an operator made of closures, and bounded waiting.

#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use poller::{Budget, Interest, Operator, PollerHandle, Progress, Readiness, Registration};

/// Far more than any of the waited-for things takes.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

type OnReady = Box<dyn Fn(&Probe, Readiness, &mut Budget<'_>) -> Progress + Send + Sync>;
type OnRun = Box<dyn Fn(&Probe) -> Progress + Send + Sync>;
type OnDetached = Box<dyn Fn(&Probe) + Send + Sync>;

/// An operator that counts its calls and leaves the rest to closures.
pub struct Probe {
    pub fd: OwnedFd,
    pub registration: OnceLock<Registration>,
    pub seen: Mutex<Vec<Readiness>>,
    pub runs: AtomicUsize,
    pub detached: AtomicUsize,
    on_ready: OnReady,
    on_run: OnRun,
    on_detached: OnDetached,
}

pub struct ProbeBuilder(Probe);

impl Probe {
    pub fn new(fd: impl Into<OwnedFd>) -> ProbeBuilder {
        ProbeBuilder(Self {
            fd: fd.into(),
            registration: OnceLock::new(),
            seen: Mutex::default(),
            runs: AtomicUsize::new(0),
            detached: AtomicUsize::new(0),
            on_ready: Box::new(|_, _, _| Progress::Drained),
            on_run: Box::new(|_| Progress::Drained),
            on_detached: Box::new(|_| {}),
        })
    }

    pub fn registration(&self) -> &Registration {
        self.registration.wait()
    }

    /// How often `on_ready` was called.
    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    pub fn detached(&self) -> usize {
        self.detached.load(Ordering::SeqCst)
    }

    /// Whether any call brought all of `flags`.
    pub fn saw(&self, flags: Readiness) -> bool {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .any(|seen| seen.contains(flags))
    }
}

impl ProbeBuilder {
    pub fn on_ready(
        mut self,
        f: impl Fn(&Probe, Readiness, &mut Budget<'_>) -> Progress + Send + Sync + 'static,
    ) -> Self {
        self.0.on_ready = Box::new(f);
        self
    }

    pub fn on_run(mut self, f: impl Fn(&Probe) -> Progress + Send + Sync + 'static) -> Self {
        self.0.on_run = Box::new(f);
        self
    }

    pub fn on_detached(mut self, f: impl Fn(&Probe) + Send + Sync + 'static) -> Self {
        self.0.on_detached = Box::new(f);
        self
    }

    pub fn register(self, poller: &PollerHandle, interest: Interest) -> Arc<Probe> {
        let probe = Arc::new(self.0);
        let registration = poller.register(probe.clone(), interest).unwrap();
        probe.registration.set(registration).unwrap();
        probe
    }

    pub fn build(self) -> Arc<Probe> {
        Arc::new(self.0)
    }
}

impl Operator for Probe {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        self.seen.lock().unwrap().push(readiness);
        (self.on_ready)(self, readiness, budget)
    }

    fn run(&self) -> Progress {
        self.runs.fetch_add(1, Ordering::SeqCst);
        (self.on_run)(self)
    }

    fn on_detached(&self) {
        self.detached.fetch_add(1, Ordering::SeqCst);
        (self.on_detached)(self);
    }
}
