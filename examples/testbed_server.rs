//! A server that does on request what real servers do by accident: it waits, panics, closes,
//! resets, answers in pieces, late, or from other threads. Any program can drive it.
//!
//! A frame is a u32 length, then one opcode byte and a body; the length counts both, numbers are
//! big-endian. A reply is a u32 length and a body.
//!
//! | opcode | body of the request | what happens |
//! |---|---|---|
//! | `E` | any | the body comes back |
//! | `S` | u32 milliseconds, any | the handler sleeps, then the rest comes back |
//! | `P` | | the handler panics |
//! | `C` | u32 n | n bytes of the pattern come back, then the connection is closed |
//! | `A` | | the connection is aborted |
//! | `B` | u32 n, u32 pieces | n bytes of the pattern come back, sent in so many pieces |
//! | `Q` | any | nothing |
//! | `L` | address, zero byte, frame | the frame goes to that address, the reply comes back |
//! | `K` | any | a view of the body is kept for 5 s, then its CRC-32 comes back as a u32 |
//! | `U` | u32 n, any | n threads send one reply each: its u32 number from 0 on and the body |
//! | `T` | | figures of the server come back as JSON |
//!
//! Byte `i` of the pattern is `i * 31 + i / 256`, modulo 256. Anything else closes the
//! connection.

mod support;
#[path = "support/testbed/mod.rs"]
mod testbed;

use netpoll::{Balance, Dialer, EventLoop, EventLoopBuilder, Listener, OnFull, PollerGroup};
use std::{io, path::PathBuf, process::ExitCode, str::FromStr, sync::Arc, time::Duration};
use support::{
    args::{self, Args, Failure, Mode, Place},
    serve,
};
use testbed::{Book, Testbed, Waiting};

const USAGE: &str = "\
usage: testbed_server --listen tcp:HOST:PORT|unix:PATH [options]

  --listen ADDR          port 0 takes a free one
  --pollers N            threads that wait for sockets, 1 unless given
  --workers N            the most threads of --dispatch workers or adaptive
  --dispatch D           where handlers run: adaptive (default), workers or inline
  --read-high B          bytes read ahead of the handler, 1 MiB unless given
  --max-frame B          the longest request, 64 MiB unless given
  --write-high B         bytes that may be queued for a peer, 8 MiB unless given
  --on-full P            what happens beyond that: block (default), error or close
  --idle-ms T            close connections idle for so long
  --read-timeout-ms T    close connections that leave a frame unfinished for so long
  --write-timeout-ms T   close connections that take no output for so long
  --max-conns N          the most connections at once
  --grace-ms T           time to end after SIGTERM, 5000 unless given
  --stats-file F         where SIGUSR1, and the end, write the figures of opcode T

Prints `listening ADDR`. Exits 0 after SIGTERM, 3 if the time to end cut something.";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let options = Options::take(&mut args)?;
    args.finish()?;

    let book = Arc::new(Book::default());
    let group = options.pollers()?;
    let dialer = options.dialer(&group);
    let handler = Testbed::new(Arc::clone(&book), dialer, options.waiting())?;
    let server = options.builder(&group).build(handler)?;
    book.watch(&server);

    let listener = Listener::bind(options.listen.address.clone())?;
    let place = options.listen.told(&listener.local_addr()?);
    let (figures, file) = (Arc::clone(&book), options.stats_file.clone());
    let cut = serve::serve(&server, listener, &place, options.grace, move || {
        file.iter().for_each(|path| figures.write(path));
    });
    options.stats_file.iter().for_each(|path| book.write(path));
    Ok(if cut? == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(serve::CUT)
    })
}

struct Options {
    listen: Place,
    pollers: usize,
    workers: Option<usize>,
    mode: Mode,
    read_high: usize,
    max_frame: usize,
    write_high: usize,
    on_full: OnFull,
    idle: Option<Duration>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    max_conns: Option<usize>,
    grace: Duration,
    stats_file: Option<PathBuf>,
}

impl Options {
    fn take(args: &mut Args) -> Result<Self, Failure> {
        Ok(Self {
            listen: args.need("listen")?,
            pollers: args.count("pollers", 1)?,
            workers: match args.count("workers", usize::MAX)? {
                usize::MAX => None,
                workers => Some(workers),
            },
            mode: args.or("dispatch", Mode::default())?,
            read_high: args.count("read-high", 1 << 20)?,
            max_frame: args.count("max-frame", 64 << 20)?,
            write_high: args.count("write-high", 8 << 20)?,
            on_full: args.or("on-full", Policy(OnFull::Block))?.0,
            idle: args.millis("idle-ms")?,
            read_timeout: args.millis("read-timeout-ms")?,
            write_timeout: args.millis("write-timeout-ms")?,
            max_conns: match args.count("max-conns", usize::MAX)? {
                usize::MAX => None,
                connections => Some(connections),
            },
            grace: args
                .take("grace-ms")?
                .map_or(Duration::from_secs(5), Duration::from_millis),
            stats_file: args.take("stats-file")?,
        })
    }

    fn pollers(&self) -> io::Result<PollerGroup> {
        let group = PollerGroup::builder()
            .pollers(self.pollers)
            .balance(Balance::RoundRobin);
        match self.workers {
            Some(workers) => group.max_threads(workers).build(),
            None => group.build(),
        }
    }

    /// Opens the connections of opcode `L`.
    fn dialer(&self, group: &PollerGroup) -> Dialer {
        let patience = self.read_timeout.unwrap_or(Duration::from_secs(10));
        Dialer::new()
            .pollers(group.clone())
            .connect_timeout(patience)
            .read_timeout(patience)
            .write_timeout(patience)
    }

    fn waiting(&self) -> Waiting {
        let allowed = self.mode.may_wait();
        let blocks = self.on_full == OnFull::Block;
        Waiting {
            allowed,
            for_input: allowed && self.read_timeout.is_some(),
            for_output: blocks || self.write_timeout.is_some(),
        }
    }

    fn builder(&self, group: &PollerGroup) -> EventLoopBuilder {
        // The length counts the opcode; four bytes of length come on top.
        let most = self.max_frame.saturating_add(4);
        let mut builder = EventLoop::builder()
            .pollers(group.clone())
            .dispatch(self.mode.dispatch(self.workers))
            .input_limits(self.read_high.min(most), most)
            .output_limit(self.write_high, self.on_full);
        if let Some(time) = self.idle {
            builder = builder.idle_timeout(time);
        }
        if let Some(time) = self.read_timeout {
            builder = builder.read_timeout(time);
        }
        if let Some(time) = self.write_timeout {
            builder = builder.write_timeout(time);
        }
        if let Some(connections) = self.max_conns {
            builder = builder.max_connections(connections);
        }
        builder
    }
}

/// `--on-full`
struct Policy(OnFull);

impl FromStr for Policy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "error" => Ok(Self(OnFull::Error)),
            "block" => Ok(Self(OnFull::Block)),
            "close" => Ok(Self(OnFull::Close)),
            _ => Err("error, block or close"),
        }
    }
}
