//! mio: one thread, edge-triggered, registered once for reading and writing.

use std::io;
use std::net::TcpListener;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::echo::{Echo, Scratch, Waits};

/// Bytes of the one receive buffer all connections share.
const SCRATCH: usize = 256 << 10;
const LISTENER: Token = Token(usize::MAX);

/// Serves `listener` for ever.
pub(crate) fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections = Slab::new();
    let mut scratch = Scratch::carrying(SCRATCH);
    loop {
        if let Err(error) = poll.poll(&mut events, None) {
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections)?;
                continue;
            }
            let key = event.token().0;
            let echo: &mut Echo<TcpStream> = &mut connections[key];
            if event.is_read_closed() || event.is_error() {
                echo.peer_ended();
            }
            if echo.progress(&mut scratch) == Waits::Closed {
                connections.remove(key);
            }
        }
    }
}

fn accept(
    listener: &mio::net::TcpListener,
    poll: &Poll,
    all: &mut Slab<Echo<TcpStream>>,
) -> io::Result<()> {
    while let Ok((mut stream, _)) = listener.accept() {
        let slot = all.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(slot.key()), interest)?;
        slot.insert(Echo::new(stream));
    }
    Ok(())
}
