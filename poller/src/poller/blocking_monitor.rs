//! The monitor: finds callbacks that block, or compute for long, and did not call `before_blocking`.
//!
//! One thread for each group. At each tick it reads the number of each poller's latest release. If the number
//! is unchanged, or the release is older than half a tick, the monitor asks the system for the state of the
//! runner's thread:
//!
//! * sleeping: the reactor is handed off at once;
//! * in an uninterruptible sleep: handed off if it still is at the next tick;
//! * computing: handed off after 5 ms of processor time;
//! * runnable but not scheduled: not handed off.
//!
//! Each check costs a timer wake-up and two context switches. The interval therefore grows to [`EASED`] or
//! [`CALM`] ticks while no blocked callback is found. The first block after that stalls its poller for up to 3
//! or 6 ticks; later ones 1.5. A suspicion shortens the next tick.
//!
//! If every thread of the pool is inside a run, no thread claims the reactor. The monitor then
//! [polls once](poll_once_for_blocked_pool) at each tick and notifies operators, so that a run that waits for
//! input, space or a timer can go on. Runs and jobs that have waited for a thread for too long are handled by
//! [`overload`](crate::poller::overload).
//!
//! After some ticks without a release and without a waiting job the monitor parks. The next release, or a job
//! that finds no thread, starts it again.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    poller::{Poller, leader::poll_once_for_blocked_pool, overload::Relief},
    sync::{Condvar, Mutex, Ordering, thread},
    sys::{Activity, MonotonicNanos, nanos, thread_activity},
    thread_pool::watched::{Backlog, BusyThread, PoolMonitor, WatchedPool, longest_first},
};

/// Ticks without any release after which the monitor parks.
const REST_AFTER: u32 = 10;
/// The tick is divided by this while runs of some poller often wait.
const WORRIED: u32 = 3;
/// For so long after a run was found to wait, or to compute for long, ticks stay as short as they are.
const ALERT: Duration = Duration::from_secs(1);
/// Then the tick is multiplied by this, for so long after that run.
const EASED: u32 = 2;
const UNEASY: Duration = Duration::from_secs(10);
/// Then by this, and as long as none ever was found.
const CALM: u32 = 4;
/// Processor time after which a run counts as computing for long.
const COMPUTING: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Monitor {
    pub(crate) tick: Duration,
    name: String,
    pub(crate) relief: Relief,
    state: Mutex<State>,
    changed: Condvar,
}

/// The pollers and pools to watch.
#[derive(Clone, Default)]
struct Scope {
    pollers: Vec<Weak<Poller>>,
    /// The pollers' own threads first.
    pools: Vec<Weak<dyn WatchedPool>>,
}

#[derive(Default)]
struct State {
    /// Shared, so that a tick takes a reference and no copy.
    scope: Arc<Scope>,
    /// There was a release, or a job without a thread, since the monitor parked.
    called: bool,
    stopped: bool,
    handle: Option<thread::JoinHandle<()>>,
    started: bool,
}

impl PoolMonitor for Monitor {
    fn request(self: Arc<Self>) -> bool {
        self.watch()
    }
}

impl Monitor {
    /// For the pools that it watches.
    pub(crate) fn weak(self: &Arc<Self>) -> Weak<dyn PoolMonitor> {
        let weak: Weak<Self> = Arc::downgrade(self);
        weak
    }

