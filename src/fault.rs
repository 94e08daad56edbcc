//! Deterministic faults in the way of this crate's own system calls, for tests.
//!
//! A [`Plan`] says which call fails how and when, counted from its installation. It is in force
//! for the whole process, or for one thread, until its [`Installed`] is dropped; only one plan is
//! installed at a time and further installations wait. The same plan and the same calls give the
//! same faults; the random ones are a function of the seed and of the number of the call alone.
//!
//! An injected `EAGAIN` stands for a false alarm of the poller. Where bytes are there in truth no
//! further edge announces them, so use it for calls that wait by themselves or with more input on
//! the way. Receives that a plan cuts short do not end a round of reading.

use std::{
    cell::Cell,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
};

use parking_lot::{Mutex, MutexGuard, RwLock};

pub use crate::net::Call;

/// What happens instead of the call, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call is not made and fails with this `errno`. `EINTR` makes the caller try again,
    /// which counts as a further call.
    Errno(i32),
    /// The call may move at most this many bytes (at least one).
    Short(usize),
}

/// Which call of a kind is hit. Calls are counted from 1.
#[derive(Clone, Copy, Debug)]
enum When {
    /// Each call whose number is a multiple.
    Every(u64),
    /// These calls: from the first to before the last.
    Range(u64, u64),
    /// This many of a thousand, by the seed.
    Chance(u64),
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    call: Call,
    when: When,
    fault: Fault,
}

/// A schedule of faults. For each call the first rule that applies is used.
#[derive(Clone, Debug)]
#[must_use]
pub struct Plan {
    seed: u64,
    thread: Option<ThreadId>,
    rules: Vec<Rule>,
}

impl Plan {
    /// A plan without faults; it counts calls.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            thread: None,
            rules: Vec::new(),
        }
    }

    /// Hits every `n`-th call: the `n`-th, the `2n`-th and so on. 0 hits none.
    pub fn every(self, call: Call, n: u64, fault: Fault) -> Self {
        self.rule(call, When::Every(n), fault)
    }

    /// Hits the `times` calls from number `first` on.
    pub fn from(self, call: Call, first: u64, times: u64, fault: Fault) -> Self {
        self.rule(call, When::Range(first, first.saturating_add(times)), fault)
    }

    /// Hits each call with a chance of `per_mille` in a thousand, by the seed.
    pub fn chance(self, call: Call, per_mille: u64, fault: Fault) -> Self {
        self.rule(call, When::Chance(per_mille), fault)
    }

    /// Limits the plan, its counters included, to calls of the thread that says so.
    pub fn this_thread(mut self) -> Self {
        self.thread = Some(thread::current().id());
        self
    }

    /// Puts the plan in force. Waits until no other plan is.
    pub fn install(self) -> Installed {
        let turn = TURN.lock();
        let table = Arc::new(Table {
            plan: self,
            calls: Default::default(),
            hits: Default::default(),
        });
        *TABLE.write() = Some(Arc::clone(&table));
        ON.store(true, Ordering::Release);
        Installed { table, _turn: turn }
    }

    fn rule(mut self, call: Call, when: When, fault: Fault) -> Self {
        self.rules.push(Rule { call, when, fault });
        self
    }
}

/// A plan in force; dropping it ends it.
#[must_use]
pub struct Installed {
    table: Arc<Table>,
    _turn: MutexGuard<'static, ()>,
}

impl Installed {
    /// Calls of this kind so far, hit or not.
    pub fn calls(&self, call: Call) -> u64 {
        self.table.calls[call as usize].load(Ordering::Relaxed)
    }

    /// Calls of this kind that were hit so far.
    pub fn hits(&self, call: Call) -> u64 {
        self.table.hits[call as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        ON.store(false, Ordering::Release);
        *TABLE.write() = None;
    }
}

impl fmt::Debug for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Installed").field(&self.table.plan).finish()
    }
}

/// Judges one call: fails it, cuts it to a count, or lets it be.
pub(crate) fn next(call: Call) -> io::Result<Option<usize>> {
    if call == Call::Receive {
        CUT.set(false);
    }
    if !ON.load(Ordering::Acquire) {
        return Ok(None);
    }
    let Some(table) = TABLE.read().clone() else {
        return Ok(None);
    };
    match table.judge(call) {
        None => Ok(None),
        Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Fault::Short(count)) => {
            if call == Call::Receive {
                CUT.set(true);
            }
            Ok(Some(count.max(1)))
        }
    }
}

