//! A TCP proxy: every client is joined to a backend, without a thread of its own.
//!
//! ```text
//! $ cargo run --release --example proxy -- --listen 127.0.0.1:7001 --backend 127.0.0.1:6379
//! listening 127.0.0.1:7001
//! ^C
//! clients=2 gone=2 finished=1 released=0 idle=0 drained=1 failed=0 unserved=0 refused=0 ...
//! ```
//!
//! The relay does the work: it passes bytes, ends, resets and back-pressure on, delivers what a backend
//! said before it closed, and ends in order when the proxy shuts down. This program finds a backend for
//! each client and counts: every client that is gone is in one of the counts from `finished` to `unserved`.

mod support;

use netpoll::{
    Address, CloseReason, Connection, Dialer, EventLoop, Handler, Listener, PollerGroup, Pool,
    Pooled, Relay, RelayBuilder, RelayEnd, RelayOutcome,
};
use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{
    args::{self, Args, Failure, Place},
    serve,
};

const USAGE: &str = "\
usage: proxy --listen ADDR --backend ADDR[,ADDR..] [options]

  --listen ADDR             HOST:PORT or unix:/path; port 0 takes a free one
  --backend ADDR[,ADDR..]   where to connect; the next one is tried when one refuses
  --pool N                  keep up to N idle backend connections for the next client: the end
                            of a client is then not told to its backend (0 unless given). Only
                            for backends that keep nothing between requests
  --pollers N               threads that wait for sockets, 1 unless given
  --threads N               the most threads in all, those that wait for a connect included
  --connect-timeout-ms T    how long one backend may take to answer, 1000 unless given
  --idle-ms T               end a relay on which nothing moved for so long; 0 never
  --grace-ms T              how long relays may take to end after SIGTERM, 5000 unless given

One line of statistics is printed at the end and on SIGUSR1: clients that came and that are gone,
how their relays ended, how many found no backend, how often a backend refused, bytes in each
direction, backend connections dialled, used again and kept.";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = args.need("listen")?;
    let backends: String = args.need("backend")?;
    let kept: usize = args.or("pool", 0)?;
    let pollers = args.count("pollers", 1)?;
    let threads: Option<usize> = args.take("threads")?;
    let connect = args
        .millis("connect-timeout-ms")?
        .unwrap_or(Duration::from_secs(1));
    let idle = args.millis("idle-ms")?;
    let grace = args.millis("grace-ms")?.unwrap_or(Duration::from_secs(5));
    args.finish()?;
    let backends = backends
        .split(',')
        .map(|text| {
            text.parse()
                .map_err(|e| Failure::Usage(format!("--backend {text}: {e}")))
        })
        .collect::<Result<Vec<Address>, _>>()?;

    let mut relay = Relay::builder().keep_b(kept > 0);
    if let Some(idle) = idle {
        relay = relay.idle_timeout(idle);
    }
    let mut group = PollerGroup::builder().pollers(pollers);
    if let Some(threads) = threads {
        group = group.max_threads(threads);
    }
    let group = group.build()?;
    let dialer = Dialer::new()
        .connect_timeout(connect)
        .pollers(group.clone());
    let stats = Arc::new(Stats::default());
    let proxy = Proxy {
        pool: Pool::builder(dialer).max_idle(kept).build()?,
        backends: backends.into_iter().map(Backend::new).collect(),
        next: AtomicUsize::new(0),
        relay,
        stats: Arc::clone(&stats),
    };
    let pool = proxy.pool.clone();
    let server = EventLoop::builder().pollers(group).build(proxy)?;
    let listener = Listener::bind(place.address.clone())?;
    let place = place.told(&listener.local_addr()?);
    let (shown, shown_pool) = (Arc::clone(&stats), pool.clone());
    let cut = serve::serve(&server, listener, &place, grace, move || {
        shown.print(&shown_pool)
    })?;
    stats.print(&pool);
    Ok(if cut == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(serve::CUT)
    })
}