    pub(crate) fn new(tick: Duration, name: &str) -> Self {
        Self {
            tick,
            name: format!("{name}-monitor"),
            relief: Relief::default(),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// The pollers and pools to watch.
    pub(crate) fn pollers(&self, pollers: Vec<Weak<Poller>>) {
        let mut state = self.state.lock();
        Arc::make_mut(&mut state.scope).pollers = pollers;
    }

    /// Watches other threads as well; the pollers' own come first.
    pub(crate) fn look_after(&self, pool: Weak<dyn WatchedPool>) {
        let mut state = self.state.lock();
        let scope = Arc::make_mut(&mut state.scope);
        scope.pools.retain(|pool| pool.strong_count() > 0);
        scope.pools.push(pool);
    }

    /// There is work to watch: starts the monitor, or starts it again. `false`: it has no thread.
    pub(crate) fn watch(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.stopped {
            return true;
        }
        state.called = true;
        if state.started {
            drop(state);
            self.changed.notify_all();
            return true;
        }
        let monitor = self.clone();
        let started = thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || monitor.run());
        // Refused: runs that wait without a word stall their poller, until the next attempt.
        if let Ok(handle) = started {
            state.started = true;
            state.handle = Some(handle);
        } else {
            let scope = Arc::clone(&state.scope);
            for poller in scope.pollers.iter().filter_map(Weak::upgrade) {
                poller.leadership.request_monitor();
            }
        }
        state.started
    }

    /// The group ends.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for the thread to end.
    pub(crate) fn join(&self) {
        let handle = self.state.lock().handle.take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }

    fn run(&self) {
        let mut watches: Vec<RunnerWatch> = Vec::new();
        let mut quiet = 0;
        let mut tick = self.tick;
        let mut found_before = 0;
        let mut found_at: Option<Instant> = None;
        while let Some(scope) = self.wait(tick) {
            watches.resize_with(scope.pollers.len(), RunnerWatch::default);
            let mut moved = false;
            let mut overdue = 0;
            let mut found = 0;
            let mut worried = false;
            let mut alert = false;
            for (poller, watch_of) in scope.pollers.iter().zip(&mut watches) {
                if let Some(poller) = poller.upgrade() {
                    moved |= watch_of.look(&poller, tick / 2);
                    if poller.workers.is_stuck() {
                        overdue += poll_once_for_blocked_pool(&poller, &scope.pollers);
                        alert = true;
                    }
                    alert |= watch_of.is_undecided();
                    worried |= poller.waiting_often.load(Ordering::Relaxed);
                    found += poller.counters.of_interest();
                }
            }
            let backlog = self.check_pools(&scope, overdue);
            moved |= backlog.waits;
            alert |= backlog.stuck;
            if std::mem::replace(&mut found_before, found) != found {
                found_at = Some(Instant::now());
            }
            tick = match found_at.map(|at| at.elapsed()) {
                _ if worried => self.tick / WORRIED,
                _ if alert => self.tick,
                Some(ago) if ago < ALERT => self.tick,
                Some(ago) if ago < UNEASY => self.tick * EASED,
                Some(_) | None => self.tick * CALM,
            };
            quiet = if moved { 0 } else { quiet + 1 };
            if quiet >= REST_AFTER {
                quiet = 0;
                if !self.rest(&scope, &watches) {
                    return;
                }
            }
        }
    }

    /// Sleeps for a tick; `None` if the group ended.
    fn wait(&self, tick: Duration) -> Option<Arc<Scope>> {
        let until = Instant::now() + tick;
        let mut state = self.state.lock();
        while !state.stopped {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Some(Arc::clone(&state.scope));
            }
        }
        None
    }

    /// Looks whether jobs of the pools, or so many runs, have waited for a thread for too long; what waits in
    /// all.
    fn check_pools(&self, scope: &Scope, runs: usize) -> Backlog {
        let now = MonotonicNanos::now();
        let mut all = Backlog::default();
        for (index, pool) in scope.pools.iter().enumerate() {
            let Some(pool) = pool.upgrade() else {
                continue;
            };
            let backlog = pool.backlog(now);
            all.waits |= backlog.waits;
            all.stuck |= backlog.stuck;
            let own = index == 0;
            let overdue = backlog.overdue + if own { runs } else { 0 };
            if overdue > 0 {
                let holding = || {
                    if own { scope.holding() } else { pool.holding() }
                };
                self.relief.relieve(&*pool, overdue, now, holding);
            }
            all.overdue += overdue;
        }
        all
    }

