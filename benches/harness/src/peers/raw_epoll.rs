//! The reference: one thread, level-triggered epoll, one receive and one send per request.

use std::io;
use std::net::{TcpListener, TcpStream};

use slab::Slab;

use super::echo::{Echo, Scratch, Waits};
use crate::sys::{self, Epoll, Events};

/// Receives from one connection before the others have their turn.
const RECEIVES: usize = 16;
const LISTENER: u64 = u64::MAX;

struct Entry {
    echo: Echo<TcpStream>,
    waits: Waits,
}

/// The reference: a receive buffer of 64 KiB; what comes in part moves to the connection.
pub(crate) fn spilling(listener: TcpListener) -> io::Result<()> {
    serve(&listener, Scratch::spilling(64 << 10))
}

/// The same loop with a receive buffer of 256 KiB, to whose front partial frames are carried.
pub(crate) fn carrying(listener: TcpListener) -> io::Result<()> {
    serve(&listener, Scratch::carrying(256 << 10))
}

/// The reference in a process that has a second thread, asleep for good. From the second thread on the
/// kernel counts references to a descriptor in every call, and the C library marks calls that may be
/// cancelled: what every server with threads pays before it does anything.
pub(crate) fn threaded(listener: TcpListener) -> io::Result<()> {
    let _asleep = std::thread::Builder::new().spawn(|| {
        loop {
            std::thread::park();
        }
    })?;
    spilling(listener)
}

fn serve(listener: &TcpListener, scratch: Scratch) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(listener, LISTENER, sys::READ)?;
    let mut events = Events::with_capacity(1024);
    let mut connections = Slab::new();
    let mut scratch = scratch.taking_turns(RECEIVES);
    loop {
        epoll.wait(&mut events, None)?;
        for event in events.iter() {
            if event.token == LISTENER {
                accept(listener, &epoll, &mut connections)?;
                continue;
            }
            let key = event.token as usize;
            let entry: &mut Entry = &mut connections[key];
            match entry.echo.progress(&mut scratch) {
                Waits::Closed => drop(connections.remove(key)),
                waits if waits == entry.waits => {}
                waits => {
                    let interest = if waits == Waits::Writable {
                        sys::WRITE
                    } else {
                        sys::READ
                    };
                    epoll.modify(entry.echo.stream(), event.token, interest)?;
                    entry.waits = waits;
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, all: &mut Slab<Entry>) -> io::Result<()> {
    while let Ok(stream) = sys::accept(listener) {
        let slot = all.vacant_entry();
        epoll.add(&stream, slot.key() as u64, sys::READ)?;
        slot.insert(Entry {
            echo: Echo::new(stream),
            waits: Waits::Readable,
        });
    }
    Ok(())
}
