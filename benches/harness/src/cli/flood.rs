//! `flood`: what thousands of hostile peers do to a server, and to everybody else on it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;
use serde_json::json;

use super::Failure;
use super::load::seconds;
use crate::compare::procfs;
use crate::compare::server::{Server, Settings};
use crate::frame::{self, Kind};
use crate::load::{self, Outcome, Plan};
use crate::{net, sys, work};

const HELP: &str = "\
flood NAME [options]

Starts the peer NAME as a child process and measures the latency of others on it: calm, while
hostile peers come, and while they stay.

  --mute N        peers that ask without end and never read (0)
  --begun N       peers that send one byte of a request and stop (0)
  --asleep N      peers each of whose requests sleeps 10 ms in the handler (0)
  --size BYTES    payload of a request of mute peers (16384)
  --others N      connections whose latency is measured, one request at a time (10)
  --seconds S     how long each phase is recorded (5)
  --json          print one JSON object

`list` names the peers.
";

/// Room in bytes for answers that a peer does not read.
const ROOM: usize = 16 << 10;
/// Between two attempts of a mute peer to send more.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hostile {
    Mute,
    Begun,
    Asleep,
}

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let mut name = None;
    let (mut groups, mut size) = (Vec::new(), 16 << 10);
    let (mut others, mut measure, mut as_json) = (10, Duration::from_secs(5), false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("mute") => groups.push((Hostile::Mute, args.value()?.parse()?)),
            Long("begun") => groups.push((Hostile::Begun, args.value()?.parse()?)),
            Long("asleep") => groups.push((Hostile::Asleep, args.value()?.parse()?)),
            Long("size") => size = args.value()?.parse()?,
            Long("others") => others = args.value()?.parse()?,
            Long("seconds") => measure = seconds(&mut args)?,
            Long("json") => as_json = true,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let name: String = name.ok_or("flood needs the name of a peer; `list` names them")?;
    sys::raise_fd_limit()?;
    let settings = Settings {
        program: std::env::current_exe()?,
        congestion: None,
        steps: work::calibrate(),
        core: None,
        backend: None,
        under: Vec::new(),
    };
    let server = Server::start(&name, &settings)?;
    let mut plan = Plan::new(server.addr());
    plan.connections = others;
    plan.measure = measure;

    let calm = phase(&server, &plan)?;
    let flood = Flood::start(server.addr(), &groups, size);
    let coming = phase(&server, &plan)?;
    flood.wait_connected()?;
    let staying = phase(&server, &plan)?;
    let (there, sent) = (flood.connected(), flood.sent());
    flood.stop();

    let phases = [("calm", &calm), ("coming", &coming), ("staying", &staying)];
    if as_json {
        let mut all = serde_json::Map::new();
        for (phase, seen) in phases {
            all.insert(phase.into(), seen.as_json());
        }
        println!(
            "{}",
            json!({ "peer": name, "hostile": there, "sent": sent, "phases": all })
        );
        return Ok(());
    }
    println!(
        "{name}: {there} hostile peers, which sent {} MiB",
        sent >> 20
    );
    for (phase, seen) in phases {
        println!("{phase:8} {seen}");
    }
    Ok(())
}

/// What was seen of the server and of the others in one phase.
struct Seen {
    load: Outcome,
    threads: u64,
    memory: u64,
    cpu: f64,
}

fn phase(server: &Server, plan: &Plan) -> io::Result<Seen> {
    let (before, begin) = (sys::cpu_time(server.pid())?, Instant::now());
    let load = load::run(plan, &mut |_| ())?;
    let cpu = (sys::cpu_time(server.pid())? - before).as_secs_f64();
    Ok(Seen {
        load,
        threads: procfs::threads(server.pid())?,
        memory: procfs::anonymous_bytes(server.pid())?,
        cpu: cpu / begin.elapsed().as_secs_f64(),
    })
}

