//! Deterministic faults in the way of this crate's own system calls, for tests.
//!
//! A [`Plan`] says which call fails how and when, counted from its installation. It is in force
//! for the whole process, or for one thread, until its [`Installed`] is dropped; only one plan is
//! installed at a time and further installations wait. The same plan and the same calls give the
//! same faults; the random ones are a function of the seed and of the number of the call alone.
//!
//! An injected `EAGAIN` stands for a false alarm of the poller. Where bytes are there in truth no
//! further edge announces them, so use it for calls that wait by themselves or with more input on
//! the way; elsewhere use [`Fault::Later`]. Receives that a plan cuts short do not end a round of
//! reading.
//!
//! A plan for a whole process, such as a test binary that knows nothing of faults, comes from the
//! environment variable `NETPOLL_FAULTS`: see [`Plan`]'s `FromStr`. It is in force from the first
//! call on, while no other plan is installed, and says so on the standard error output.

use std::{
    cell::Cell,
    env, fmt,
    io::{self, Write},
    os::fd::BorrowedFd,
    process,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(target_os = "linux")]
use {
    crate::net::announce_input,
    poller::{Interest, Readiness},
    socket2::SockRef,
    std::time::Instant,
};

mod text;

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
    /// As [`Short`](Self::Short), and a receive is not told: the kernel has more than its count says.
    Cut(usize),
    /// The call is not made and fails with `EAGAIN`, and the socket's readiness is announced anew:
    /// as if the bytes, or the room for them, had come a moment later.
    ///
    /// Only sends and receives on TCP sockets that are ready for it and whose peer is there; others
    /// are left alone. What came before a hang-up cannot come later than it. Nor are sends of a
    /// caller that must not wait (inline dispatch), which a full socket makes fail.
    Later,
    /// The thread sleeps for so long before it makes the call, as if it had been interrupted then:
    /// others are ahead of it.
    Held(Duration),
    /// The call is made, and then the thread sleeps for so long before it learns the result: what
    /// others do on hearing of the call comes before whatever the caller does next.
    Late(Duration),
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
///
/// As text it is a list of the seed and rules, separated by commas, such as
/// `seed=1,recv:short=7:chance=300,send:eintr:every=3`. A rule has three parts:
///
/// * the call: `accept`, `bind`, `connect`, `get-option`, `listen`, `name`, `peek`, `recv`, `send`,
///   `set-option`, `shutdown` or `socket`;
/// * the fault: `short=` bytes, `later`, `eintr`, `errno=` number, `held=` microseconds or `late=`
///   microseconds;
/// * when: `every=` n, or `chance=` so many in a thousand.
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
        let table = Arc::new(Table::new(self));
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

/// Makes one call as the plan has it. `op` gets the count it is cut to, if it is. `fd` is the socket
/// that the call moves bytes on, if it moves any.
pub(crate) fn pass<T>(
    call: Call,
    fd: Option<BorrowedFd<'_>>,
    op: impl FnOnce(Option<usize>) -> io::Result<T>,
) -> io::Result<T> {
    if call == Call::Receive {
        note_cut(false);
    }
    let fault = if ON.load(Ordering::Acquire) {
        let table = TABLE.read().clone();
        table.and_then(|table| table.judge(call, fd))
    } else {
        environment().and_then(|table| table.judge(call, fd))
    };
    match fault {
        None => op(None),
        Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Fault::Later) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        Some(Fault::Cut(count)) => op(Some(count.max(1))),
        Some(Fault::Short(count)) => {
            if call == Call::Receive {
                note_cut(true);
            }
            op(Some(count.max(1)))
        }
        Some(Fault::Held(time)) => {
            thread::sleep(time);
            op(None)
        }
        Some(Fault::Late(time)) => {
            let result = op(None);
            thread::sleep(time);
            result
        }
    }
}

/// Calls of this kind so far, and how many of them were hit, by the environment's plan; `None`
/// without one.
pub fn environment_counts(call: Call) -> Option<(u64, u64)> {
    let table = environment()?;
    let of = |counts: &[AtomicU64; KINDS]| counts[call as usize].load(Ordering::Relaxed);
    Some((of(&table.calls), of(&table.hits)))
}

