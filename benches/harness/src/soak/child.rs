//! The server's process as its parent sees it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::server::Where;
use crate::compare::procfs;
use crate::sys;

/// How long the server may take to answer a line, or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A running server; dropping it kills it.
pub(super) struct Server {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
    addr: SocketAddr,
}

/// What the kernel says about the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) descriptors: u64,
    pub(super) threads: u64,
    /// Private memory that is backed by real memory.
    pub(super) rss_kib: u64,
    pub(super) cpu: Duration,
}

impl Server {
    /// Starts `program` as the server and waits until it listens.
    pub(super) fn start(program: &Path, place: Where, pollers: usize) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(["soak-server", "--with-parent", "--dispatch", place.name()])
            .args(["--pollers", &pollers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(orders), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the server's pipes are missing"));
        };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut server = Self {
            child,
            orders,
            lines,
            addr: ([0, 0, 0, 0], 0).into(),
        };
        let first = server.line()?;
        server.addr = first
            .strip_prefix("listening ")
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("the server did not listen: {first:?}")))?;
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says about itself.
    pub(super) fn look(&mut self) -> io::Result<Figures> {
        let line = self.ask("look")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Limits the descriptors it may have; what is open stays open. `u64::MAX` takes the limit away.
    pub(super) fn limit(&mut self, descriptors: u64) -> io::Result<()> {
        expect_ok(&self.ask(&format!("limit {descriptors}"))?)
    }

    /// What the kernel says about it.
    pub(super) fn resources(&self) -> io::Result<Resources> {
        let pid = self.pid();
        Ok(Resources {
            descriptors: procfs::descriptors(pid)? as u64,
            threads: procfs::threads(pid)?,
            rss_kib: procfs::anonymous_bytes(pid)? / 1024,
            cpu: sys::cpu_time(pid)?,
        })
    }

    /// Shuts it down and waits until its process has ended well.
    pub(super) fn end(mut self) -> io::Result<()> {
        expect_ok(&self.ask("end")?)?;
        let limit = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(io::Error::other(format!("it ended with {status}"))),
                None if Instant::now() > limit => {
                    let text = "its process goes on after the shutdown";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn ask(&mut self, order: &str) -> io::Result<String> {
        writeln!(self.orders, "{order}")?;
        self.line()
    }

    fn line(&mut self) -> io::Result<String> {
        self.lines.recv_timeout(LIMIT).map_err(|error| {
            let state = match self.child.try_wait() {
                Ok(Some(status)) => format!("the server has ended: {status}"),
                _ => format!("the server's process says nothing: {error}"),
            };
            io::Error::other(state)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn expect_ok(line: &str) -> io::Result<()> {
    match line {
        "ok" => Ok(()),
        other => Err(io::Error::other(format!("the server says {other:?}"))),
    }
}
