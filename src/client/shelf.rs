//! The books of a pool: which connections are kept, how many exist, who waits for one.
//!
//! * Every connection that is kept, lent, being dialled or being closed is counted once in its target's
//!   `total`, which never passes the limit. Who takes a connection or a place out gives it back:
//!   [`Shelf::put_back`], [`Shelf::discard`] or [`Shelf::give_back`].
//! * A place is free when the descriptor of its connection is closed, not before. Where another thread
//!   still looks at the connection at that moment, what is left of it is kept in `closing` and looked at
//!   again soon.
//! * Callers wait in a queue for each target ([`Queue`]), which says whose turn it is. Of `n` kept connections
//!   and free places the first `n` waiters have one each, and know it: a wake-up is of one thread, and no
//!   waiter sleeps while something is ready for it.
//! * A target has a slot as long as anything in it is counted, or a caller waits. So the holder of a connection or a place
//!   finds the target again without its key.
//! * A kept connection is looked at without the lock: only the one who took it out sees it.
//! * What is too old, and what is left of closed connections, is seen to at an alarm, which the pool sets
//!   when the shelf asks for it ([`Alarm`]). There is one as long as there is anything to see to.
//!
//! It knows nothing of sockets, so that loom and shuttle run it as it is (`models.rs`).

use super::{
    pool::PoolStats,
    queue::{Arrival, Queue, Seat, Stock, Turn},
};
use crate::{
    connection::COARSE,
    error::Error,
    sync::{AtomicU64, Mutex, Ordering},
};
use poller::{Waiter, internal::coarse_millis};
use std::{
    collections::HashMap,
    hash::Hash,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// What can be kept.
pub(super) trait Keep: Sized {
    /// What is left of a closed one as long as its descriptor is open.
    type Rest: Rest;

    /// Whether it is as good as new. May be a system call that does not wait.
    fn is_usable(&self) -> bool;

    /// Whether its end is not known yet. A load.
    fn is_alive(&self) -> bool;

    /// By which it can be found among others.
    fn number(&self) -> u64;

    /// Closes it; what is left of it if the descriptor is still open when this returns.
    fn close(self) -> Option<Self::Rest>;
}

/// What is left of a closed connection.
pub(super) trait Rest {
    /// Whether the descriptor is closed by now.
    fn is_gone(&self) -> bool;
}

/// Has [`Shelf::see_to`] called after so many milliseconds. Called without a lock.
pub(super) type Alarm = Box<dyn Fn(u64) + Send + Sync>;

/// Values of type `C` by key.
pub(super) struct Shelf<K, C: Keep> {
    options: Options,
    state: Mutex<State<K, C>>,
    /// Apart from the other figures, which are counted under the lock: it is the one of every call.
    reused: AtomicU64,
    alarm: Alarm,
}

/// Where a key's values are. It stays true as long as one of them, or a place for one, is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// What the pool's builder sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) max_idle: usize,
    pub(super) max_total: usize,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) wait: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_idle: 64,
            max_total: usize::MAX,
            idle_timeout: Some(Duration::from_secs(60)),
            wait: None,
        }
    }
}

/// How long a caller waits when all connections are lent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// As the options say.
    Usual,
    /// `None`: as long as it takes.
    Until(Option<Instant>),
}

struct State<K, C: Keep> {
    /// By slot; those without a key are free.
    targets: Vec<Target<K, C>>,
    slots: HashMap<K, Slot>,
    free: Vec<Slot>,
    /// The slot that was asked for last: most pools have one key, and to compare it is cheaper than to
    /// hash it.
    last: Slot,
    /// Of all targets.
    total: usize,
    closing: Vec<(Slot, C::Rest)>,
    /// When the alarm will come, by the coarse clock; [`NEVER`] if none is set.
    alarm_at: u64,
    stats: PoolStats,
    closed: bool,
}

struct Target<K, C> {
    key: Option<K>,
    /// Most recently used last, so the oldest first.
    idle: Vec<Idle<C>>,
    queue: Queue<Given<C>>,
    /// Idle, handed out, being dialled and being closed.
    total: usize,
    /// How many of them are being closed.
    closing: usize,
}