struct Proxy {
    pool: Pool,
    backends: Vec<Backend>,
    next: AtomicUsize,
    relay: RelayBuilder,
    stats: Arc<Stats>,
}

impl Handler for Proxy {
    type State = ();

    fn on_connect(&self, client: &mut Connection) -> io::Result<()> {
        add(&self.stats.clients, 1);
        let backend = self.backend().inspect_err(|_| {
            add(&self.stats.unserved, 1);
            add(&self.stats.gone, 1);
        })?;
        let joined = client
            .hijack()
            .and_then(|client| self.relay.clone().start(client, backend));
        match joined {
            Ok(relay) => {
                let stats = Arc::clone(&self.stats);
                relay.on_end(move |outcome| stats.ended(&outcome));
            }
            // The client has gone meanwhile.
            Err(error) => {
                add(&self.stats.failed, 1);
                eprintln!("client {}: {error}", client.id());
                client.handle().close();
            }
        }
        Ok(())
    }

    fn on_request(&self, _: &mut Connection, (): &mut ()) -> io::Result<()> {
        // The relay has taken the connection.
        Ok(())
    }

    fn on_disconnect(&self, (): (), _: CloseReason) {
        add(&self.stats.gone, 1);
    }
}

impl Proxy {
    /// A connection to the next backend in turn that answers.
    fn backend(&self) -> io::Result<Pooled> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = None;
        for step in 0..self.backends.len() {
            let backend = &self.backends[(first + step) % self.backends.len()];
            match self.pool.get(&backend.address) {
                Ok(connection) => {
                    backend.answers();
                    return Ok(connection);
                }
                Err(error) => {
                    add(&self.stats.refused, 1);
                    backend.refuses(&error);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Where clients are joined to.
struct Backend {
    address: Address,
    /// It refused the last time. Told once, and not for every client.
    down: AtomicBool,
}

impl Backend {
    fn new(address: Address) -> Self {
        let down = AtomicBool::new(false);
        Self { address, down }
    }

    fn answers(&self) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            eprintln!("backend {} answers again", self.address);
        }
    }

    fn refuses(&self, error: &io::Error) {
        if !self.down.swap(true, Ordering::Relaxed) {
            eprintln!("backend {}: {error}", self.address);
        }
    }
}

/// Adds to a figure.
fn add(figure: &AtomicU64, n: u64) {
    figure.fetch_add(n, Ordering::Relaxed);
}

#[derive(Default)]
struct Stats {
    clients: AtomicU64,
    gone: AtomicU64,
    finished: AtomicU64,
    released: AtomicU64,
    idle: AtomicU64,
    drained: AtomicU64,
    failed: AtomicU64,
    unserved: AtomicU64,
    refused: AtomicU64,
    to_backend: AtomicU64,
    to_client: AtomicU64,
}

impl Stats {
    fn ended(&self, outcome: &RelayOutcome) {
        let count = match outcome.end {
            RelayEnd::Finished => &self.finished,
            RelayEnd::Released => &self.released,
            RelayEnd::IdleTimeout => &self.idle,
            RelayEnd::Drained => &self.drained,
            _ => &self.failed,
        };
        add(count, 1);
        add(&self.to_backend, outcome.a_to_b);
        add(&self.to_client, outcome.b_to_a);
    }

    fn print(&self, pool: &Pool) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let pool = pool.stats();
        println!(
            "clients={} gone={} finished={} released={} idle={} drained={} failed={} unserved={} \
             refused={} to_backends={} to_clients={} dialled={} reused={} kept={}",
            of(&self.clients),
            of(&self.gone),
            of(&self.finished),
            of(&self.released),
            of(&self.idle),
            of(&self.drained),
            of(&self.failed),
            of(&self.unserved),
            of(&self.refused),
            of(&self.to_backend),
            of(&self.to_client),
            pool.dialled,
            pool.reused,
            pool.idle,
        );
    }
}
