//! Everything at once against one server, for a while: thousands of connections that are held, peers
//! that churn, reset, leave in the middle and stall, handlers that panic, shortages of descriptors.
//! Every byte is compared, every callback is counted, and at the end everything has to be as before.
//!
//! The server is a process of its own, so that its descriptors, threads and memory are its alone.

mod acts;
mod calls;
mod child;
mod episodes;
mod figures;
mod floors;
mod held;
mod judge;
mod ledger;
mod peer;
mod report;
mod sample;
mod server;
mod tally;
mod wire;

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use netpoll::{Address, PollerGroup};
use parking_lot::Mutex;

use self::calls::Clients;
use self::child::{Resources, Server};
use self::episodes::{Episodes, Stage};
use self::floors::Floors;
use self::held::Held;
use self::judge::{Check, Observed};
use self::peer::Route;
use self::sample::{Load, Sample};
use self::tally::Tally;
use self::wire::Dice;
use crate::sys;

pub(crate) use server::{Where, run as serve};

/// Descriptors that are kept free for everything but held connections.
const SPARE: u64 = 1000;
/// How long everything may take to be as before once all peers are gone: threads that are not needed
/// stay for ten seconds, and a closed connection may linger.
const SETTLE: Duration = Duration::from_secs(45);
/// The source address of the peers that wait through shortages.
const WAITING_SOURCE: u8 = 199;

/// How to soak.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long the load lasts.
    pub(crate) time: Duration,
    /// Connections to hold; as many as descriptors allow at most.
    pub(crate) connections: usize,
    /// Requests a second on held connections.
    pub(crate) rate: u32,
    /// Threads whose peers do what the seed says.
    pub(crate) peers: u8,
    /// Threads that call through the library's clients.
    pub(crate) callers: u8,
    pub(crate) seed: u64,
    pub(crate) place: Where,
    /// Pollers of the server.
    pub(crate) pollers: usize,
    /// Where the report goes.
    pub(crate) out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            connections: 10_000,
            rate: 4000,
            peers: 12,
            callers: 3,
            seed: 1,
            place: Where::default(),
            pollers: 2,
            out: "target/soak".into(),
        }
    }
}

impl Options {
    /// The command that soaks like this.
    fn command(&self) -> String {
        format!(
            "netpoll-bench soak --seconds {} --connections {} --rate {} --peers {} --callers {} \
             --seed {} --dispatch {} --pollers {}",
            self.time.as_secs_f64(),
            self.connections,
            self.rate,
            self.peers,
            self.callers,
            self.seed,
            self.place.name(),
            self.pollers,
        )
    }
}

/// Soaks, writes the report, and returns what was judged in words and whether everything held.
///
/// # Errors
///
/// When the run cannot be started or the report not be written. What goes wrong in between is in
/// the report.
pub(crate) fn run(options: &Options) -> io::Result<(String, bool)> {
    let most = sys::raise_fd_limit()?.saturating_sub(SPARE) as usize;
    let mut options = options.clone();
    options.connections = options.connections.min(most);
    let mut server = Server::start(&std::env::current_exe()?, options.place, options.pollers)?;
    PollerGroup::global()?;
    let before = settled(&server)?;
    let load_before = own_descriptors()?;
    let tally = Tally::default();
    let heap_before = server.look()?.heap;
    let mut seen = Observed {
        heap_before,
        held: options.connections as u64,
        before,
        ..Observed::default()
    };
    let samples = soak(&options, &mut server, &tally, &mut seen);
    let samples = samples.unwrap_or_else(|(samples, error)| {
        seen.trouble.push(error.to_string());
        samples
    });
    seen.load = Load::of(&tally);
    seen.notes = tally.notes();
    seen.rss = Floors::of(&samples, |one| one.resources.rss_kib as f64);
    seen.heap = Floors::of(&samples, |one| one.figures.heap as f64 / 1024.0);
    if let Err(error) = wind_up(server, load_before, &mut seen) {
        seen.trouble.push(error.to_string());
    }
    let checks = judge::judge(&seen);
    report::write(&options, &seen, &checks, &samples)?;
    let holds = checks.iter().all(|check: &Check| check.holds);
    Ok((report::summary(&checks), holds))
}