/// The plan that the process was started with.
fn environment() -> Option<&'static Table> {
    static ENVIRONMENT: OnceLock<Option<Table>> = OnceLock::new();
    let read = || {
        let text = env::var(VARIABLE).ok().filter(|text| !text.is_empty())?;
        // Past what test harnesses capture: whoever set it sees that it is in force.
        let mut out = io::stderr();
        match text.parse() {
            Ok(plan) => {
                let _ = writeln!(out, "{VARIABLE} in force: {text}");
                Some(Table::new(plan))
            }
            Err(why) => {
                let _ = writeln!(out, "{VARIABLE}: {why}");
                process::abort()
            }
        }
    };
    ENVIRONMENT.get_or_init(read).as_ref()
}

/// Has the system announce anew that `call` can move bytes on `fd`. `false` if it cannot, or if
/// this is no socket of the kind.
#[cfg(target_os = "linux")]
fn announce(call: Call, fd: BorrowedFd<'_>) -> bool {
    let (wanted, interest) = match call {
        Call::Receive => (Readiness::READABLE, Interest::READ),
        // A caller that must not wait is failed by a full socket, which this one is not.
        Call::Send if !poller::is_polling_thread() => (Readiness::WRITABLE, Interest::WRITE),
        _ => return false,
    };
    let ready = poller::wait_ready(fd, interest | Interest::HANGUP, Some(Instant::now()));
    let gone = Readiness::READ_CLOSED | Readiness::WRITE_CLOSED | Readiness::ERROR;
    if !ready.is_ok_and(|ready| ready.contains(wanted) && !ready.intersects(gone)) {
        return false;
    }
    // Setting these options, to whatever value, wakes those who wait for the socket, and an
    // edge-triggered poller looks again. Others than TCP do not have the first one.
    let socket = SockRef::from(&fd);
    socket.tcp_notsent_lowat().is_ok_and(|same| match call {
        Call::Receive => announce_input(fd).is_ok(),
        _ => socket.set_tcp_notsent_lowat(same).is_ok(),
    })
}

#[cfg(not(target_os = "linux"))]
fn announce(_: Call, _: BorrowedFd<'_>) -> bool {
    false
}

/// Whether the last receive of this thread was cut by a plan, so that its count says nothing
/// about what is left.
pub(crate) fn receive_was_cut() -> bool {
    CUT.try_with(Cell::get).unwrap_or(false)
}

fn note_cut(cut: bool) {
    let _ = CUT.try_with(|cell| cell.set(cut));
}

struct Table {
    plan: Plan,
    calls: [AtomicU64; KINDS],
    hits: [AtomicU64; KINDS],
}

