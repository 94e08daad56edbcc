//! Shared by the integration tests: an operator made of closures, and bounded waiting.

#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use poller::{
    Balance, Budget, Interest, Operator, PollerGroup, PollerHandle, Progress, Readiness,
    Registration,
};

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

/// Waits until the leader has gone round twice: everything queued or ready before is delivered.
pub fn settle(poller: &PollerHandle) {
    for _ in 0..2 {
        let (tell, told) = mpsc::channel();
        poller.schedule(Instant::now(), move || tell.send(()).unwrap());
        told.recv_timeout(LIMIT).unwrap();
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

/// A probe in the making.
pub fn probe(fd: impl Into<OwnedFd>) -> ProbeBuilder {
    ProbeBuilder(Probe {
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

/// A connected pair; ours does not block.
pub fn pair() -> (UnixStream, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    (ours, peer)
}

pub fn group(pollers: usize) -> PollerGroup {
    PollerGroup::new(pollers, Balance::RoundRobin).unwrap()
}

impl Probe {
    pub fn registration(&self) -> &Registration {
        until("registration", || self.registration.get().is_some());
        self.registration.get().unwrap()
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

    /// Forgets what was seen.
    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// All flags seen, together.
    pub fn all(&self) -> Readiness {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .fold(Readiness::EMPTY, |all, &seen| all | seen)
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