/// The load, from the first connection to the last.
fn soak(
    options: &Options,
    server: &mut Server,
    tally: &Tally,
    seen: &mut Observed,
) -> Result<Vec<Sample>, (Vec<Sample>, io::Error)> {
    let addr = server.addr();
    let dice = |number: u64| Dice::new(options.seed, number);
    let (connections, rate) = (options.connections, options.rate);
    let held = Held::open(connections, rate, addr, tally, dice(1000))
        .map_err(|error| (Vec::new(), error))?;
    let clients = Clients::new(Address::from(addr));
    let episodes = Episodes::default();
    // Nobody but the threads below asks the server while they run.
    let server = Mutex::new(server);
    let start = Instant::now();
    let stage = Stage {
        server: &server,
        route: Route::new(addr, WAITING_SOURCE),
        tally,
        start,
        end: start + options.time,
    };
    let mut samples = Vec::new();
    let result = thread::scope(|scope| {
        let (clients, episodes) = (&clients, &episodes);
        scope.spawn(move || held.run());
        for number in 0..options.peers.min(WAITING_SOURCE - 1) {
            let dice = dice(number.into());
            scope.spawn(move || acts::run(&Route::new(addr, number + 1), tally, dice));
        }
        for number in 0..options.callers {
            let dice = dice(2000 + u64::from(number));
            scope.spawn(move || clients.run(tally, dice));
        }
        let befalling = scope.spawn(move || episodes.run(stage, dice(3000)));
        let result = record(options, stage, episodes, &mut samples);
        tally.stop();
        let befallen = befalling
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread of the episodes has panicked")));
        result.and(befallen)
    });
    clients.close();
    seen.time = start.elapsed().min(options.time);
    seen.stops = episodes.stops.load(Relaxed);
    seen.shortages = episodes.shortages.into_inner();
    match result {
        Ok(()) => Ok(samples),
        Err(error) => Err((samples, error)),
    }
}

/// Takes samples until the time is over.
fn record(
    options: &Options,
    stage: Stage<'_>,
    episodes: &Episodes,
    samples: &mut Vec<Sample>,
) -> io::Result<()> {
    let interval = (options.time / 60).clamp(Duration::from_secs(1), Duration::from_secs(5));
    let mut due = stage.start;
    loop {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (figures, resources) = {
            let mut server = stage.server.lock();
            (server.look()?, server.resources()?)
        };
        samples.push(Sample {
            at: stage.start.elapsed(),
            figures,
            load: Load::of(stage.tally),
            resources,
            episodes: episodes.begun.load(Relaxed),
        });
        if Instant::now() >= stage.end {
            return Ok(());
        }
        due = (due + interval).min(stage.end);
    }
}

/// Waits until everything is as before, looks for the last time, and ends the server.
fn wind_up(mut server: Server, load_before: u64, seen: &mut Observed) -> io::Result<()> {
    let limit = Instant::now() + SETTLE;
    loop {
        seen.figures = server.look()?;
        seen.after = server.resources()?;
        seen.load_descriptors = (load_before, own_descriptors()?);
        let checks = judge::judge(seen);
        if checks.iter().all(|check| check.holds) || Instant::now() > limit {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    server.end()
}

/// What the server has when nothing is happening yet.
fn settled(server: &Server) -> io::Result<Resources> {
    let mut last = server.resources()?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(50));
        let now = server.resources()?;
        if (now.descriptors, now.threads) == (last.descriptors, last.threads) {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Open descriptors of this process; the one that looks is among them.
fn own_descriptors() -> io::Result<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64)
}