impl Table {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            calls: Default::default(),
            hits: Default::default(),
        }
    }

    fn judge(&self, call: Call, fd: Option<BorrowedFd<'_>>) -> Option<Fault> {
        if self
            .plan
            .thread
            .is_some_and(|id| id != thread::current().id())
        {
            return None;
        }
        let number = self.calls[call as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let mut rules = (0_u64..).zip(&self.plan.rules);
        let (_, hit) = rules.find(|(index, rule)| {
            rule.call == call
                && match rule.when {
                    When::Every(n) => n != 0 && number % n == 0,
                    When::Range(first, end) => (first..end).contains(&number),
                    When::Chance(per_mille) => {
                        // Each rule throws dice of its own.
                        let die = if *index == 0 { 0 } else { mix(*index) };
                        let throw = die ^ mix((call as u64) << 56 | number);
                        mix(self.plan.seed ^ throw) % 1000 < per_mille
                    }
                }
        })?;
        if hit.fault == Fault::Later && !fd.is_some_and(|fd| announce(call, fd)) {
            return None;
        }
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

const VARIABLE: &str = "NETPOLL_FAULTS";

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
    use std::time::Instant;

    use super::*;

    /// Judges a call that does nothing: fails it, cuts it to a count, or lets it be.
    pub(super) fn next(call: Call, fd: Option<BorrowedFd<'_>>) -> io::Result<Option<usize>> {
        pass(call, fd, Ok)
    }

    fn faults(plan: Plan, call: Call, calls: usize) -> Vec<bool> {
        let _installed = plan.this_thread().install();
        (0..calls)
            .map(|_| !matches!(next(call, None), Ok(None)))
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
    fn rules_have_chances_of_their_own() {
        let _installed = Plan::new(1)
            .chance(Call::Receive, 300, Fault::Short(1))
            .chance(Call::Receive, 300, Fault::Short(2))
            .this_thread()
            .install();
        let cuts: Vec<_> = (0..4000)
            .map(|_| next(Call::Receive, None).unwrap())
            .collect();
        let count = |cut| cuts.iter().filter(|c| **c == Some(cut)).count();
        // The second rule has what the first one leaves: 210 in a thousand.
        assert!((1000..1400).contains(&count(1)), "{}", count(1));
        assert!((690..990).contains(&count(2)), "{}", count(2));
    }

    #[test]
    fn kinds_are_counted_apart_and_hits_too() {
        let installed = Plan::new(0)
            .every(Call::Send, 2, Fault::Errno(libc::ENOBUFS))
            .this_thread()
            .install();
        for _ in 0..5 {
            let _ = next(Call::Send, None);
            let _ = next(Call::Accept, None);
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
        let error = next(Call::Send, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(next(Call::Send, None).unwrap(), Some(4));
    }

    #[test]
    fn a_plan_ends_with_its_guard_and_spares_other_threads() {
        let installed = Plan::new(0)
            .every(Call::Send, 1, Fault::Short(1))
            .this_thread()
            .install();
        let elsewhere = thread::spawn(|| next(Call::Send, None).unwrap())
            .join()
            .unwrap();
        assert_eq!(elsewhere, None);
        assert_eq!(next(Call::Send, None).unwrap(), Some(1));
        assert_eq!(installed.calls(Call::Send), 1);
        drop(installed);
        // Another test's plan may be in force by now, but it is for its own thread.
        assert_eq!(next(Call::Send, None).unwrap(), None);
    }

    #[test]
    fn the_thread_sleeps_before_a_call_that_is_held_and_after_one_that_is_late() {
        let pause = Duration::from_millis(20);
        let installed = Plan::new(0)
            .from(Call::Send, 1, 1, Fault::Held(pause))
            .from(Call::Send, 2, 2, Fault::Late(pause))
            .this_thread()
            .install();
        let now = |_| Ok(Instant::now());
        let begin = Instant::now();
        let made = pass(Call::Send, None, now).unwrap();
        assert!(made - begin >= pause);
        let made = pass(Call::Send, None, now).unwrap();
        assert!(made.elapsed() >= pause);
        // The result is the call's own.
        let mut made = None;
        let failed: io::Result<()> = pass(Call::Send, None, |cut| {
            made = Some((Instant::now(), cut));
            Err(io::ErrorKind::BrokenPipe.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (made, cut) = made.unwrap();
        assert!(made.elapsed() >= pause && cut.is_none());
        assert_eq!(installed.hits(Call::Send), 3);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_comes_later_is_announced_again() {
        use std::{
            io::Write,
            net::{TcpListener, TcpStream},
            os::{fd::AsFd, unix::net::UnixStream},
            time::Duration,
        };

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let mut events = mio::Events::with_capacity(4);
        let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&ours);
        poll.registry()
            .register(&mut mio::unix::SourceFd(&raw), mio::Token(0), both)
            .unwrap();
        assert!(!announce(Call::Receive, ours.as_fd()), "nothing is there");
        peer.write_all(b"x").unwrap();
        poller::wait_ready(ours.as_fd(), Interest::READ, None).unwrap();
        let mut edges = |limit| {
            poll.poll(&mut events, Some(limit)).unwrap();
            events.iter().count()
        };
        while edges(Duration::ZERO) > 0 {}
        let _installed = Plan::new(0)
            .every(Call::Receive, 1, Fault::Later)
            .every(Call::Send, 1, Fault::Later)
            .this_thread()
            .install();
        for call in [Call::Receive, Call::Send, Call::Receive, Call::Send] {
            let error = next(call, Some(ours.as_fd())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(edges(Duration::from_secs(10)), 1);
            assert_eq!(edges(Duration::ZERO), 0);
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        poller::wait_ready(ours.as_fd(), Interest::HANGUP, None).unwrap();
        for call in [Call::Receive, Call::Send] {
            assert!(!announce(call, ours.as_fd()), "nothing comes after the end");
        }
        let (unix, mut other) = UnixStream::pair().unwrap();
        other.write_all(b"x").unwrap();
        assert!(!announce(Call::Receive, unix.as_fd()), "only TCP");
    }
}
