//! A server as a child process: started, stopped while others run, watched, ended.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::procfs;
use crate::sys::{self, Signal};

/// How servers are started.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// This program.
    pub(crate) program: PathBuf,
    /// Congestion control of every socket.
    pub(crate) congestion: Option<String>,
    /// Steps of one computation.
    pub(crate) steps: u64,
    /// The one core it runs on; any when `None`.
    pub(crate) core: Option<usize>,
    /// Of a proxy: the server behind it.
    pub(crate) backend: Option<SocketAddr>,
    /// A tool and its arguments to run the server under.
    pub(crate) under: Vec<OsString>,
}

/// A running server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    /// The process that serves: the child, or a child of the tool it runs under.
    pid: u32,
    addr: SocketAddr,
}

impl Server {
    /// Starts the peer or proxy called `peer` and waits until it listens.
    pub(crate) fn start(peer: &str, settings: &Settings) -> io::Result<Self> {
        let mut line: Vec<OsString> = settings.under.clone();
        line.push(settings.program.clone().into());
        line.extend(["serve", peer, "--listen", "127.0.0.1:0", "--with-parent"].map(Into::into));
        line.extend(["--steps".into(), settings.steps.to_string().into()]);
        if let Some(name) = &settings.congestion {
            line.extend(["--congestion".into(), name.into()]);
        }
        if let Some(backend) = settings.backend {
            line.extend(["--backend".into(), backend.to_string().into()]);
        }
        if let Some(core) = settings.core {
            line.extend(["--core".into(), core.to_string().into()]);
        }
        let mut child = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if settings.under.is_empty() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .spawn()?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        let Some((addr, pid)) = parse(&first) else {
            // Ending it is all that is left to do; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::other(format!(
                "{peer} did not listen: {:?}",
                first.trim()
            )));
        };
        Ok(Self { child, pid, addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Keeps it from running until [`Self::resume`].
    pub(crate) fn pause(&self) -> io::Result<()> {
        sys::signal(self.pid, Signal::Stop)
    }

    /// Lets it run.
    pub(crate) fn resume(&self) -> io::Result<()> {
        sys::signal(self.pid, Signal::Continue)
    }

    /// Waits until it has closed its connections: until it has no more than `sockets` open.
    ///
    /// False when it still has more after 3 s.
    pub(crate) fn settle(&self, sockets: usize) -> io::Result<bool> {
        let limit = Instant::now() + Duration::from_secs(3);
        while procfs::sockets(self.pid)? > sockets {
            if Instant::now() > limit {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Asks it to end and waits for the tool it runs under to have reported.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        sys::signal(self.pid, Signal::Terminate)?;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > limit {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the server did not end",
                ));
            }
            // A tool may hold the signal back until the server's wait ends: a connection ends it.
            let _ = TcpStream::connect_timeout(&self.addr, Duration::from_millis(100));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if self.pid != self.child.id() {
                // Under a tool: the server's end ends the tool.
                let _ = sys::signal(self.pid, Signal::Terminate);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The address and the process in `listening ADDR pid PID`.
fn parse(line: &str) -> Option<(SocketAddr, u32)> {
    let (addr, pid) = line
        .trim()
        .strip_prefix("listening ")?
        .split_once(" pid ")?;
    Some((addr.parse().ok()?, pid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_address_and_process() {
        let expected = (([127, 0, 0, 1], 4000).into(), 17);
        assert_eq!(parse("listening 127.0.0.1:4000 pid 17\n"), Some(expected));
        assert_eq!(parse("no peer\n"), None);
    }
}
