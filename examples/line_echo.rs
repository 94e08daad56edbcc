//! Sends back every line it gets, and says why when it does not.
//!
//! ```text
//! cargo run --release --example line_echo -- --listen 127.0.0.1:7002 --max 80
//! printf 'one\r\ntwo\n' | nc -N 127.0.0.1 7002
//! ```

mod support;

use netpoll::{Delimited, Encoder, EventLoop, FrameError, Listener, framed};
use std::{process::ExitCode, time::Duration};
use support::{
    args::{self, Args, Failure, Place},
    serve,
};

const USAGE: &str = "\
usage: line_echo [--listen 127.0.0.1:7002 | --listen unix:/path] [--max 1024] [--grace-ms 5000]

  --listen ADDR    where to listen, 127.0.0.1:7002 unless given; port 0 takes a free one
  --max N          the most bytes of a line without its end, 1024 unless given
  --grace-ms T     how long connections may take to end after SIGTERM, 5000 unless given

Lines end with a line feed, with or without a carriage return before it, and come back with a line
feed. A line that is too long is answered with one that begins with \"error: \", and the connection is
closed.";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = match args.take("listen")? {
        Some(place) => place,
        None => "127.0.0.1:7002".parse().expect("this is an address"),
    };
    let max = args.or("max", 1024)?;
    let grace = args.millis("grace-ms")?.unwrap_or(Duration::from_secs(5));
    args.finish()?;

    let lines = Delimited::lines(max);
    let answers = lines.clone();
    let handler =
        framed(lines, move |conn, line| answers.encode(conn, line)).on_error(|conn, error| {
            if FrameError::from_io(error).is_some() {
                // If even this cannot be written the connection is gone, and so are we.
                let _ = conn.write_str(&format!("error: {error}\n"));
            }
        });
    let server = EventLoop::new(handler)?;
    let listener = Listener::bind(place.address.clone())?;
    let place = place.told(&listener.local_addr()?);
    let cut = serve::serve(&server, listener, &place, grace, || ())?;
    Ok(if cut == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(serve::CUT)
    })
}
