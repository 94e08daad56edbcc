//! `pool`: more callers than connections, over netpoll's pool and over r2d2.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use lexopt::Arg::Long;
use lexopt::ValueExt;
use netpoll::{Address, Dialer, PollerGroup, Pool};

use super::Failure;
use super::load::seconds;
use crate::compare::server::{Server, Settings};
use crate::stats::median;
use crate::{sys, work};

const HELP: &str = "\
pool [options]

Callers that share a few connections to one server: each takes one, makes a call, holds it for a while,
gives it back and begins again. netpoll's pool and r2d2's take turns. Printed for each hold time are
medians over the rounds: loans a second, processor time of the callers' process for each loan, the share
of callers that got none in time, and waits in multiples of the fair one, which is how long a loan takes,
times callers for each connection, less the own.

  --callers N       threads (32)
  --connections N   (4)
  --wait S          how long a caller waits for a connection (0.1)
  --seconds S       how long each pool is measured in a round (1)
  --rounds N        (5)
  --only NAME       netpoll or r2d2
";

/// How long a loan is held after its call; `None` without a call.
const HOLDS: [Option<Duration>; 4] = [
    None,
    Some(Duration::ZERO),
    Some(Duration::from_micros(100)),
    Some(Duration::from_millis(1)),
];
/// An empty frame, sent back as it is.
const FRAME: [u8; 8] = [0, 0, 0, 4, 0, 0, 0, 0];

struct Plan {
    addr: SocketAddr,
    callers: usize,
    connections: usize,
    wait: Duration,
    measure: Duration,
    /// `None`: not even for a call.
    hold: Option<Duration>,
}

/// A pool with an empty call.
trait Loans: Sync {
    /// One loan: `taken` is called when there is a connection, and the rest happens with it. `false`: none
    /// came in time.
    fn lend(&self, taken: &mut dyn FnMut(), hold: Option<Duration>) -> io::Result<bool>;
}

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let (mut callers, mut connections, mut rounds) = (32, 4, 5);
    let (mut wait, mut measure) = (Duration::from_millis(100), Duration::from_secs(1));
    let mut only: Option<String> = None;
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("callers") => callers = args.value()?.parse()?,
            Long("connections") => connections = args.value()?.parse()?,
            Long("rounds") => rounds = args.value()?.parse()?,
            Long("wait") => wait = seconds(&mut args)?,
            Long("seconds") => measure = seconds(&mut args)?,
            Long("only") => only = Some(args.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if connections == 0 || callers <= connections || rounds == 0 {
        return Err("there must be rounds, connections, and more callers than these".into());
    }
    let server = Server::start(
        "netpoll",
        &Settings {
            program: std::env::current_exe()?,
            congestion: None,
            steps: work::calibrate(),
            core: None,
            backend: None,
            under: Vec::new(),
        },
    )?;
    PollerGroup::global()?;
    println!("{callers} callers, {connections} connections, {wait:?} to wait, {rounds} rounds");
    for hold in HOLDS {
        let plan = Plan {
            addr: server.addr(),
            callers,
            connections,
            wait,
            measure,
            hold,
        };
        let mut seen: Vec<(&str, Vec<Seen>)> = pools(&plan)
            .into_iter()
            .map(|(name, _)| (name, Vec::new()))
            .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
            .collect();
        for _ in 0..rounds {
            for (name, rounds) in &mut seen {
                let (_, pool) = pools(&plan)
                    .into_iter()
                    .find(|(its, _)| its == name)
                    .ok_or("no such pool")?;
                rounds.push(measure_one(&plan, &*pool()?)?);
            }
        }
        for (name, rounds) in &seen {
            let of = |figure: fn(&Seen) -> f64| {
                median(rounds.iter().map(figure)).map_or(f64::NAN, |median| median.value)
            };
            let hold = hold.map_or_else(|| "no call".into(), |hold| format!("{hold:?}"));
            println!(
                "hold {hold:7} {name:8} {:9.0} loans/s, {:7.1} us CPU a loan, {:6.2} % failed, \
                 waits in fair ones: p50 {:5.2}, p99 {:6.2}, longest {:7.2}",
                of(|seen| seen.rate),
                of(|seen| seen.cpu),
                of(|seen| seen.failed * 100.0),
                of(|seen| seen.median),
                of(|seen| seen.late),
                of(|seen| seen.longest),
            );
        }
    }
    Ok(())
}

type Make<'a> = Box<dyn Fn() -> io::Result<Box<dyn Loans>> + 'a>;

fn pools(plan: &Plan) -> Vec<(&'static str, Make<'_>)> {
    vec![
        ("netpoll", Box::new(|| Ours::new(plan))),
        #[cfg(feature = "peers")]
        ("r2d2", Box::new(|| theirs::Theirs::new(plan))),
    ]
}

/// Of one pool in one round. Waits are in multiples of the fair one.
struct Seen {
    rate: f64,
    cpu: f64,
    failed: f64,
    median: f64,
    late: f64,
    longest: f64,
}