struct Idle<C> {
    value: C,
    /// In milliseconds of the coarse clock.
    since: u64,
}

/// What a caller gets who waited.
enum Given<C> {
    Kept(Idle<C>),
    /// A place for a new one.
    Place,
    /// The pool is closed.
    Closed,
}

/// What a target has for a caller.
enum Claim<C> {
    Given(Given<C>),
    Wait {
        /// Something is being closed.
        closing: bool,
    },
}

/// What a caller has after a look at a kept value.
enum Found<C> {
    Usable(C),
    /// The place of one that was closed.
    Place,
    /// That place is not free yet.
    Nothing,
}

impl<K: Clone + Eq + Hash, C: Keep + Send + 'static> Shelf<K, C> {
    pub(super) fn new(options: Options, alarm: Alarm) -> Self {
        Self {
            options,
            state: Mutex::new(State {
                targets: Vec::new(),
                slots: HashMap::new(),
                free: Vec::new(),
                last: Slot(0),
                total: 0,
                closing: Vec::new(),
                alarm_at: NEVER,
                stats: PoolStats::default(),
                closed: false,
            }),
            reused: AtomicU64::new(0),
            alarm,
        }
    }

    /// A usable kept value, or `None` with a place reserved for a new one; and where it belongs.
    pub(super) fn checkout(&self, key: &K, wait: Wait) -> io::Result<(Slot, Option<C>)> {
        let mut until = None;
        loop {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::ShuttingDown.into());
            }
            let slot = state.slot(key);
            let given = match state.claim(slot, self.options.max_total) {
                Claim::Given(given) => {
                    drop(state);
                    given
                }
                Claim::Wait { closing } => {
                    let Some(until) = until else {
                        // The role must be given away without our lock held.
                        drop(state);
                        until = Some(self.until(wait, closing)?);
                        poller::before_blocking();
                        continue;
                    };
                    let seat = state.sit_down(slot);
                    drop(state);
                    self.wait(slot, &seat, until)?
                }
            };
            match given {
                Given::Kept(idle) => match self.look_at(slot, idle) {
                    Found::Usable(value) => return Ok((slot, Some(value))),
                    Found::Place => return Ok((slot, None)),
                    Found::Nothing => {}
                },
                Given::Place => return Ok((slot, None)),
                Given::Closed => return Err(Error::ShuttingDown.into()),
            }
        }
    }

    /// Until when a caller waits; `None` for as long as it takes.
    fn until(&self, wait: Wait, closing: bool) -> io::Result<Option<Instant>> {
        let now = Instant::now();
        let until = match (wait, self.options.wait) {
            (Wait::Until(Some(at)), _) if at <= now => return Err(Error::PoolExhausted.into()),
            (Wait::Until(at), _) => at,
            (Wait::Usual, Some(time)) => now.checked_add(time),
            (Wait::Usual, None) if closing && !poller::is_polling_thread() => {
                Some(now + CLOSING_WAIT)
            }
            (Wait::Usual, None) => return Err(Error::PoolExhausted.into()),
        };
        if poller::is_polling_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        Ok(until)
    }

    /// Waits for what the first of the queue gets.
    fn wait(
        &self,
        slot: Slot,
        seat: &Arc<Seat<Given<C>>>,
        until: Option<Instant>,
    ) -> io::Result<Given<C>> {
        let wait = poller::begin_wait(Arc::clone(seat) as Arc<dyn Waiter>);
        let mut news = seat.news.lock();
        let mut in_time = true;
        loop {
            if let Some(given) = news.given.take() {
                return Ok(given);
            }
            if std::mem::take(&mut news.called) {
                drop(news);
                if let Some(given) = self.arrive(slot, seat, true) {
                    return Ok(given);
                }
                news = seat.news.lock();
                continue;
            }
            let ended = wait.was_ended();
            if ended || !in_time {
                drop(news);
                let error = if ended {
                    Error::Overloaded
                } else {
                    Error::PoolExhausted
                };
                return self.arrive(slot, seat, false).ok_or_else(|| error.into());
            }
            match until {
                None => seat.changed.wait(&mut news),
                Some(until) => in_time = !seat.changed.wait_until(&mut news, until).timed_out(),
            }
        }
    }

    /// What there is for a caller that was called, or waits no longer.
    fn arrive(&self, slot: Slot, seat: &Arc<Seat<Given<C>>>, stays: bool) -> Option<Given<C>> {
        let mut state = self.state.lock();
        let stock = state.stock(slot, self.options.max_total);
        match state.targets[slot.0].queue.arrive(seat, stock, stays) {
            Arrival::Served => {
                state.stats.waiting -= 1;
                Some(state.take_ready(slot))
            }
            Arrival::Early => None,
            Arrival::Left => {
                state.stats.waiting -= 1;
                None
            }
            Arrival::Given => {
                // Under the same lock.
                drop(state);
                seat.news.lock().given.take()
            }
        }
    }

    /// As [`Self::checkout`] of a caller whose time is up as soon as it waits.
    #[cfg(all(loom, test))]
    pub(super) fn checkout_in_no_time(&self, key: &K) -> Option<(Slot, Option<C>)> {
        let mut state = self.state.lock();
        let slot = state.slot(key);
        let given = match state.claim(slot, self.options.max_total) {
            Claim::Given(given) => given,
            Claim::Wait { .. } => {
                let seat = state.sit_down(slot);
                drop(state);
                self.arrive(slot, &seat, false)?
            }
        };
        match given {
            Given::Kept(idle) => Some((slot, Some(idle.value))),
            Given::Place => Some((slot, None)),
            Given::Closed => None,
        }
    }

    /// A usable value: this one, or another one that is kept. What is not usable is closed.
    fn look_at(&self, slot: Slot, mut idle: Idle<C>) -> Found<C> {
        loop {
            // A system call: no lock is held.
            if idle.is_usable(self.options.idle_timeout, coarse_millis()) {
                self.reused.fetch_add(1, Ordering::Relaxed);
                return Found::Usable(idle.value);
            }
            if let Some(rest) = idle.value.close() {
                self.expect(slot, rest, |stats| stats.discarded += 1);
                return Found::Nothing;
            }
            let mut state = self.state.lock();
            state.stats.discarded += 1;
            let target = &mut state.targets[slot.0];
            if !target.queue.is_empty() {
                // What is kept belongs to the waiters.
                return Found::Place;
            }
            let Some(another) = target.idle.pop() else {
                return Found::Place;
            };
            // One place is enough.
            state.take(slot, 1);
            idle = another;
        }
    }

    /// Takes a value back to keep it, or hands it to the first who waits; returns it if it is not to be
    /// kept. It is still counted then.
    pub(super) fn put_back(&self, slot: Slot, value: C) -> Option<C> {
        let mut state = self.state.lock();
        // A thread that learns of its end from here on finds it here; one that learned before has said so.
        if state.closed || !value.is_alive() {
            return Some(value);
        }
        let since = coarse_millis();
        let stock = state.stock(slot, self.options.max_total);
        let target = &mut state.targets[slot.0];
        let may_keep = target.idle.len() < self.options.max_idle;
        let called = match target.queue.turn(stock, may_keep) {
            Turn::Hand(seat) => {
                state.stats.waiting -= 1;
                seat.give(Given::Kept(Idle { value, since }));
                drop(state);
                seat.wake();
                return None;
            }
            Turn::Free if !may_keep => return Some(value),
            Turn::Free | Turn::Called => None,
            Turn::Call(seat) => Some(seat),
        };
        target.idle.push(Idle { value, since });
        if let Some(timeout) = self.options.idle_timeout {
            if state.alarm_at == NEVER {
                self.set_alarm(&mut state, since.saturating_add(in_millis(timeout)), since);
            }
        }
        drop(state);
        wake(called);
        None
    }

    /// Closes a value that was taken out, and gives its place back.
    pub(super) fn discard(&self, slot: Slot, value: C, count: impl FnOnce(&mut PoolStats)) {
        match value.close() {
            None => self.give_back(slot, count),
            Some(rest) => self.expect(slot, rest, count),
        }
    }

    /// A place is free as soon as nothing is left of its last connection.
    pub(super) fn expect(&self, slot: Slot, rest: C::Rest, count: impl FnOnce(&mut PoolStats)) {
        let mut state = self.state.lock();
        count(&mut state.stats);
        state.targets[slot.0].closing += 1;
        state.closing.push((slot, rest));
        let now = coarse_millis();
        self.set_alarm(&mut state, now + CLOSING_LOOK, now);
    }

    /// One connection less: it is gone, or was never made.
    pub(super) fn give_back(&self, slot: Slot, count: impl FnOnce(&mut PoolStats)) {
        let mut state = self.state.lock();
        count(&mut state.stats);
        let next = state.free_place(slot, self.options.max_total);
        drop(state);
        wake(next);
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut PoolStats)) {
        count(&mut self.state.lock().stats);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        let idle = state.targets.iter().map(|target| target.idle.len()).sum();
        PoolStats {
            idle,
            in_use: state.total - idle - state.closing.len(),
            closing: state.closing.len(),
            reused: self.reused.load(Ordering::Relaxed),
            ..state.stats
        }
    }

    /// Closes a kept value that came to its end; whether it was kept.
    pub(super) fn evict_one(&self, slot: Slot, number: u64) -> bool {
        let mut state = self.state.lock();
        let idle = state.targets.get_mut(slot.0).map(|target| &mut target.idle);
        let found = idle.and_then(|idle| {
            let place = idle.iter().position(|idle| idle.value.number() == number)?;
            Some(idle.remove(place))
        });
        drop(state);
        let is_kept = found.is_some();
        if let Some(idle) = found {
            self.discard(slot, idle.value, |stats| stats.discarded += 1);
        }
        is_kept
    }

    /// Closes what is kept and not usable any more; how many that were.
    pub(super) fn evict(&self) -> usize {
        let now = coarse_millis();
        let timeout = self.options.idle_timeout;
        let mut dead = Vec::new();
        let mut state = self.state.lock();
        for (index, target) in state.targets.iter_mut().enumerate() {
            let (usable, unusable): (Vec<_>, Vec<_>) = std::mem::take(&mut target.idle)
                .into_iter()
                .partition(|idle| idle.is_usable(timeout, now));
            target.idle = usable;
            dead.extend(unusable.into_iter().map(|idle| (Slot(index), idle.value)));
        }
        drop(state);
        self.discard_all(dead)
    }

    /// The alarm: closes what is too old, counts what has been closed, and sets the next alarm.
    pub(super) fn see_to(&self) {
        let mut state = self.state.lock();
        let now = coarse_millis();
        let mut next = NEVER;
        let mut woken = Vec::new();
        let closing = std::mem::take(&mut state.closing);
        for (slot, rest) in closing {
            if rest.is_gone() {
                state.targets[slot.0].closing -= 1;
                woken.extend(state.free_place(slot, self.options.max_total));
            } else {
                state.closing.push((slot, rest));
                next = now + CLOSING_LOOK;
            }
        }
        let mut old = Vec::new();
        if let Some(timeout) = self.options.idle_timeout {
            for (index, target) in state.targets.iter_mut().enumerate() {
                let is_old = |idle: &Idle<C>| idle.is_old(timeout, now);
                let count = target.idle.iter().take_while(|idle| is_old(idle)).count();
                let taken = target.idle.drain(..count);
                old.extend(taken.map(|idle| (Slot(index), idle.value)));
                if let Some(oldest) = target.idle.first() {
                    let due = oldest.since.saturating_add(in_millis(timeout));
                    next = next.min(due.max(now + slack(timeout)));
                }
            }
        }
        state.alarm_at = NEVER;
        self.set_alarm(&mut state, next, now);
        drop(state);
        woken.into_iter().for_each(|seat| wake(Some(seat)));
        self.discard_all(old);
    }

    fn discard_all(&self, values: Vec<(Slot, C)>) -> usize {
        let count = values.len();
        for (slot, value) in values {
            self.discard(slot, value, |stats| stats.discarded += 1);
        }
        count
    }

    /// Has the alarm come at that time, unless it comes before. It is set under the lock, so that an
    /// earlier one is never replaced by a later one.
    fn set_alarm(&self, state: &mut State<K, C>, at: u64, now: u64) {
        if at < state.alarm_at {
            state.alarm_at = at;
            (self.alarm)(at.saturating_sub(now));
        }
    }

    /// Closes what is kept; from now on nothing is handed out and nothing is kept.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut kept = Vec::new();
        let mut woken = Vec::new();
        for (index, target) in state.targets.iter_mut().enumerate() {
            let idle = target.idle.drain(..);
            kept.extend(idle.map(|idle| (Slot(index), idle.value)));
            woken.extend(target.queue.drain());
        }
        for seat in &woken {
            seat.give(Given::Closed);
        }
        state.stats.waiting = 0;
        drop(state);
        woken.into_iter().for_each(|seat| wake(Some(seat)));
        for (slot, value) in kept {
            self.discard(slot, value, |_| {});
        }
    }
}

