//! What silent connections cost: memory each, before and after one request, and CPU.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::procfs;
use super::server::{Server, Settings};
use crate::frame::{self, Kind};
use crate::results::metric;
use crate::{net, sys};

/// Payload bytes of the one request.
const SIZE: usize = 1 << 10;
/// How long the CPU of the quiet server is watched.
const QUIET: Duration = Duration::from_secs(1);

/// Starts `peer` anew, opens `connections` to it, and returns the figures.
pub(crate) fn measure(
    peer: &str,
    settings: &Settings,
    connections: usize,
) -> io::Result<BTreeMap<String, f64>> {
    let server = Server::start(peer, settings)?;
    // What only the first connection and the first request need is not a cost of each.
    let mut first = connect(&server, settings)?;
    request(&mut first)?;
    let base = steady_memory(&server)?;
    let descriptors = procfs::descriptors(server.pid())?;
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        streams.push(connect(&server, settings)?);
    }
    wait_for(&server, descriptors, connections)?;
    let connected = steady_memory(&server)?;
    for stream in &mut streams {
        request(stream)?;
    }
    let used = steady_memory(&server)?;
    let before = sys::cpu_time(server.pid())?;
    std::thread::sleep(QUIET);
    let idle = sys::cpu_time(server.pid())? - before;
    let each = |bytes: u64| (bytes as f64 - base as f64) / connections as f64;
    Ok(BTreeMap::from([
        (metric::BYTES_CONNECTED.to_owned(), each(connected)),
        (metric::BYTES_USED.to_owned(), each(used)),
        (
            metric::IDLE_CPU.to_owned(),
            idle.as_secs_f64() / QUIET.as_secs_f64(),
        ),
        (
            metric::THREADS.to_owned(),
            procfs::threads(server.pid())? as f64,
        ),
    ]))
}

fn connect(server: &Server, settings: &Settings) -> io::Result<TcpStream> {
    let stream = net::connect(server.addr(), settings.congestion.as_deref(), None)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    net::reset_on_close(&stream)?;
    Ok(stream)
}

fn request(stream: &mut TcpStream) -> io::Result<()> {
    let frame = frame::build(Kind::Echo, SIZE);
    stream.write_all(&frame)?;
    stream.read_exact(&mut vec![0; frame.len()])
}

/// Waits until the server has accepted all: until it has a descriptor more for each.
fn wait_for(server: &Server, before: usize, connections: usize) -> io::Result<()> {
    let limit = Instant::now() + Duration::from_secs(20);
    while procfs::descriptors(server.pid())? < before + connections {
        if Instant::now() > limit {
            let text = format!("the server has not accepted {connections} connections in 20 s");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The server's memory once it has stopped changing.
fn steady_memory(server: &Server) -> io::Result<u64> {
    let mut last = procfs::anonymous_bytes(server.pid())?;
    let mut same = 0;
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(10));
        let now = procfs::anonymous_bytes(server.pid())?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same == 5 {
            break;
        }
    }
    Ok(last)
}