fn measure_one(plan: &Plan, pool: &dyn Loans) -> io::Result<Seen> {
    // All connections are made before.
    for _ in 0..plan.connections {
        pool.lend(&mut || {}, Some(Duration::ZERO))?;
    }
    let start = Barrier::new(plan.callers + 1);
    let (results, cpu, took) = thread::scope(|scope| {
        let callers: Vec<_> = (0..plan.callers)
            .map(|_| scope.spawn(|| call(plan, pool, &start)))
            .collect();
        start.wait();
        let (before, begin) = (sys::own_cpu_time(), Instant::now());
        let results: Vec<_> = callers
            .into_iter()
            .map(|caller| {
                let panicked = |_| Err(io::Error::other("a caller has panicked"));
                caller.join().unwrap_or_else(panicked)
            })
            .collect();
        (results, (before, sys::own_cpu_time()), begin.elapsed())
    });
    let (mut waits, mut held, mut failed) = (Vec::new(), Duration::ZERO, 0);
    for result in results {
        let (its, time, misses) = result?;
        waits.extend(its);
        held += time;
        failed += misses;
    }
    let loans = waits.len().max(1) as f64;
    waits.sort_unstable();
    let others = plan.callers as f64 / plan.connections as f64 - 1.0;
    let fair = held.as_secs_f64() / loans * others;
    let at = |share: f64| {
        let wait = waits.get(((waits.len() as f64 * share) as usize).min(waits.len() - 1));
        wait.map_or(f64::NAN, |wait| wait.as_secs_f64() / fair)
    };
    Ok(Seen {
        rate: loans / took.as_secs_f64(),
        cpu: (cpu.1? - cpu.0?).as_secs_f64() * 1e6 / loans,
        failed: failed as f64 / (loans + failed as f64),
        median: at(0.5),
        late: at(0.99),
        longest: at(1.0),
    })
}

/// The waits of one caller, how long it had connections, and how often it got none.
fn call(
    plan: &Plan,
    pool: &dyn Loans,
    start: &Barrier,
) -> io::Result<(Vec<Duration>, Duration, usize)> {
    let (mut waits, mut held, mut failed) = (Vec::with_capacity(1 << 16), Duration::ZERO, 0);
    start.wait();
    let end = Instant::now() + plan.measure;
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok((waits, held, failed));
        }
        let mut taken = None;
        if pool.lend(&mut || taken = Some(Instant::now()), plan.hold)? {
            let taken = taken.unwrap_or(begin);
            waits.push(taken - begin);
            held += taken.elapsed();
        } else {
            failed += 1;
        }
    }
}

/// What is done with a connection.
fn hold_for(hold: Option<Duration>, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if let Some(time) = hold {
        call()?;
        if !time.is_zero() {
            thread::sleep(time);
        }
    }
    Ok(())
}

struct Ours {
    pool: Pool,
    address: Address,
}

impl Ours {
    #[expect(clippy::new_ret_no_self, reason = "one of several")]
    fn new(plan: &Plan) -> io::Result<Box<dyn Loans>> {
        let pool = Pool::builder(Dialer::new())
            .max_total(plan.connections)
            .max_idle(plan.connections)
            .wait(plan.wait)
            .build()?;
        Ok(Box::new(Self {
            pool,
            address: plan.addr.into(),
        }))
    }
}

impl Loans for Ours {
    fn lend(&self, taken: &mut dyn FnMut(), hold: Option<Duration>) -> io::Result<bool> {
        let Ok(mut conn) = self.pool.get(&self.address) else {
            return Ok(false);
        };
        taken();
        hold_for(hold, || {
            conn.write_slice(&FRAME)?;
            conn.flush()?;
            conn.next(FRAME.len()).map(drop)
        })?;
        Ok(true)
    }
}

#[cfg(feature = "peers")]
mod theirs {
    use r2d2::{ManageConnection, Pool};

    use super::{Duration, FRAME, Loans, Plan, Read, SocketAddr, TcpStream, Write, hold_for, io};

    pub(super) struct Theirs(Pool<Manager>);

    #[derive(Debug)]
    struct Manager(SocketAddr);

    impl Theirs {
        #[expect(clippy::new_ret_no_self, reason = "one of several")]
        pub(super) fn new(plan: &Plan) -> io::Result<Box<dyn Loans>> {
            let pool = Pool::builder()
                .max_size(plan.connections as u32)
                .connection_timeout(plan.wait)
                .build(Manager(plan.addr))
                .map_err(io::Error::other)?;
            Ok(Box::new(Self(pool)))
        }
    }

    impl Loans for Theirs {
        fn lend(&self, taken: &mut dyn FnMut(), hold: Option<Duration>) -> io::Result<bool> {
            let Ok(mut conn) = self.0.get() else {
                return Ok(false);
            };
            taken();
            hold_for(hold, || {
                conn.write_all(&FRAME)?;
                conn.read_exact(&mut [0; FRAME.len()])
            })?;
            Ok(true)
        }
    }

    impl ManageConnection for Manager {
        type Connection = TcpStream;
        type Error = io::Error;

        fn connect(&self) -> io::Result<TcpStream> {
            let stream = TcpStream::connect(self.0)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }

        /// The look that netpoll takes as well.
        fn is_valid(&self, stream: &mut TcpStream) -> io::Result<()> {
            let socket = socket2::SockRef::from(&*stream);
            let mut byte = [std::mem::MaybeUninit::uninit()];
            match socket.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }

        fn has_broken(&self, _: &mut TcpStream) -> bool {
            false
        }
    }
}
