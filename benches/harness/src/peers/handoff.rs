//! The best-known hand-off: one thread polls, 64 workers take ready connections from a channel.
//!
//! Edge-triggered epoll, registered once. A connection that becomes ready while a worker has it is
//! marked, and the worker looks again before it lets go, so nothing is missed and no connection is
//! worked on twice at once.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use slab::Slab;

use super::echo::{Echo, Scratch, Waits};
use crate::sys::{self, Epoll, Events};

const WORKERS: usize = 64;
/// Bytes of each worker's receive buffer.
const SCRATCH: usize = 64 << 10;
const LISTENER: u64 = u64::MAX;

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const AGAIN: u32 = 2;

struct Connection {
    key: usize,
    state: AtomicU32,
    ended: AtomicBool,
    echo: Mutex<Option<Echo<TcpStream>>>,
}

impl Connection {
    /// Notes readiness; true when the caller has to hand the connection to a worker.
    fn ready(&self) -> bool {
        let update = |state| Some(if state == IDLE { RUNNING } else { AGAIN });
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
            == Ok(IDLE)
    }

    /// Works until there is nothing left to do; false when the connection has ended.
    fn run(&self, scratch: &mut Scratch) -> bool {
        let mut slot = self.echo.lock();
        loop {
            let Some(echo) = slot.as_mut() else {
                return true;
            };
            if self.ended.load(Ordering::Acquire) {
                echo.peer_ended();
            }
            if echo.progress(scratch) == Waits::Closed {
                // The state stays RUNNING, so no worker is given this connection again.
                *slot = None;
                return false;
            }
            let (from, to) = (RUNNING, IDLE);
            match self
                .state
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(_) => self.state.store(RUNNING, Ordering::Release),
            }
        }
    }
}

/// Serves `listener` for ever.
pub(crate) fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(&listener, LISTENER, sys::READ)?;
    let (ready, work) = crossbeam_channel::unbounded::<Arc<Connection>>();
    let (ended, gone) = crossbeam_channel::unbounded::<usize>();
    for _ in 0..WORKERS {
        let (work, ended) = (work.clone(), ended.clone());
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || worker(&work, &ended))?;
    }
    let mut events = Events::with_capacity(1024);
    let mut connections = Slab::new();
    loop {
        epoll.wait(&mut events, None)?;
        for event in events.iter() {
            if event.token == LISTENER {
                accept(&listener, &epoll, &mut connections)?;
                continue;
            }
            let connection: &Arc<Connection> = &connections[event.token as usize];
            if event.ended {
                connection.ended.store(true, Ordering::Release);
            }
            if connection.ready() && ready.send(Arc::clone(connection)).is_err() {
                return Err(io::Error::other("the workers have ended"));
            }
        }
        while let Ok(key) = gone.try_recv() {
            connections.remove(key);
        }
    }
}

fn worker(work: &Receiver<Arc<Connection>>, ended: &Sender<usize>) {
    let mut scratch = Scratch::carrying(SCRATCH);
    while let Ok(connection) = work.recv() {
        if !connection.run(&mut scratch) && ended.send(connection.key).is_err() {
            return;
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    all: &mut Slab<Arc<Connection>>,
) -> io::Result<()> {
    while let Ok(stream) = sys::accept(listener) {
        let slot = all.vacant_entry();
        let key = slot.key();
        let echo = Echo::new(stream);
        let connection = slot.insert(Arc::new(Connection {
            key,
            state: AtomicU32::new(IDLE),
            ended: AtomicBool::new(false),
            echo: Mutex::new(None),
        }));
        let mut place = connection.echo.lock();
        let echo = place.insert(echo);
        epoll.add(echo.stream(), key as u64, sys::READ_WRITE_EDGE)?;
    }
    Ok(())
}
