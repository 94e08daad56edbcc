//! Answers frames of a 4-byte big-endian length and that many bytes with the same frame, in
//! order, without copying them.
//!
//! ```text
//! cargo run --release --example rpc_server -- --listen 127.0.0.1:7001
//! cargo run --release --example rpc_client -- --connect 127.0.0.1:7001 --depth 16
//! ```

mod support;

use netpoll::{Connection, EventLoop, Listener, handler_fn};
use std::{io, process::ExitCode, time::Duration};
use support::{
    args::{self, Args, Failure, Mode, Place},
    serve,
};

const USAGE: &str = "\
usage: rpc_server --listen ADDR [--pollers N] [--dispatch adaptive|workers|inline]

  --listen ADDR    HOST:PORT or unix:/path; port 0 takes a free one
  --pollers N      threads that wait for sockets, 1 unless given
  --dispatch D     where handlers run: adaptive (default), workers or inline
  --workers N      the most threads of --dispatch workers
  --grace-ms T     how long connections may take to end after SIGTERM, 5000 unless given

SIGTERM drains: what was received is answered, then it exits 0 (3 if the time was too short).";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = args.need("listen")?;
    let pollers = args.count("pollers", 1)?;
    let mode = args.or("dispatch", Mode::default())?;
    let workers = args.take("workers")?;
    let grace = args.millis("grace-ms")?.unwrap_or(Duration::from_secs(5));
    args.finish()?;

    let server = EventLoop::builder()
        .pollers(pollers)
        .dispatch(mode.dispatch(workers))
        .build(handler_fn(|conn| {
            let answered = answer(conn);
            // Answers go out also if the peer has cut the frame behind them. A peer that does not
            // read them is not read either, and no thread waits for it.
            conn.flush()?;
            answered
        }))?;
    let listener = Listener::bind(place.address.clone())?;
    let place = place.told(&listener.local_addr()?);
    let cut = serve::serve(&server, listener, &place, grace, || ())?;
    Ok(if cut == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(serve::CUT)
    })
}

/// Moves every whole frame from the input to the output.
fn answer(conn: &mut Connection) -> io::Result<()> {
    while let Some(head) = conn.try_peek(4)? {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        // Not run again before the whole frame is here.
        let Some(frame) = conn.try_slice(4 + len)? else {
            break;
        };
        conn.append(frame)?;
    }
    Ok(())
}
