//! Serves until a signal comes, then drains.

use netpoll::{Error, EventLoop, Listener};
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};
use std::{io, process, sync::mpsc, thread, time::Duration};

/// Exit code when a deadline cut connections that still had something to do.
pub(crate) const CUT: u8 = 3;

enum News {
    /// The listener is done: on purpose, or because it failed.
    Listener(io::Result<()>),
    /// The loop has shut down; so many connections were cut.
    Drained(io::Result<usize>),
}

/// Prints `listening PLACE` and serves until SIGTERM or SIGINT, then drains for at most `grace`.
/// Returns how many connections were cut at its end. A second signal ends the process at once.
///
/// `on_user_signal` is called for each SIGUSR1.
pub(crate) fn serve(
    event_loop: &EventLoop,
    listener: Listener,
    place: &str,
    grace: Duration,
    on_user_signal: impl Fn() + Send + 'static,
) -> io::Result<usize> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    let (tell, told) = mpsc::channel();

    let (server, done) = (event_loop.clone(), tell.clone());
    spawn("listener", move || {
        let _ = done.send(News::Listener(server.serve(listener)));
    })?;
    let server = event_loop.clone();
    spawn("signals", move || {
        let mut tell = Some(tell);
        for signal in signals.forever() {
            if signal == SIGUSR1 {
                on_user_signal();
                continue;
            }
            let Some(tell) = tell.take() else {
                process::exit(CUT.into())
            };
            let server = server.clone();
            let drain = spawn("drain", move || {
                let _ = tell.send(News::Drained(server.shutdown_forced(grace)));
            });
            if drain.is_err() {
                process::exit(CUT.into());
            }
        }
    })?;
    println!("listening {place}");

    loop {
        match told.recv() {
            Ok(News::Listener(Ok(()))) => {}
            Ok(News::Listener(Err(error))) => match Error::from_io(&error) {
                // The drain gave up on handlers, and says of how many.
                Some(Error::ShutdownIncomplete { .. }) => {}
                _ => return Err(error),
            },
            Ok(News::Drained(Ok(cut))) => return Ok(cut),
            Ok(News::Drained(Err(error))) => match Error::from_io(&error) {
                // Handlers that are still busy end with the process.
                Some(Error::ShutdownIncomplete { remaining }) => return Ok(remaining),
                _ => return Err(error),
            },
            Err(_) => return Err(io::Error::other("the signal thread ended")),
        }
    }
}

fn spawn(name: &str, code: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(code)
        .map(drop)
}
