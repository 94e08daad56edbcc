//! Every thread is taken and work waits for one: waits that can be ended are, others are named.
#![cfg(not(loom))]

mod support;

use std::{
    os::{fd::BorrowedFd, unix::net::UnixStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use poller::{
    Budget, Interest, Job, Operator, Overload, PollerGroup, PollerHandle, Progress, Readiness,
    Registration, Waiter, WorkerPool, before_blocking, begin_wait,
};
use support::{LIMIT, pair, until};

/// Far less than what is waited for here, far more than what a busy machine needs.
const SOON: Duration = Duration::from_millis(20);
const THREADS: usize = 3;

/// Waits until it is opened, or ended.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
    inside: AtomicUsize,
    ended: AtomicUsize,
}

impl Waiter for Door {
    fn wake(&self) {
        drop(self.open.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Door {
    fn pass(self: &Arc<Self>) {
        let waiting = begin_wait(self.clone());
        self.inside.fetch_add(1, SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open && !waiting.was_ended() {
            open = self.changed.wait_timeout(open, LIMIT).unwrap().0;
        }
        drop(open);
        if waiting.finish() {
            self.ended.fetch_add(1, SeqCst);
        }
    }

    /// A wait that does not say so.
    fn pass_silently(&self) {
        self.inside.fetch_add(1, SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait_timeout(open, LIMIT).unwrap().0;
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// What a run or a job does.
type What = Arc<dyn Fn() + Send + Sync>;

/// An operator whose run does something, each time it is woken.
struct Runs(UnixStream, What, u64);

impl Operator for Runs {
    fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        if readiness.contains(Readiness::WAKE) {
            budget.request_run();
        }
        Progress::Drained
    }

    fn run(&self) -> Progress {
        (self.1)();
        Progress::Drained
    }

    fn id(&self) -> u64 {
        self.2
    }
}

struct Does(What, u64);

impl Job for Does {
    fn run(self: Arc<Self>) {
        (self.0)();
    }

    fn id(&self) -> u64 {
        self.1
    }
}

/// A place with [`THREADS`] threads: a group's own, or a pool that it looks after.
struct Place {
    group: PollerGroup,
    pool: Option<WorkerPool>,
    registrations: Mutex<Vec<(Registration, UnixStream)>>,
}

impl Place {
    /// Both kinds.
    fn both(after: Option<Duration>) -> [Self; 2] {
        [false, true].map(|pooled| {
            let builder = PollerGroup::builder().pollers(1).max_threads(THREADS);
            let group = builder.overload_after(after).build().unwrap();
            let pool = pooled.then(|| {
                let builder = WorkerPool::builder().max_threads(THREADS);
                builder.overload_after(after).build()
            });
            if let Some(pool) = &pool {
                group.look_after(pool);
            }
            Self {
                group,
                pool,
                registrations: Mutex::default(),
            }
        })
    }

    fn begin(&self, id: u64, what: impl Fn() + Send + Sync + 'static) {
        let what: What = Arc::new(what);
        if let Some(pool) = &self.pool {
            assert!(pool.submit(Arc::new(Does(what, id))).is_ok());
            return;
        }
        let (ours, peer) = pair();
        let operator = Arc::new(Runs(ours, what, id));
        let registration = self.group.register(operator, Interest::READ).unwrap();
        registration.wake();
        self.registrations
            .lock()
            .unwrap()
            .push((registration, peer));
    }

    fn ended_waits(&self) -> u64 {
        match &self.pool {
            Some(pool) => pool.stats().ended_waits,
            None => self.group.stats().workers.ended_waits,
        }
    }

    fn holding(&self) -> Vec<u64> {
        let mut all: Vec<_> = match &self.pool {
            Some(pool) => pool.holding(),
            None => self.group.stats().holding,
        }
        .iter()
        .map(|holding| holding.id)
        .collect();
        all.sort_unstable();
        all
    }

    fn close(self) {
        if let Some(pool) = &self.pool {
            pool.close();
        }
        self.registrations.into_inner().unwrap().clear();
        self.group.close();
    }
}

#[test]
fn waits_are_ended_until_all_work_has_had_a_thread() {
    for place in Place::both(Some(SOON)) {
        let door = Arc::new(Door::default());
        for id in 0..10 * THREADS {
            let door = door.clone();
            place.begin(1 + id as u64, move || door.pass());
        }
        let (tell, told) = mpsc::channel();
        place.begin(1000, move || tell.send(()).unwrap());
        told.recv_timeout(LIMIT).unwrap();
        until("all have been inside", || {
            door.inside.load(SeqCst) == 10 * THREADS
        });
        // Those that nobody waits for are left alone.
        until("the rest", || place.ended_waits() >= 9 * THREADS as u64);
        let ended = place.ended_waits();
        thread::sleep(3 * SOON);
        assert_eq!(place.ended_waits(), ended);
        assert_eq!(door.ended.load(SeqCst) as u64, ended);
        door.open();
        place.close();
    }
}

#[test]
fn the_wait_that_is_ended_is_the_longest() {
    for place in Place::both(Some(SOON)) {
        let doors: Vec<_> = (0..THREADS).map(|_| Arc::new(Door::default())).collect();
        for (n, door) in doors.iter().enumerate() {
            let own = door.clone();
            place.begin(1 + n as u64, move || own.pass());
            until("it waits", || door.inside.load(SeqCst) == 1);
        }
        let last = Arc::new(Door::default());
        let own = last.clone();
        place.begin(100, move || own.pass());
        until("it waits", || last.inside.load(SeqCst) == 1);
        // One is enough. Others were ended as well if its thread took long to come.
        for (n, door) in doors.iter().enumerate().rev() {
            if n == 0 || door.ended.load(SeqCst) == 1 {
                for longer in &doors[..=n] {
                    until("the longer ones", || longer.ended.load(SeqCst) == 1);
                }
            }
        }
        assert_eq!(last.ended.load(SeqCst), 0);
        for door in doors.iter().chain([&last]) {
            door.open();
        }
        place.close();
    }
}

#[test]
fn without_a_limit_no_wait_is_ended() {
    for place in Place::both(None) {
        let door = Arc::new(Door::default());
        for id in 0..2 * THREADS {
            let door = door.clone();
            place.begin(id as u64, move || door.pass());
        }
        until("as many as may", || door.inside.load(SeqCst) == THREADS);
        thread::sleep(5 * SOON);
        assert_eq!(door.inside.load(SeqCst), THREADS);
        assert_eq!(place.ended_waits(), 0);
        door.open();
        until("all", || door.inside.load(SeqCst) == 2 * THREADS);
        place.close();
    }
}

static REPORTS: Mutex<Vec<Overload>> = Mutex::new(Vec::new());

fn note(overload: &Overload) {
    REPORTS.lock().unwrap().push(overload.clone());
    panic!("on purpose");
}

#[test]
fn work_that_cannot_be_ended_is_named() {
    for (n, place) in Place::both(Some(SOON)).into_iter().enumerate() {
        place.group.report_overload(note);
        let door = Arc::new(Door::default());
        let first = 100 * (1 + n as u64);
        for id in 0..2 * THREADS as u64 {
            let own = door.clone();
            place.begin(first + id, move || {
                if id % 2 == 0 {
                    before_blocking();
                }
                own.pass_silently();
            });
            if id < THREADS as u64 {
                until("it waits", || door.inside.load(SeqCst) as u64 > id);
            }
        }
        let ids: Vec<u64> = (first..first + THREADS as u64).collect();
        until("a report", || !REPORTS.lock().unwrap().is_empty());
        let reports = std::mem::take(&mut *REPORTS.lock().unwrap());
        let report = &reports[0];
        assert!((1..=THREADS).contains(&report.waiting), "{report:?}");
        assert_eq!(report.ended_waits, 0);
        let mut named: Vec<u64> = report.holding.iter().map(|holding| holding.id).collect();
        assert!(report.holding.is_sorted_by(|a, b| a.time >= b.time));
        named.sort_unstable();
        assert_eq!(named, ids);
        assert_eq!(place.holding(), ids);
        let begin = Instant::now();
        // The report panicked, and the monitor goes on; it does not repeat itself.
        until("more looks", || begin.elapsed() > 5 * SOON);
        assert!(REPORTS.lock().unwrap().is_empty());
        door.open();
        until("all of them", || door.inside.load(SeqCst) == 2 * THREADS);
        until("the end", || place.holding().is_empty());
        place.close();
    }
}

#[test]
fn waits_of_the_reserve_are_ended_too() {
    let group = PollerGroup::builder()
        .pollers(1)
        .max_threads(1)
        .overload_after(SOON)
        .build()
        .unwrap();
    let (door, taken) = (Arc::new(Door::default()), Arc::new(Door::default()));
    let own = taken.clone();
    let (ours, _peer) = pair();
    let operator = Arc::new(Runs(ours, Arc::new(move || own.pass_silently()), 1));
    let registration = group.register(operator, Interest::READ).unwrap();
    registration.wake();
    until("the only thread", || taken.inside.load(SeqCst) == 1);
    for _ in 0..40 {
        let door = door.clone();
        group.pick().schedule(Instant::now(), move || door.pass());
    }
    until("all closures", || door.inside.load(SeqCst) == 40);
    assert!(group.stats().reserve.ended_waits >= 36);
    door.open();
    taken.open();
    group.close();
}

#[test]
fn a_thread_that_leads_and_sleeps_runs_for_other_pollers() {
    let group = PollerGroup::builder()
        .pollers(2)
        .max_threads(2)
        .overload_after(SOON)
        .build()
        .unwrap();
    let [first, second] = group.handles() else {
        panic!("two pollers were asked for");
    };
    let taken = Arc::new(Door::default());
    let mut registrations = Vec::new();
    let mut begin = |poller: &PollerHandle, what: What, id| {
        let (ours, peer) = pair();
        let operator = Arc::new(Runs(ours, what, id));
        let registration = poller.register(operator, Interest::READ).unwrap();
        registration.wake();
        registrations.push((registration, peer));
    };
    let own = taken.clone();
    begin(first, Arc::new(move || own.pass_silently()), 7);
    until("one thread", || taken.inside.load(SeqCst) == 1);
    // The other leads the second poller, where nothing happens.
    for _ in 0..5 {
        let (tell, told) = mpsc::channel();
        begin(first, Arc::new(move || tell.send(()).unwrap()), 8);
        told.recv_timeout(LIMIT).unwrap();
    }
    // It may wait there, and is then one of those that are taken.
    let door = Arc::new(Door::default());
    let own = door.clone();
    begin(first, Arc::new(move || own.pass()), 9);
    until("both threads", || door.inside.load(SeqCst) == 1);
    let mut ids: Vec<u64> = group.stats().holding.iter().map(|h| h.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [7, 9]);
    let (tell, told) = mpsc::channel();
    begin(second, Arc::new(move || tell.send(()).unwrap()), 10);
    told.recv_timeout(LIMIT).unwrap();
    until("the wait was ended for it", || door.ended.load(SeqCst) == 1);
    assert_eq!(group.stats().workers.peak_threads, 2);
    taken.open();
    group.close();
}
