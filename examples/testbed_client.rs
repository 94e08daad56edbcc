//! Drives the test bed's server through a pool of connections and checks every reply.
//!
//! Prints one line of JSON: `ok` counts calls that ended as their opcode promises, `errors` the
//! others by kind of error, `wrong_bytes` the bytes of replies that are not what they must be,
//! `max_open` the most connections at once, `elapsed` the seconds it took. Exits 1 if there were
//! wrong bytes.

mod support;

use netpoll::{Address, Bytes, Dialer, LinkBuffer, Pool, Pooled};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    process::ExitCode,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use support::{
    args::{self, Args, Failure, Place},
    crc::Crc32,
    pattern,
};

const USAGE: &str = "\
usage: testbed_client --connect ADDR [options]

  --connect ADDR           tcp:HOST:PORT or unix:PATH
  --pool N                 the most connections at once, as many as --concurrency unless given
  --concurrency N          threads that make calls, 1 unless given
  --count N                calls in all, 1 unless given
  --op X                   E (default), S, P, C, A, B, Q, L, K, U or T, see testbed_server
  --size N                 bytes of the body, or of the reply for C and B; 64 unless given
  --ms N                   sleep of S, 10 unless given
  --pieces N               pieces of B, 4 unless given
  --threads N              threads of U, 4 unless given
  --target ADDR            where L sends its frame, --connect unless given
  --timeout-ms T           for each wait: for a connection of the pool, to read, to write;
                           10000 unless given
  --connect-timeout-ms T   5000 unless given";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = args.need("connect")?;
    let concurrency = args.count("concurrency", 1)?;
    let connections = args.count("pool", concurrency)?;
    let count = args.or("count", 1)?;
    let request = Request {
        op: args.or("op", Op::Echo)?,
        size: args.or("size", 64)?,
        millis: args.or("ms", 10)?,
        pieces: args.or("pieces", 4)?,
        threads: args.or("threads", 4)?,
        target: match args.take::<Place>("target")? {
            Some(target) => target.address,
            None => place.address.clone(),
        },
    };
    let timeout = args
        .millis("timeout-ms")?
        .unwrap_or(Duration::from_secs(10));
    let connect_timeout = args
        .millis("connect-timeout-ms")?
        .unwrap_or(Duration::from_secs(5));
    args.finish()?;

    let dialer = Dialer::new()
        .connect_timeout(connect_timeout)
        .read_timeout(timeout)
        .write_timeout(timeout)
        .input_limits(
            1 << 20,
            (request.size as usize)
                .saturating_add(1 << 16)
                .max(64 << 20),
        );
    let pool = Pool::builder(dialer)
        .max_total(connections)
        .max_idle(connections)
        .wait(timeout)
        .build()?;
    let tickets = AtomicU64::new(0);
    let start = Instant::now();
    let tallies = thread::scope(|scope| {
        let caller = || {
            let mut tally = Tally::default();
            while tickets.fetch_add(1, Ordering::Relaxed) < count {
                tally.count(request.call(&pool, &place.address));
            }
            tally
        };
        let callers = (0..concurrency)
            .map(|_| thread::Builder::new().spawn_scoped(scope, caller))
            .collect::<io::Result<Vec<_>>>()?;
        let tallies = callers
            .into_iter()
            .map(|caller| caller.join().expect("no call panics"));
        io::Result::Ok(tallies.collect::<Vec<_>>())
    })?;
    let elapsed = start.elapsed();
    let total = tallies.into_iter().fold(Tally::default(), Tally::add);
    println!("{}", total.json(pool.stats().peak, elapsed));
    Ok(if total.wrong_bytes == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What became of the calls.
#[derive(Default)]
struct Tally {
    ok: u64,
    errors: BTreeMap<String, u64>,
    wrong_bytes: u64,
}

impl Tally {
    /// Counts one call: the wrong bytes of its reply, or why there was none.
    fn count(&mut self, result: io::Result<u64>) {
        match result {
            Ok(0) => self.ok += 1,
            Ok(wrong) => self.wrong_bytes += wrong,
            Err(error) => {
                *self
                    .errors
                    .entry(format!("{:?}", error.kind()))
                    .or_default() += 1
            }
        }
    }

    fn add(mut self, other: Self) -> Self {
        self.ok += other.ok;
        self.wrong_bytes += other.wrong_bytes;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self
    }

    fn json(&self, max_open: usize, elapsed: Duration) -> String {
        let mut errors = String::new();
        for (kind, count) in &self.errors {
            let comma = if errors.is_empty() { "" } else { "," };
            let _ = write!(errors, "{comma}\"{kind}\":{count}");
        }
        format!(
            "{{\"ok\":{},\"errors\":{{{errors}}},\"wrong_bytes\":{},\"max_open\":{max_open},\
             \"elapsed\":{:.6}}}",
            self.ok,
            self.wrong_bytes,
            elapsed.as_secs_f64(),
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Echo,
    Sleep,
    Panic,
    Close,
    Abort,
    Pattern,
    Quiet,
    Link,
    Keep,
    Threads,
    Figures,
}

impl Op {
    const ALL: [(u8, Self); 11] = [
        (b'E', Self::Echo),
        (b'S', Self::Sleep),
        (b'P', Self::Panic),
        (b'C', Self::Close),
        (b'A', Self::Abort),
        (b'B', Self::Pattern),
        (b'Q', Self::Quiet),
        (b'L', Self::Link),
        (b'K', Self::Keep),
        (b'U', Self::Threads),
        (b'T', Self::Figures),
    ];

    fn code(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(_, op)| *op == self)
            .map_or(0, |(code, _)| *code)
    }
}

impl FromStr for Op {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .iter()
            .find(|(code, _)| text.as_bytes() == [*code]);
        found
            .map(|(_, op)| *op)
            .ok_or("one of E, S, P, C, A, B, Q, L, K, U and T")
    }
}

/// What each call asks for.
struct Request {
    op: Op,
    size: u32,
    millis: u32,
    pieces: u32,
    threads: u32,
    target: Address,
}

impl Request {
    /// One call on a connection of the pool; returns how many bytes of the reply are wrong.
    fn call(&self, pool: &Pool, address: &Address) -> io::Result<u64> {
        let mut conn = pool.get(address)?;
        match self.converse(&mut conn) {
            Ok(0) => {
                if matches!(self.op, Op::Panic | Op::Close | Op::Abort) {
                    conn.discard();
                }
                Ok(0)
            }
            other => {
                // Its reply may come later: nobody else must get that.
                conn.discard();
                other
            }
        }
    }

    fn converse(&self, conn: &mut Pooled) -> io::Result<u64> {
        conn.append(self.frame())?;
        conn.flush()?;
        match self.op {
            Op::Quiet => Ok(0),
            Op::Panic | Op::Abort => ended(conn),
            Op::Echo | Op::Sleep | Op::Link | Op::Pattern => pattern_reply(conn, self.size),
            Op::Close => Ok(pattern_reply(conn, self.size)? + ended(conn)?),
            Op::Keep => {
                let sum = Crc32::new()
                    .add(&pattern::bytes(self.size as usize))
                    .value();
                let reply = reply(conn)?;
                Ok(differences(&reply, &sum.to_be_bytes()))
            }
            Op::Threads => self.replies_of_threads(conn),
            Op::Figures => {
                let reply = reply(conn)?;
                Ok(u64::from(!reply.starts_with(b"{\"connections\":")))
            }
        }
    }

    /// The request with its length.
    fn frame(&self) -> LinkBuffer {
        let mut body = LinkBuffer::new();
        body.write_u8(self.op.code());
        match self.op {
            Op::Sleep => body.write_slice(&self.millis.to_be_bytes()),
            Op::Close => body.write_slice(&self.size.to_be_bytes()),
            Op::Pattern => {
                body.write_slice(&self.size.to_be_bytes());
                body.write_slice(&self.pieces.to_be_bytes());
            }
            Op::Threads => body.write_slice(&self.threads.to_be_bytes()),
            Op::Link => {
                body.write_str(&self.target.to_string());
                body.write_u8(0);
                body.write_slice(&self.size.saturating_add(1).to_be_bytes());
                body.write_u8(Op::Echo.code());
            }
            _ => {}
        }
        if matches!(
            self.op,
            Op::Echo | Op::Sleep | Op::Link | Op::Keep | Op::Threads | Op::Quiet
        ) {
            body.write_bytes(pattern::bytes(self.size as usize));
        }
        body.flush();
        let mut frame = LinkBuffer::new();
        frame.write_slice(&(body.len() as u32).to_be_bytes());
        frame.append(body);
        frame
    }

    /// One reply of each thread, in any order.
    fn replies_of_threads(&self, conn: &mut Pooled) -> io::Result<u64> {
        let mut missing: Vec<bool> = vec![true; self.threads as usize];
        let mut wrong = 0;
        for _ in 0..self.threads {
            let reply = reply(conn)?;
            let Some((tag, body)) = reply.split_first_chunk() else {
                wrong += 4;
                continue;
            };
            match missing.get_mut(u32::from_be_bytes(*tag) as usize) {
                Some(missing) if *missing => *missing = false,
                _ => wrong += 4,
            }
            wrong += pattern_errors(body, self.size);
        }
        Ok(wrong)
    }
}

/// The body of the next reply.
fn reply(conn: &mut Pooled) -> io::Result<Bytes> {
    let head = conn.next(4)?;
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    conn.next_bytes(len as usize)
}

fn pattern_reply(conn: &mut Pooled, size: u32) -> io::Result<u64> {
    reply(conn).map(|reply| pattern_errors(&reply, size))
}

/// How many bytes of `body` are not the first `size` bytes of the pattern.
fn pattern_errors(body: &[u8], size: u32) -> u64 {
    pattern::mismatches(body, 0) + (body.len() as u64).abs_diff(size.into())
}

fn differences(body: &[u8], expected: &[u8]) -> u64 {
    let wrong = body.iter().zip(expected).filter(|(a, b)| a != b).count();
    (wrong + body.len().abs_diff(expected.len())) as u64
}

/// The connection must end now; bytes that still come are wrong.
fn ended(conn: &mut Pooled) -> io::Result<u64> {
    match conn.next(1) {
        Ok(_) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
        Err(_) => Ok(0),
    }
}