/// Whether the last receive of this thread was cut by a plan, so that its count says nothing
/// about what is left.
pub(crate) fn receive_was_cut() -> bool {
    CUT.get()
}

struct Table {
    plan: Plan,
    calls: [AtomicU64; KINDS],
    hits: [AtomicU64; KINDS],
}

impl Table {
    fn judge(&self, call: Call) -> Option<Fault> {
        if self
            .plan
            .thread
            .is_some_and(|id| id != thread::current().id())
        {
            return None;
        }
        let number = self.calls[call as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let hit = self.plan.rules.iter().find(|rule| {
            rule.call == call
                && match rule.when {
                    When::Every(n) => n != 0 && number % n == 0,
                    When::Range(first, end) => (first..end).contains(&number),
                    When::Chance(per_mille) => {
                        mix(self.plan.seed ^ mix((call as u64) << 56 | number)) % 1000 < per_mille
                    }
                }
        })?;
        self.hits[call as usize].fetch_add(1, Ordering::Relaxed);
        Some(hit.fault)
    }
}

/// The finaliser of splitmix64: every input bit changes about half of the output bits.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// `Call::Socket` is the last kind.
const KINDS: usize = Call::Socket as usize + 1;

// Not from the synchronisation shim: a plan is for tests against the real system, and these must
// be constants to live in statics.
static ON: AtomicBool = AtomicBool::new(false);
static TABLE: RwLock<Option<Arc<Table>>> = RwLock::new(None);
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static CUT: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(plan: Plan, call: Call, calls: usize) -> Vec<bool> {
        let _installed = plan.this_thread().install();
        (0..calls)
            .map(|_| !matches!(next(call), Ok(None)))
            .collect()
    }

    #[test]
    fn every_and_from_count_from_one() {
        let plan = Plan::new(0).every(Call::Send, 3, Fault::Short(1));
        assert_eq!(
            faults(plan, Call::Send, 6),
            [false, false, true, false, false, true]
        );
        let plan = Plan::new(0).from(Call::Send, 2, 2, Fault::Errno(libc::EINTR));
        assert_eq!(faults(plan, Call::Send, 4), [false, true, true, false]);
    }

    #[test]
    fn chance_is_a_function_of_the_seed() {
        let plan = |seed| Plan::new(seed).chance(Call::Receive, 250, Fault::Short(1));
        let one = faults(plan(1), Call::Receive, 4000);
        assert_eq!(one, faults(plan(1), Call::Receive, 4000));
        assert_ne!(one, faults(plan(2), Call::Receive, 4000));
        let hits = one.iter().filter(|hit| **hit).count();
        assert!((850..1150).contains(&hits), "{hits} of 4000");
    }

    #[test]
    fn kinds_are_counted_apart_and_hits_too() {
        let installed = Plan::new(0)
            .every(Call::Send, 2, Fault::Errno(libc::ENOBUFS))
            .this_thread()
            .install();
        for _ in 0..5 {
            let _ = next(Call::Send);
            let _ = next(Call::Accept);
        }
        assert_eq!(
            (installed.calls(Call::Send), installed.hits(Call::Send)),
            (5, 2)
        );
        assert_eq!(
            (installed.calls(Call::Accept), installed.hits(Call::Accept)),
            (5, 0)
        );
    }

    #[test]
    fn the_first_rule_that_applies_wins() {
        let _installed = Plan::new(0)
            .from(Call::Send, 1, 1, Fault::Errno(libc::EMFILE))
            .every(Call::Send, 1, Fault::Short(4))
            .this_thread()
            .install();
        let error = next(Call::Send).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(next(Call::Send).unwrap(), Some(4));
    }

    #[test]
    fn a_plan_ends_with_its_guard_and_spares_other_threads() {
        let installed = Plan::new(0)
            .every(Call::Send, 1, Fault::Short(1))
            .this_thread()
            .install();
        let elsewhere = thread::spawn(|| next(Call::Send).unwrap()).join().unwrap();
        assert_eq!(elsewhere, None);
        assert_eq!(next(Call::Send).unwrap(), Some(1));
        assert_eq!(installed.calls(Call::Send), 1);
        drop(installed);
        // Another test's plan may be in force by now, but it is for its own thread.
        assert_eq!(next(Call::Send).unwrap(), None);
    }
}
