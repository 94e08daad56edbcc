//! Shutdown with connections coming and going, under shuttle: the real loop, table, connections and
//! handler over socket pairs. There is no poller: one thread of the model plays it, by having every
//! connection look at its socket again and again.

use super::EventLoop;
use crate::{
    config::Limits,
    connection::{Connection, Shared, accepted, run},
    context::Context,
    dispatch::Runner,
    error::{CloseReason, Error},
    handler::{Handler, Sessions, sessions},
    net::{Address, Socket, SocketOptions},
    sync::{AtomicBool, AtomicUsize, Ordering, check_schedules, thread},
};
use poller::{PollerGroup, Progress};
use shuttle::rand::{Rng, thread_rng};
use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

const FOR_EVER: Duration = Duration::from_secs(3600);

/// What the handler was told.
#[derive(Default)]
struct Books {
    prepared: AtomicUsize,
    connected: AtomicUsize,
    disconnected: AtomicUsize,
    closed: AtomicUsize,
}

struct Echo(Arc<Books>);

impl Handler for Echo {
    type State = ();

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        self.0.prepared.fetch_add(1, Ordering::AcqRel);
        let books = Arc::clone(&self.0);
        conn.on_close(move |_| {
            books.closed.fetch_add(1, Ordering::AcqRel);
        });
        Ok(())
    }

    fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
        self.0.connected.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }

    fn on_disconnect(&self, (): (), _: CloseReason) {
        self.0.disconnected.fetch_add(1, Ordering::AcqRel);
    }
}

struct World {
    event_loop: EventLoop,
    context: Arc<Context>,
    sessions: Sessions,
    books: Arc<Books>,
    /// No further connections will come.
    full: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        let books = Arc::new(Books::default());
        let group = PollerGroup::builder().pollers(1).build().unwrap();
        let context = Arc::new(Context::new(Limits::default(), Runner::Inline, group));
        let sessions = sessions(Echo(Arc::clone(&books)));
        Arc::new(Self {
            event_loop: EventLoop::start(
                Arc::clone(&context),
                Arc::clone(&sessions),
                usize::MAX,
                SocketOptions::default(),
                false,
                Duration::from_millis(500),
            ),
            context,
            sessions,
            books,
            full: AtomicBool::new(false),
        })
    }

    /// One more connection, with a request under way. The peer's end.
    fn accept(&self) -> UnixStream {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.write_all(b"request").unwrap();
        let socket = Socket::from_fd(ours.into()).unwrap();
        let address = "127.0.0.1:1".parse::<Address>().unwrap();
        accepted(&self.context, socket, address, (self.sessions)()).unwrap();
        peer
    }

    /// Plays the poller until nobody can come any more and all are gone.
    fn poll(&self) {
        loop {
            let last = self.full.load(Ordering::Acquire);
            let all = self.context.connections.snapshot();
            if last && all.is_empty() {
                return;
            }
            for shared in all {
                look(&shared);
            }
            thread::yield_now();
        }
    }

    /// On one operating-system thread all of shuttle's threads seem to be inside of a callback
    /// when one of them is; a shutdown that is refused for this has begun and is asked for again.
    fn shut_down(&self) {
        while let Err(error) = self.event_loop.shutdown(FOR_EVER) {
            assert!(matches!(Error::from_io(&error), Some(Error::WouldDeadlock)));
            thread::yield_now();
        }
    }

    fn check(&self, connections: usize) {
        let books = &self.books;
        let count = |n: &AtomicUsize| n.load(Ordering::Acquire);
        assert_eq!(count(&books.prepared), connections);
        assert_eq!(count(&books.closed), connections, "once for each");
        assert_eq!(count(&books.connected), count(&books.disconnected));
        assert_eq!(self.context.connections.len(), 0);
    }
}

/// News of input, which may be false; whoever is given the role runs the connection.
fn look(shared: &Arc<Shared>) {
    if shared.word.post(crate::connection::READABLE).1 {
        while run(shared) == Progress::Yield {
            thread::yield_now();
        }
    }
}

#[test]
fn shuttle_a_shutdown_ends_what_comes_and_goes() {
    check_schedules(|| {
        let world = World::new();
        let poller = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.poll())
        };
        let acceptors: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    let mut peers = Vec::new();
                    for _ in 0..2 {
                        peers.push(world.accept());
                        if thread_rng().gen_bool(0.5) {
                            // Some peers leave by themselves.
                            peers.pop();
                        }
                        thread::yield_now();
                    }
                    peers
                })
            })
            .collect();
        let second = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.shut_down())
        };
        world.shut_down();
        second.join().unwrap();
        let peers: Vec<_> = acceptors.into_iter().map(|t| t.join().unwrap()).collect();
        // Who came behind the shutdown's look at the table ends by itself.
        world.full.store(true, Ordering::Release);
        poller.join().unwrap();
        world.check(4);
        drop(peers);
    });
}
