//! The load generator: one thread, raw epoll, closed loop.
//!
//! A plan says how many connections ask for what and for how long. The generator keeps `depth`
//! requests under way on every active connection, records how long each takes from before its send
//! to after the receive that completed it, and checks the header of every answer it can see.

mod churn;
mod connection;
mod pump;
mod slow;
mod verify;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::frame::{self, Kind};

pub(crate) use verify::verify;

/// What to ask of a server, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the server listens.
    pub(crate) addr: SocketAddr,
    /// Congestion control of every socket; the system's own when `None`.
    pub(crate) congestion: Option<String>,
    /// Connections opened.
    pub(crate) connections: usize,
    /// How many of them ask; the others stay silent.
    pub(crate) active: usize,
    /// Further connections that ask without end and hardly read.
    pub(crate) slow: usize,
    /// Requests under way on each active connection.
    pub(crate) depth: usize,
    /// Payload bytes of a request.
    pub(crate) size: usize,
    /// What every unmarked request asks for.
    pub(crate) kind: Kind,
    /// Requests that differ from the others and are recorded apart. Needs a depth of 1.
    pub(crate) mark: Option<Mark>,
    /// Connect, ask once and close, again and again, on `connections` places.
    pub(crate) churn: bool,
    /// How long to run before anything is recorded.
    pub(crate) warmup: Duration,
    /// How long to record.
    pub(crate) measure: Duration,
    /// End after so many answers instead, without warm-up.
    pub(crate) requests: Option<u64>,
}

impl Plan {
    /// One connection, one request of 64 bytes at a time, for a second.
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            congestion: None,
            connections: 1,
            active: usize::MAX,
            slow: 0,
            depth: 1,
            size: 64,
            kind: Kind::Echo,
            mark: None,
            churn: false,
            warmup: Duration::from_millis(100),
            measure: Duration::from_secs(1),
            requests: None,
        }
    }

    /// Bytes a request and its answer have together, headers included.
    pub(crate) fn bytes_per_request(&self) -> usize {
        let frame = frame::HEADER + self.size;
        frame
            + if self.kind == Kind::Sink {
                frame::ACK.len()
            } else {
                frame
            }
    }

    fn check(&self) -> io::Result<()> {
        let refuse = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if self.connections == 0 || self.depth == 0 {
            return refuse("a load needs at least one connection and a depth of at least one");
        }
        if self.mark.is_some() && self.depth > 1 {
            return refuse("marked requests need a depth of 1, to know which answer is theirs");
        }
        if self.size == 0 && (self.kind != Kind::Echo || self.mark.is_some()) {
            return refuse(
                "an empty payload cannot say what is asked for: use a size of at least 1",
            );
        }
        Ok(())
    }
}

/// Requests set apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark {
    /// Their share of all requests, 0 to 1.
    pub(crate) share: f64,
    /// What is different about them.
    pub(crate) what: Marked,
}

/// What a marked request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// It asks for something else.
    Asks(Kind),
    /// Its second half is sent 10 ms after its first.
    Split,
}

/// The two moments between which figures count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Recording begins.
    Begin,
    /// Recording has ended; the connections are still open.
    End,
}

/// What a load has seen.
pub(crate) struct Outcome {
    /// Answers received while recording.
    pub(crate) requests: u64,
    /// How long recording took.
    pub(crate) elapsed: Duration,
    /// Latency in nanoseconds of the unmarked requests.
    pub(crate) latency: Histogram<u64>,
    /// Latency in nanoseconds of the marked ones.
    pub(crate) marked: Histogram<u64>,
    /// CPU time the generator itself has used while recording.
    pub(crate) generator: Duration,
}

/// How long beyond its time a load goes on where nothing was answered yet.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `plan`. `observe` is called when recording begins and when it ends.
///
/// # Errors
///
/// When the plan makes no sense, a connection cannot be made, or the server closes one or answers
/// something else than was asked for.
pub(crate) fn run(plan: &Plan, observe: &mut dyn FnMut(Moment)) -> io::Result<Outcome> {
    plan.check()?;
    let mut recorder = Recorder::new(plan, observe);
    if plan.churn {
        churn::Churn::new(plan)?.run(&mut recorder)?;
    } else {
        pump::Pump::new(plan)?.run(&mut recorder)?;
    }
    Ok(recorder.outcome)
}

/// Knows whether to record, and when to end.
struct Recorder<'a> {
    outcome: Outcome,
    observe: &'a mut dyn FnMut(Moment),
    start: std::time::Instant,
    begin: u64,
    /// How long to record, in nanoseconds.
    length: u64,
    /// Known once recording has begun.
    end: u64,
    /// How long to wait for a first answer after that.
    last: u64,
    limit: u64,
    recording: bool,
    began: u64,
    generator: Duration,
}

impl<'a> Recorder<'a> {
    fn new(plan: &Plan, observe: &'a mut dyn FnMut(Moment)) -> Self {
        let warmup = if plan.requests.is_some() {
            Duration::ZERO
        } else {
            plan.warmup
        };
        let (begin, limit) = (warmup.as_nanos() as u64, plan.requests.unwrap_or(u64::MAX));
        let counted = plan.requests.is_some();
        Self {
            outcome: Outcome {
                requests: 0,
                elapsed: Duration::ZERO,
                latency: histogram(),
                marked: histogram(),
                generator: Duration::ZERO,
            },
            observe,
            start: std::time::Instant::now(),
            begin,
            length: if counted {
                u64::MAX
            } else {
                plan.measure.as_nanos() as u64
            },
            end: u64::MAX,
            last: u64::MAX,
            limit,
            recording: false,
            began: 0,
            generator: Duration::ZERO,
        }
    }

    /// Starts the clock: everything is connected.
    fn start(&mut self) {
        self.start = std::time::Instant::now();
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Begins or ends recording when it is time; true while the load has to go on.
    fn tick(&mut self) -> io::Result<bool> {
        let now = self.now();
        if !self.recording && now >= self.begin {
            self.recording = true;
            self.generator = crate::sys::own_cpu_time()?;
            (self.observe)(Moment::Begin);
            self.began = self.now();
            self.end = self.began.saturating_add(self.length);
            self.last = self.end.saturating_add(PATIENCE.as_nanos() as u64);
        }
        let time_is_up = now >= self.end && (self.outcome.requests > 0 || now >= self.last);
        if !time_is_up && self.outcome.requests < self.limit {
            return Ok(true);
        }
        self.outcome.elapsed = Duration::from_nanos(self.now() - self.began);
        (self.observe)(Moment::End);
        self.outcome.generator = crate::sys::own_cpu_time()? - self.generator;
        self.recording = false;
        Ok(false)
    }

    /// The next moment [`Self::tick`] has something to do, in nanoseconds since the start.
    fn next(&self) -> u64 {
        if self.recording { self.end } else { self.begin }
    }

    /// `count` requests sent at `sent` were answered at `now`.
    #[inline]
    fn record(&mut self, sent: u64, now: u64, count: u64, marked: bool) {
        if self.recording {
            self.outcome.requests += count;
            let latency = if marked {
                &mut self.outcome.marked
            } else {
                &mut self.outcome.latency
            };
            latency.saturating_record_n(now.saturating_sub(sent), count);
        }
    }
}

/// Latencies from a microsecond to a minute, in nanoseconds, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("bounds in order")
}

/// How long to wait for events before something is due at `due`, both in nanoseconds.
fn until(due: u64, now: u64) -> Option<Duration> {
    (due != u64::MAX).then(|| Duration::from_nanos(due.saturating_sub(now)))
}
