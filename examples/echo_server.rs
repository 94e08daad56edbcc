//! Sends back every byte it gets.
//!
//! ```text
//! cargo run --release --example echo_server -- --listen 127.0.0.1:7000
//! echo hello | nc -N 127.0.0.1 7000
//! ```

mod support;

use netpoll::{EventLoop, Listener, handler_fn};
use std::{process::ExitCode, time::Duration};
use support::{
    args::{self, Args, Failure, Place},
    serve,
};

const USAGE: &str = "\
usage: echo_server [--listen 127.0.0.1:7000 | --listen unix:/path]

  --listen ADDR    where to listen, 127.0.0.1:7000 unless given; port 0 takes a free one
  --grace-ms T     how long connections may take to end after SIGTERM, 5000 unless given";

fn main() -> ExitCode {
    args::run(USAGE, example)
}

fn example(mut args: Args) -> Result<ExitCode, Failure> {
    let place: Place = match args.take("listen")? {
        Some(place) => place,
        None => "127.0.0.1:7000".parse().expect("this is an address"),
    };
    let grace = args.millis("grace-ms")?.unwrap_or(Duration::from_secs(5));
    args.finish()?;

    let echo = EventLoop::new(handler_fn(|conn| {
        // Moves what has arrived from the input to the output without copying it. The library does
        // not read from a peer that does not read, and no thread waits for it.
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }))?;
    let listener = Listener::bind(place.address.clone())?;
    let place = place.told(&listener.local_addr()?);
    let cut = serve::serve(&echo, listener, &place, grace, || ())?;
    Ok(if cut == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(serve::CUT)
    })
}