impl<K: Clone + Eq + Hash, C: Keep> State<K, C> {
    /// Where `key`'s values are; made if there are none.
    fn slot(&mut self, key: &K) -> Slot {
        let last = self.targets.get(self.last.0);
        if !last.is_some_and(|last| last.key.as_ref() == Some(key)) {
            self.last = match self.slots.get(key) {
                Some(slot) => *slot,
                None => self.open(key),
            };
        }
        self.last
    }

    fn open(&mut self, key: &K) -> Slot {
        let target = Target {
            key: Some(key.clone()),
            idle: Vec::new(),
            queue: Queue::new(),
            total: 0,
            closing: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.targets[slot.0] = target;
                slot
            }
            None => {
                self.targets.push(target);
                Slot(self.targets.len() - 1)
            }
        };
        self.slots.insert(key.clone(), slot);
        slot
    }

    fn stock(&self, slot: Slot, max_total: usize) -> Stock {
        let target = &self.targets[slot.0];
        Stock {
            ready: target.idle.len() + (max_total - target.total),
            total: target.total,
        }
    }

    fn claim(&mut self, slot: Slot, max_total: usize) -> Claim<C> {
        let stock = self.stock(slot, max_total);
        let target = &mut self.targets[slot.0];
        if target.queue.pass(stock) {
            return Claim::Given(self.take_ready(slot));
        }
        let closing = target.closing > 0;
        Claim::Wait { closing }
    }

    /// A kept connection, or else a place, for a caller of which one is.
    fn take_ready(&mut self, slot: Slot) -> Given<C> {
        let target = &mut self.targets[slot.0];
        if let Some(idle) = target.idle.pop() {
            return Given::Kept(idle);
        }
        target.total += 1;
        self.total += 1;
        self.stats.peak = self.stats.peak.max(self.total);
        Given::Place
    }

    /// The caller waits, behind all others.
    fn sit_down(&mut self, slot: Slot) -> Arc<Seat<Given<C>>> {
        self.stats.waiting += 1;
        self.targets[slot.0].queue.join()
    }

    /// A place is free: for the first waiter without a connection, which is to be woken.
    fn free_place(&mut self, slot: Slot, max_total: usize) -> Option<Arc<Seat<Given<C>>>> {
        let stock = self.stock(slot, max_total);
        // A dial takes longer than to wake a thread, so no caller goes first.
        let Turn::Hand(seat) = self.targets[slot.0].queue.turn(stock, false) else {
            self.take(slot, 1);
            return None;
        };
        self.stats.waiting -= 1;
        seat.give(Given::Place);
        Some(seat)
    }

    /// Counts less in a slot; the last one frees it.
    fn take(&mut self, slot: Slot, connections: usize) {
        self.total -= connections;
        let target = &mut self.targets[slot.0];
        target.total -= connections;
        if target.total > 0 || !target.queue.is_empty() {
            return;
        }
        if let Some(key) = target.key.take() {
            // Nothing is kept, for that would be counted.
            target.idle = Vec::new();
            self.slots.remove(&key);
            self.free.push(slot);
        }
    }
}

