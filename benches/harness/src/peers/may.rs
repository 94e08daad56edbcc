//! may: a stackful coroutine per connection, written as if it were a thread.

use std::io;
use std::net::TcpListener as StdListener;

use may::net::TcpListener;

use super::blocking;
use crate::frame::Kind;
use crate::{sys, work};

/// Serves `listener` for ever, with as many workers as there are cores to run on.
pub(crate) fn serve(listener: StdListener) -> io::Result<()> {
    let workers = std::thread::available_parallelism()?.get();
    may::config().set_workers(workers);
    listener.set_nonblocking(true)?;
    let listener: TcpListener = sys::adopt(listener);
    let accepting = may::go!(move || {
        loop {
            if let Ok((stream, _)) = listener.accept() {
                may::go!(move || blocking::echo(stream, work_on));
            }
        }
    });
    accepting
        .join()
        .map_err(|_| io::Error::other("the accepting coroutine has ended"))
}

fn work_on(kind: Kind) {
    match kind {
        Kind::Sleep => may::coroutine::sleep(work::NAP),
        Kind::Rest => may::coroutine::sleep(work::REST),
        Kind::Compute => work::compute(),
        Kind::Echo | Kind::Sink => {}
    }
}