impl Seen {
    fn micros(&self, quantile: f64) -> f64 {
        self.load.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    fn as_json(&self) -> serde_json::Value {
        json!({
            "requests": self.load.requests,
            "p50_us": self.micros(0.5),
            "p99_us": self.micros(0.99),
            "max_us": self.load.latency.max() as f64 / 1e3,
            "threads": self.threads,
            "anonymous_bytes": self.memory,
            "cores": self.cpu,
        })
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:8} answers, p50 {:7.1} us, p99 {:8.1} us, most {:9.1} us; {:3} threads, {:5} MiB, {:.2} cores",
            self.load.requests,
            self.micros(0.5),
            self.micros(0.99),
            self.load.latency.max() as f64 / 1e3,
            self.threads,
            self.memory >> 20,
            self.cpu,
        )
    }
}

/// The hostile peers, all on one thread.
struct Flood {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<io::Result<()>>,
    wanted: usize,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    connected: AtomicUsize,
    sent: AtomicUsize,
}

impl Flood {
    fn start(addr: SocketAddr, groups: &[(Hostile, usize)], size: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let wanted = groups.iter().map(|(_, count)| count).sum();
        let groups = groups.to_vec();
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || flood(&own, addr, &groups, size));
        Self {
            shared,
            thread,
            wanted,
        }
    }

    fn connected(&self) -> usize {
        self.shared.connected.load(Ordering::Relaxed)
    }

    fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    fn wait_connected(&self) -> io::Result<()> {
        let limit = Instant::now() + Duration::from_secs(120);
        while self.connected() < self.wanted {
            if self.thread.is_finished() || Instant::now() > limit {
                return Err(io::Error::other(format!(
                    "only {} of {} hostile peers could connect",
                    self.connected(),
                    self.wanted
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn stop(self) {
        self.shared.over.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("the flood ended early: {error}"),
            Err(_) => eprintln!("the flood panicked"),
        }
    }
}

struct HostilePeer {
    kind: Hostile,
    stream: TcpStream,
    /// Bytes of the present request that were sent.
    phase: usize,
    gone: bool,
}

fn flood(
    shared: &Shared,
    addr: SocketAddr,
    groups: &[(Hostile, usize)],
    size: usize,
) -> io::Result<()> {
    let request = frame::build(Kind::Echo, size);
    let nap = frame::build(Kind::Sleep, 64);
    let mut peers = Vec::new();
    for &(kind, count) in groups {
        for _ in 0..count {
            if shared.over.load(Ordering::Relaxed) {
                return Ok(());
            }
            let room = (kind == Hostile::Mute).then_some(ROOM);
            let stream = net::connect(addr, None, room)?;
            net::reset_on_close(&stream)?;
            let mut peer = HostilePeer {
                kind,
                stream,
                phase: 0,
                gone: false,
            };
            peer.act(&request, &nap, shared);
            peers.push(peer);
            shared.connected.fetch_add(1, Ordering::Relaxed);
        }
    }
    while !shared.over.load(Ordering::Relaxed) {
        for peer in &mut peers {
            peer.act(&request, &nap, shared);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

impl HostilePeer {
    /// Sends what the socket takes; a peer that the server has cut off stays away.
    fn act(&mut self, request: &[u8], nap: &[u8], shared: &Shared) {
        if self.gone {
            return;
        }
        let frame = match self.kind {
            Hostile::Mute => request,
            Hostile::Begun if self.phase == 0 => &request[..1],
            Hostile::Begun => return,
            Hostile::Asleep => {
                // One request at a time: the answer of the last one is read first.
                let mut answer = [0; 256];
                match self.stream.read(&mut answer) {
                    Ok(0) => self.gone = true,
                    Ok(_) => self.phase = 0,
                    Err(_) => {}
                }
                if self.phase > 0 {
                    return;
                }
                nap
            }
        };
        loop {
            match self.stream.write(&frame[self.phase % frame.len()..]) {
                Ok(n) => {
                    self.phase += n;
                    shared.sent.fetch_add(n, Ordering::Relaxed);
                    if self.kind != Hostile::Mute {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}
