//! The monitor: finds callbacks that wait (or compute for long) without having said so.
//!
//! One thread per group. Each tick it looks at the number of every role's latest deposit. The same
//! deposit twice in a row, or one that has lain there for half a tick, makes its runner a suspect, and
//! the system is asked what that thread does: one that waits loses the role at once; one that computes
//! loses it after it has really computed for a while; one that was merely not scheduled keeps it.
//!
//! A look costs as much as some requests: a timer, a wake-up, two switches. So where no run was found to
//! wait for a while the ticks are longer ([`EASED`], [`CALM`]): the next such run stalls its poller for
//! up to three or six ticks instead of one and a half, those after it do not. Before the first one in the
//! group's life they are [much longer](UNUSED), since most groups never see one. Once something was
//! suspected the next tick is short in any case.
//!
//! Where every thread allowed, or to be had, is inside a run, nobody comes for the role. The monitor
//! then [stands in](stand_in) at each tick: it polls and tells operators, so that a run that waits
//! for input, room or a timer gets what it waits for.
//!
//! When nothing was deposited for some ticks the monitor parks, leaving a flag in each role; the
//! next deposit starts it again.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    leader::stand_in,
    poller::Poller,
    sync::{Condvar, Mutex, Ordering, thread},
    sys::{Activity, Moment, nanos, thread_activity},
};

/// Ticks without any deposit after which the monitor parks.
const REST_AFTER: u32 = 10;
/// The tick is divided by this while runs of some poller often wait.
const WORRIED: u32 = 3;
/// For so long after a run was found to wait, or to compute for long, ticks stay as short as they are.
const ALERT: Duration = Duration::from_secs(1);
/// Then the tick is multiplied by this, for so long after that run.
const EASED: u32 = 2;
const UNEASY: Duration = Duration::from_secs(10);
/// Then by this.
const CALM: u32 = 4;
/// And by this as long as none ever was found.
const UNUSED: u32 = 16;
/// Processor time after which a run counts as computing for long.
const COMPUTING: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Monitor {
    tick: Duration,
    name: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Shared, so that a tick takes a reference and no copy.
    pollers: Arc<[Weak<Poller>]>,
    /// Somebody deposited since the monitor parked.
    called: bool,
    stopped: bool,
    handle: Option<thread::JoinHandle<()>>,
    started: bool,
}

impl Monitor {
    pub(crate) fn new(tick: Duration, name: &str) -> Self {
        Self {
            tick,
            name: format!("{name}-monitor"),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// Whom to look at.
    pub(crate) fn pollers(&self, pollers: Vec<Weak<Poller>>) {
        self.state.lock().pollers = pollers.into();
    }

    /// There is something to look at: starts the monitor, or starts it again.
    pub(crate) fn watch(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        state.called = true;
        if state.started {
            drop(state);
            self.changed.notify_all();
            return;
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
            let pollers = Arc::clone(&state.pollers);
            for poller in pollers.iter().filter_map(Weak::upgrade) {
                poller.role.ask_for_watch();
            }
        }
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
        let mut suspects: Vec<Suspect> = Vec::new();
        let mut quiet = 0;
        let mut tick = self.tick;
        let mut found_before = 0;
        let mut found_at: Option<Instant> = None;
        while let Some(pollers) = self.wait(tick) {
            suspects.resize_with(pollers.len(), Suspect::default);
            let mut moved = false;
            let mut found = 0;
            let mut worried = false;
            let mut alert = false;
            for (poller, suspect) in pollers.iter().zip(&mut suspects) {
                if let Some(poller) = poller.upgrade() {
                    moved |= suspect.look(&poller, tick / 2);
                    if poller.workers.is_stuck() {
                        stand_in(&poller);
                        alert = true;
                    }
                    alert |= suspect.is_under_suspicion();
                    worried |= poller.waiting_often.load(Ordering::Relaxed);
                    found += poller.counters.of_interest();
                }
            }
            if std::mem::replace(&mut found_before, found) != found {
                found_at = Some(Instant::now());
            }
            tick = match found_at.map(|at| at.elapsed()) {
                _ if worried => self.tick / WORRIED,
                _ if alert => self.tick,
                Some(ago) if ago < ALERT => self.tick,
                Some(ago) if ago < UNEASY => self.tick * EASED,
                Some(_) => self.tick * CALM,
                None => self.tick * UNUSED,
            };
            quiet = if moved { 0 } else { quiet + 1 };
            if quiet >= REST_AFTER {
                quiet = 0;
                if !self.rest(&pollers, &suspects) {
                    return;
                }
            }
        }
    }

    /// Sleeps for a tick; `None` if the group ended.
    fn wait(&self, tick: Duration) -> Option<Arc<[Weak<Poller>]>> {
        let until = Instant::now() + tick;
        let mut state = self.state.lock();
        while !state.stopped {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Some(Arc::clone(&state.pollers));
            }
        }
        None
    }

    /// Parks until a deposit; `false` if the group ended.
    fn rest(&self, pollers: &[Weak<Poller>], suspects: &[Suspect]) -> bool {
        self.state.lock().called = false;
        let mut parked = true;
        for (poller, suspect) in pollers.iter().zip(suspects) {
            if let Some(poller) = poller.upgrade() {
                parked &= poller.role.unwatch(suspect.deposit);
            }
        }
        if !parked {
            for poller in pollers.iter().filter_map(Weak::upgrade) {
                poller.role.watch();
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
            poller.role.watch();
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

/// What the monitor remembers of one role.
#[derive(Debug, Default)]
struct Suspect {
    deposit: u64,
    /// The deposit has been asked to be taken over.
    wanted: bool,
    /// Processor time of the runner when it was first suspected.
    computed: Option<Duration>,
    /// The runner was there at the last tick.
    seen: bool,
}

impl Suspect {
    /// Its runner was found computing; how it goes on is to be seen.
    fn is_under_suspicion(&self) -> bool {
        self.computed.is_some() && !self.wanted
    }

    /// Looks at a role; whether anything is or was deposited since the last look. What lies there
    /// for `long` is suspected at first sight.
    fn look(&mut self, poller: &Arc<Poller>, long: Duration) -> bool {
        let Some(sight) = poller.role.observe() else {
            return true;
        };
        let Some(runner) = sight.runner else {
            let moved = sight.number != self.deposit;
            *self = Self {
                deposit: sight.number,
                ..Self::default()
            };
            return moved;
        };
        if sight.number != self.deposit || !self.seen {
            *self = Self {
                deposit: sight.number,
                seen: true,
                ..Self::default()
            };
            if Moment::now().since(sight.since) < nanos(long) {
                return true;
            }
        }
        if self.wanted {
            return true;
        }
        match thread_activity(runner) {
            Activity::Waiting | Activity::Unknown => {
                self.wanted = true;
                poller.counters.waits.add(1);
                if poller.role.want(self.deposit) {
                    poller.counters.promotions.add(1);
                    poller.send_leader();
                }
            }
            Activity::Computing(time) => {
                let now = time.unwrap_or_default();
                let since = *self.computed.get_or_insert(now);
                if now.saturating_sub(since) >= COMPUTING {
                    self.wanted = true;
                    if poller.role.want(self.deposit) {
                        poller.counters.computing_promotions.add(1);
                        poller.send_leader();
                    }
                }
            }
        }
        true
    }
}
