//! A TCP proxy: every client is joined to a backend, without a thread of its own.
//!
//! ```text
//! cargo run --release --example proxy -- --listen 127.0.0.1:7001 --backend 127.0.0.1:6379
//! ```

mod support;

use netpoll::{
    Address, CloseReason, Connection, Dialer, EventLoop, Handler, Listener, Outcome, PollerGroup,
    Pool, Pooled, Relay, RelayBuilder, RelayEnd,
};
use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
how their relays ended, how often a backend refused, bytes in each direction, backend connections
dialled, used again and kept.";

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
        pool: Pool::new(dialer).max_idle(kept),
        backends,
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
    backends: Vec<Address>,
    next: AtomicUsize,
    relay: RelayBuilder,
    stats: Arc<Stats>,
}

impl Handler for Proxy {
    type State = ();

    fn on_connect(&self, client: &mut Connection) -> io::Result<()> {
        self.stats.clients.fetch_add(1, Ordering::Relaxed);
        let backend = self.backend()?;
        let relay = self.relay.clone().start(client.hijack()?, backend)?;
        let stats = Arc::clone(&self.stats);
        relay.on_end(move |outcome| stats.ended(&outcome));
        Ok(())
    }

    fn on_request(&self, _: &mut Connection, (): &mut ()) -> io::Result<()> {
        // The relay has taken the connection.
        Ok(())
    }

    fn on_disconnect(&self, (): (), _: CloseReason) {
        self.stats.gone.fetch_add(1, Ordering::Relaxed);
    }
}

impl Proxy {
    /// A connection to the next backend in turn that answers.
    fn backend(&self) -> io::Result<Pooled> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = None;
        for step in 0..self.backends.len() {
            match self
                .pool
                .get(&self.backends[(first + step) % self.backends.len()])
            {
                Ok(backend) => return Ok(backend),
                Err(error) => {
                    self.stats.refused.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{error}");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

#[derive(Default)]
struct Stats {
    clients: AtomicU64,
    gone: AtomicU64,
    refused: AtomicU64,
    finished: AtomicU64,
    released: AtomicU64,
    idle: AtomicU64,
    drained: AtomicU64,
    failed: AtomicU64,
    to_backend: AtomicU64,
    to_client: AtomicU64,
}

impl Stats {
    fn ended(&self, outcome: &Outcome) {
        let count = match outcome.end {
            RelayEnd::Finished => &self.finished,
            RelayEnd::Released => &self.released,
            RelayEnd::IdleTimeout => &self.idle,
            RelayEnd::Drained => &self.drained,
            _ => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.to_backend.fetch_add(outcome.a_to_b, Ordering::Relaxed);
        self.to_client.fetch_add(outcome.b_to_a, Ordering::Relaxed);
    }

    fn print(&self, pool: &Pool) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let pool = pool.stats();
        println!(
            "clients={} gone={} finished={} released={} idle={} drained={} failed={} refused={} \
             to_backends={} to_clients={} dialled={} reused={} kept={}",
            of(&self.clients),
            of(&self.gone),
            of(&self.finished),
            of(&self.released),
            of(&self.idle),
            of(&self.drained),
            of(&self.failed),
            of(&self.refused),
            of(&self.to_backend),
            of(&self.to_client),
            pool.dialled,
            pool.reused,
            pool.idle,
        );
    }
}
