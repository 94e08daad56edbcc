//! Keeps a number of calls in flight on a number of connections and checks every answer.
//!
//! The frame is a 4-byte big-endian length and that many bytes; the server answers with the same
//! frame, in order. One line of figures at the end; exits 1 if an answer was wrong or lost.

mod support;

use hdrhistogram::Histogram;
use netpoll::{
    Balance, Bytes, CloseReason, Connection, ConnectionHandle, Dialer, Handler, LinkBuffer, OnFull,
    PollerGroup, Writer,
};
use std::{
    collections::VecDeque,
    io,
    process::ExitCode,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use support::{
    args::{self, Args, Failure, Mode, Place},
    pattern,
};

const USAGE: &str = "\
usage: rpc_client --connect ADDR [--connections N] [--depth N] [--size N] [--seconds N]

  --connect ADDR    HOST:PORT or unix:/path
  --connections N   1 unless given
  --depth N         calls in flight on each connection, 1 unless given
  --size N          bytes in a frame, 64 unless given
  --seconds N       how long new calls are made, may be a fraction, 5 unless given
  --pollers N       threads that wait for sockets, 1 unless given
  --dispatch D      where answers are handled: adaptive (default), workers or inline
  --workers N       the most threads of --dispatch workers

Prints: calls=N calls_per_s=X p50_us=X p99_us=X p999_us=X max_us=X bytes=N answers=N wrong_bytes=N
errors=N. All but the last three are of calls that were answered within the time.";

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = args.need("connect")?;
    let connections = args.count("connections", 1)?;
    let depth = args.count("depth", 1)?;
    let size = args.or("size", 64_u32)? as usize;
    let seconds = args.or("seconds", 5.0)?;
    let pollers = args.count("pollers", 1)?;
    let mode = args.or("dispatch", Mode::default())?;
    let workers = args.take("workers")?;
    args.finish()?;
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|error| Failure::Usage(format!("--seconds {seconds}: {error}")))?;

    let run = Arc::new(Run::new(depth, size, duration));
    let group = PollerGroup::new(pollers, Balance::RoundRobin)?;
    let dialer = Dialer::new()
        .connect_timeout(PATIENCE)
        .pollers(group.clone())
        .dispatch(mode.dispatch(workers))
        // All calls in flight may have to wait for room in the socket.
        .output_limit(depth.saturating_mul(size + 4).max(8 << 20), OnFull::Error)
        .input_limits(1 << 20, (size + 4).max(1 << 20));
    let handles = (0..connections)
        .map(|_| {
            dialer.dial_with(
                place.address.clone(),
                Caller {
                    run: Arc::clone(&run),
                },
            )
        })
        .collect::<io::Result<Vec<_>>>()?;
    run.go(&handles)?;

    let patience = Instant::now() + duration + PATIENCE;
    let mut lost = 0;
    for handle in &handles {
        let left = patience.saturating_duration_since(Instant::now());
        if handle.done().wait_timeout(left).is_none() {
            eprintln!("{handle:?}: answers are missing");
            handle.abort();
            lost += 1;
        }
    }
    group.close();
    Ok(run.report(lost))
}

/// What all connections share.
struct Run {
    depth: usize,
    duration: Duration,
    size: usize,
    /// The bytes behind the sequence number, the same in every frame.
    filler: Bytes,
    start: OnceLock<Instant>,
    total: Mutex<Total>,
    /// All answers, those that came too late to be measured included.
    answers: AtomicU64,
    wrong_bytes: AtomicU64,
    errors: AtomicU64,
}

struct Total {
    calls: u64,
    latency: Histogram<u64>,
}