    /// Runs that go on while others poll, the longest first.
    pub(crate) fn holding(&self) -> Vec<BusyThread> {
        let scope = Arc::clone(&self.state.lock().scope);
        scope.holding()
    }

    /// Parks until there is work to watch; `false` if the group ended.
    fn rest(&self, scope: &Scope, watches: &[RunnerWatch]) -> bool {
        self.state.lock().called = false;
        let pollers = &scope.pollers;
        // Work that finds no thread from here on calls.
        let mut pools = scope.pools.iter().filter_map(Weak::upgrade);
        let mut parked = pools.all(|pool| pool.rest());
        for (poller, watch_of) in pollers.iter().zip(watches) {
            if let Some(poller) = poller.upgrade() {
                parked &= poller.leadership.try_stop_monitor(watch_of.release);
            }
        }
        if !parked {
            for poller in pollers.iter().filter_map(Weak::upgrade) {
                poller.leadership.resume_monitor();
            }
            return true;
        }
        let mut state = self.state.lock();
        while !state.called && !state.stopped {
            self.changed.wait(&mut state);
        }
        if state.stopped {
            return false;
        }
        drop(state);
        for poller in pollers.iter().filter_map(Weak::upgrade) {
            poller.leadership.resume_monitor();
        }
        true
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("tick", &self.tick)
            .finish_non_exhaustive()
    }
}

impl Scope {
    fn holding(&self) -> Vec<BusyThread> {
        let pollers = self.pollers.iter().filter_map(Weak::upgrade);
        longest_first(pollers.flat_map(|poller| poller.holding()))
    }
}

/// What the monitor remembers of one leadership.
#[derive(Debug, Default)]
struct RunnerWatch {
    release: u64,
    /// The release has been asked to be taken over.
    wanted: bool,
    /// Processor time of the runner when it was first suspected.
    computed: Option<Duration>,
    /// The runner was in an uninterruptible sleep at the last tick.
    uninterruptible: bool,
    /// The runner was there at the last tick.
    seen: bool,
}

impl RunnerWatch {
    /// Its runner was found computing, or in an uninterruptible sleep; the next check decides.
    fn is_undecided(&self) -> bool {
        (self.computed.is_some() || self.uninterruptible) && !self.wanted
    }

    /// Checks a leadership; whether anything is or was released since the last check. What lies there
    /// for `long` is suspected at first sight.
    fn look(&mut self, poller: &Arc<Poller>, long: Duration) -> bool {
        let Some(observation) = poller.leadership.snapshot() else {
            return true;
        };
        let Some(runner) = observation.runner else {
            let moved = observation.number != self.release;
            *self = Self {
                release: observation.number,
                ..Self::default()
            };
            return moved;
        };
        if observation.number != self.release || !self.seen {
            *self = Self {
                release: observation.number,
                seen: true,
                ..Self::default()
            };
            if MonotonicNanos::now().since(observation.since) < nanos(long) {
                return true;
            }
        }
        if self.wanted {
            return true;
        }
        let (leadership, counters) = (&poller.leadership, &poller.counters);
        let (promotions, send) = match thread_activity(runner) {
            Activity::Computing(time) => {
                let now = time.unwrap_or_default();
                let since = *self.computed.get_or_insert(now);
                if now.saturating_sub(since) < COMPUTING {
                    return true;
                }
                let send = leadership.request_handoff(self.release);
                (&counters.computing_promotions, send)
            }
            // More threads would want the same lock of the kernel, and each of them would be found here.
            Activity::Uninterruptible if !self.uninterruptible => {
                self.uninterruptible = true;
                return true;
            }
            Activity::Uninterruptible => {
                counters.waits.add(1);
                (
                    &counters.promotions,
                    leadership.request_handoff(self.release),
                )
            }
            Activity::Waiting | Activity::Unknown => {
                counters.waits.add(1);
                let send = leadership.request_handoff_of_blocked(self.release);
                (&counters.promotions, send)
            }
        };
        self.wanted = true;
        if send {
            promotions.add(1);
            poller.spawn_leader();
        }
        true
    }
}