fn wake<C>(seat: Option<Arc<Seat<C>>>) {
    if let Some(seat) = seat {
        seat.wake();
    }
}

impl<C: Keep> Idle<C> {
    fn is_usable(&self, timeout: Option<Duration>, now: u64) -> bool {
        timeout.is_none_or(|timeout| !self.is_old(timeout, now)) && self.value.is_usable()
    }

    fn is_old(&self, timeout: Duration, now: u64) -> bool {
        // The clock may have been behind when it came: rather too old than used too late.
        let age = Duration::from_millis(now.saturating_sub(self.since) + COARSE);
        age >= timeout
    }
}

/// Whole milliseconds, rounded up.
fn in_millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(NEVER)
}

/// How much later than its time something may be closed: the alarm looks at all that is kept, so it does
/// not come for each connection alone.
fn slack(timeout: Duration) -> u64 {
    (in_millis(timeout) / 16).clamp(COARSE, 1000)
}

const NEVER: u64 = u64::MAX;
/// When to look whether something that was closed is gone. Nearly always it is gone at once.
const CLOSING_LOOK: u64 = 2;
/// How long a caller who would not wait waits for a place that is about to be free.
const CLOSING_WAIT: Duration = Duration::from_millis(100);

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    struct Sound(&'static str);

    impl Keep for Sound {
        type Rest = Left;

        fn is_usable(&self) -> bool {
            true
        }

        fn is_alive(&self) -> bool {
            true
        }

        fn number(&self) -> u64 {
            0
        }

        fn close(self) -> Option<Left> {
            (self.0 == "slow").then_some(Left)
        }
    }

    /// Never gone.
    struct Left;

    impl Rest for Left {
        fn is_gone(&self) -> bool {
            false
        }
    }

    fn shelf(idle_timeout: Option<Duration>) -> Shelf<&'static str, Sound> {
        watched_shelf(idle_timeout).0
    }

    /// A shelf, and the times its alarm was set to.
    fn watched_shelf(
        idle_timeout: Option<Duration>,
    ) -> (Shelf<&'static str, Sound>, Arc<Mutex<Vec<u64>>>) {
        let alarms: Arc<Mutex<Vec<u64>>> = Arc::default();
        let set = Arc::clone(&alarms);
        let options = Options {
            max_idle: 2,
            max_total: 3,
            idle_timeout,
            wait: None,
        };
        let shelf = Shelf::new(options, Box::new(move |after| set.lock().push(after)));
        (shelf, alarms)
    }

    /// What is kept for `key`, taken out and put back.
    fn kept(shelf: &Shelf<&'static str, Sound>, key: &'static str) -> Option<&'static str> {
        let (slot, kept) = shelf.checkout(&key, Wait::Usual).unwrap();
        match kept {
            Some(Sound(name)) => {
                assert!(shelf.put_back(slot, Sound(name)).is_none());
                Some(name)
            }
            None => {
                shelf.give_back(slot, |_| {});
                None
            }
        }
    }

    #[test]
    fn every_key_finds_its_own_whatever_came_and_went_between() {
        let shelf = shelf(None);
        let (a, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
        let (b, _) = shelf.checkout(&"b", Wait::Usual).unwrap();
        let (c, _) = shelf.checkout(&"c", Wait::Usual).unwrap();
        assert!(a != b && b != c && a != c);
        assert!(shelf.put_back(a, Sound("of a")).is_none());
        assert!(shelf.put_back(c, Sound("of c")).is_none());
        // The slot of a key that has nothing any more goes to another key.
        shelf.give_back(b, |_| {});
        assert_eq!(kept(&shelf, "a"), Some("of a"));
        let (d, none) = shelf.checkout(&"d", Wait::Usual).unwrap();
        assert!(none.is_none());
        assert_eq!(d, b);
        assert_eq!(kept(&shelf, "b"), None);
        assert!(shelf.put_back(d, Sound("of d")).is_none());
        for (key, value) in [("a", "of a"), ("c", "of c"), ("d", "of d"), ("d", "of d")] {
            assert_eq!(kept(&shelf, key), Some(value));
        }
        assert_eq!(kept(&shelf, "b"), None);
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use, stats.peak), (3, 0, 4));
        assert_eq!(stats.reused, 5);
    }

    #[test]
    fn a_place_is_counted_until_it_is_given_back_even_after_the_close() {
        let shelf = shelf(None);
        let (slot, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
        let (other, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
        assert_eq!(slot, other);
        assert!(shelf.put_back(slot, Sound("kept")).is_none());
        shelf.close();
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use), (0, 1));
        assert!(shelf.put_back(other, Sound("late")).is_some());
        shelf.give_back(other, |_| {});
        assert_eq!(shelf.stats().in_use, 0);
        assert!(shelf.checkout(&"a", Wait::Usual).is_err());
    }

    #[test]
    fn what_is_too_old_is_not_used_and_its_place_is_free() {
        let shelf = shelf(Some(Duration::from_millis(COARSE)));
        for _ in 0..5 {
            let (slot, kept) = shelf.checkout(&"a", Wait::Usual).unwrap();
            assert!(kept.is_none());
            assert!(shelf.put_back(slot, Sound("old")).is_none());
        }
        assert_eq!(shelf.stats().discarded, 4);
        assert_eq!(shelf.evict(), 1);
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use, stats.discarded), (0, 0, 5));
    }

    #[test]
    fn the_alarm_is_set_for_the_oldest_and_not_for_each() {
        let hour = 3_600_000;
        let (shelf, alarms) = watched_shelf(Some(Duration::from_millis(hour)));
        for _ in 0..3 {
            assert!(kept(&shelf, "a").is_none());
            let (slot, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
            assert!(shelf.put_back(slot, Sound("of a")).is_none());
            let (slot, kept) = shelf.checkout(&"a", Wait::Usual).unwrap();
            shelf.discard(slot, kept.unwrap(), |_| {});
        }
        assert_eq!(*alarms.lock(), [hour], "one for all of them");
        // With nothing to see to none is set anew.
        shelf.see_to();
        assert_eq!(alarms.lock().len(), 1);
        let (slot, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
        assert!(shelf.put_back(slot, Sound("of a")).is_none());
        shelf.see_to();
        let set = alarms.lock().clone();
        assert_eq!(set.len(), 3);
        assert!(set[2] <= hour && set[2] > hour - 60_000, "{set:?}");
    }

    #[test]
    fn the_alarm_closes_what_is_too_old_without_a_call() {
        let (shelf, alarms) = watched_shelf(Some(Duration::from_millis(COARSE)));
        for key in ["a", "b"] {
            let (slot, _) = shelf.checkout(&key, Wait::Usual).unwrap();
            assert!(shelf.put_back(slot, Sound("old")).is_none());
        }
        assert_eq!(shelf.stats().idle, 2);
        shelf.see_to();
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.discarded), (0, 2));
        assert_eq!(*alarms.lock(), [COARSE]);
    }

    #[test]
    fn a_place_whose_descriptor_is_still_open_is_not_free() {
        let (shelf, alarms) = watched_shelf(None);
        let (slot, _) = shelf.checkout(&"a", Wait::Usual).unwrap();
        shelf.discard(slot, Sound("slow"), |stats| stats.rejected += 1);
        let stats = shelf.stats();
        assert_eq!((stats.closing, stats.in_use, stats.rejected), (1, 0, 1));
        assert_eq!(*alarms.lock(), [CLOSING_LOOK]);
        for _ in 0..2 {
            assert!(shelf.checkout(&"a", Wait::Usual).unwrap().1.is_none());
        }
        let past = Wait::Until(Some(Instant::now()));
        assert!(shelf.checkout(&"a", past).is_err());
        shelf.see_to();
        assert_eq!(alarms.lock().len(), 2, "it is looked at again");
        assert_eq!(shelf.stats().closing, 1);
    }
}