impl Run {
    fn new(depth: usize, size: usize, duration: Duration) -> Self {
        Self {
            depth,
            duration,
            size,
            filler: pattern::bytes(size - size.min(8)),
            start: OnceLock::new(),
            total: Mutex::new(Total {
                calls: 0,
                // Nanoseconds, up to a minute.
                latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("a valid range"),
            }),
            answers: AtomicU64::new(0),
            wrong_bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// Starts the clock and sends the first calls.
    fn go(&self, handles: &[ConnectionHandle]) -> io::Result<()> {
        self.start.get_or_init(Instant::now);
        for handle in handles {
            let mut first = LinkBuffer::new();
            for sequence in 0..self.depth as u64 {
                self.encode(&mut first, sequence)?;
            }
            handle.send(first)?;
        }
        Ok(())
    }

    fn encode(&self, out: &mut dyn Writer, sequence: u64) -> io::Result<()> {
        let mark = sequence.to_be_bytes();
        out.write_slice(&(self.size as u32).to_be_bytes())?;
        out.write_slice(&mark[..self.size.min(8)])?;
        out.write_bytes(self.filler.clone())
    }

    /// How many bytes of an answer are not what was sent.
    fn check(&self, answer: &[u8], sequence: u64) -> u64 {
        let (mark, filler) = answer.split_at(answer.len().min(8));
        if *mark == sequence.to_be_bytes()[..mark.len()] && filler == self.filler {
            return 0;
        }
        let expected = sequence.to_be_bytes().into_iter().take(mark.len());
        let expected = expected.chain(self.filler.iter().copied());
        let wrong = answer.iter().zip(expected).filter(|(a, b)| *a != b).count();
        (wrong + self.size.abs_diff(answer.len())) as u64
    }

    fn started(&self) -> Instant {
        // Nothing can be answered before `go` sent it.
        *self.start.get().expect("the clock runs")
    }

    fn count(&self, latencies: &mut Vec<u64>) {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        for nanos in latencies.drain(..) {
            total.calls += 1;
            total.latency.saturating_record(nanos);
        }
    }

    fn report(&self, lost: u64) -> ExitCode {
        let total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| micros(total.latency.value_at_quantile(quantile));
        let answers = self.answers.load(Ordering::Relaxed);
        let wrong = self.wrong_bytes.load(Ordering::Relaxed);
        let errors = self.errors.load(Ordering::Relaxed) + lost;
        println!(
            "calls={} calls_per_s={:.0} p50_us={:.1} p99_us={:.1} p999_us={:.1} max_us={:.1} \
             bytes={} answers={answers} wrong_bytes={wrong} errors={errors}",
            total.calls,
            total.calls as f64 / self.duration.as_secs_f64().max(f64::MIN_POSITIVE),
            at(0.5),
            at(0.99),
            at(0.999),
            micros(total.latency.max()),
            total.calls * 2 * (self.size as u64 + 4),
        );
        if wrong + errors == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Drives one connection: an answer is checked, then the next call is made.
struct Caller {
    run: Arc<Run>,
}

/// The calls of one connection.
struct Flow {
    /// When the calls behind the first ones were made, oldest first.
    sent: VecDeque<Instant>,
    next_call: u64,
    next_answer: u64,
    /// Nanoseconds that the answers at hand took, if they came within the time.
    latencies: Vec<u64>,
}

impl Handler for Caller {
    type State = Flow;

    fn on_connect(&self, _: &mut Connection) -> io::Result<Flow> {
        Ok(Flow {
            sent: VecDeque::with_capacity(self.run.depth),
            next_call: self.run.depth as u64,
            next_answer: 0,
            latencies: Vec::new(),
        })
    }

    fn on_request(&self, conn: &mut Connection, flow: &mut Flow) -> io::Result<()> {
        let run = &*self.run;
        let now = Instant::now();
        let in_time = now.duration_since(run.started()) < run.duration;
        while let Some(head) = conn.try_peek(4)? {
            let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if len != run.size {
                run.wrong_bytes.fetch_add(1, Ordering::Relaxed);
                let text = format!("an answer of {len} bytes to a call of {}", run.size);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let Some(answer) = conn.try_next(4 + len)? else {
                break;
            };
            let wrong = run.check(&answer[4..], flow.next_answer);
            run.wrong_bytes.fetch_add(wrong, Ordering::Relaxed);
            let called = if flow.next_answer < run.depth as u64 {
                run.started()
            } else {
                flow.sent
                    .pop_front()
                    .expect("one instant for each call in flight")
            };
            flow.next_answer += 1;
            if in_time {
                flow.latencies
                    .push(now.duration_since(called).as_nanos() as u64);
                run.encode(conn, flow.next_call)?;
                flow.sent.push_back(now);
                flow.next_call += 1;
            }
        }
        run.count(&mut flow.latencies);
        if flow.next_answer == flow.next_call {
            conn.handle().close();
            return Ok(());
        }
        // Never waits: answers must be read while calls wait for room.
        conn.try_flush()?;
        Ok(())
    }

    fn on_disconnect(&self, flow: Flow, reason: CloseReason) {
        self.run
            .answers
            .fetch_add(flow.next_answer, Ordering::Relaxed);
        if flow.next_answer != flow.next_call {
            eprintln!(
                "{} calls were not answered: {reason}",
                flow.next_call - flow.next_answer
            );
            self.run.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
