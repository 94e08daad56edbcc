//! Everything at once: peers and handlers that do what they like, and books that balance.

use crate::support::{
    Case, Kind, Server, Transport, decode, eventually, eventually_or, every, every_blocking, frame,
    in_child, pattern, read_frame, settled_descriptors, settled_threads,
};
use netpoll::{CloseReason, Connection, Handler, handler_fn};
use std::{
    collections::HashSet,
    io::{self, Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// A small generator: the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// Does what the first byte of a frame says, and echoes the frame.
struct Obedient {
    blocking: bool,
    inside: Mutex<HashSet<u64>>,
    books: Arc<Books>,
}

#[derive(Default)]
struct Books {
    connected: AtomicU64,
    disconnected: AtomicU64,
    closed: AtomicU64,
    panics: AtomicU64,
    overlaps: AtomicU64,
}

impl Obedient {
    fn alone<T>(&self, id: u64, f: impl FnOnce() -> T) -> T {
        struct Leave<'a>(&'a Obedient, u64);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.inside.lock().unwrap().remove(&self.1);
            }
        }
        if !self.inside.lock().unwrap().insert(id) {
            self.books.overlaps.fetch_add(1, SeqCst);
        }
        let _leave = Leave(self, id);
        f()
    }

    fn obey(&self, conn: &mut Connection) -> io::Result<()> {
        while let Some(mut request) = decode(conn)? {
            let order = if request.len() > 4 {
                request.peek(5)?[4]
            } else {
                0
            };
            match order {
                b'p' => {
                    self.books.panics.fetch_add(1, SeqCst);
                    panic!("as asked");
                }
                b'e' => return Err(io::Error::other("as asked")),
                b'a' => conn.handle().abort(),
                b's' if self.blocking => thread::sleep(Duration::from_millis(1)),
                b'w' if self.blocking => {
                    // The rest of the story is in the next four bytes.
                    let more = conn.next_bytes(4)?;
                    assert_eq!(more, b"more".as_slice());
                }
                b'r' => {
                    let handle = conn.handle();
                    let hold = handle.hold();
                    let len = request.len();
                    let reply = request.read_vec(len)?;
                    thread::spawn(move || {
                        let _ = handle.send_bytes(reply.into());
                        drop(hold);
                    });
                    continue;
                }
                _ => {}
            }
            conn.append(request)?;
            if order == b'c' {
                conn.try_flush()?;
                conn.handle().close();
                return Ok(());
            }
            if order == b'h' && self.blocking {
                conn.flush()?;
                let mut own = conn.hijack()?;
                thread::spawn(move || {
                    while let Ok(head) = own.next(4) {
                        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                        let Ok(body) = own.next_bytes(len as usize) else {
                            return;
                        };
                        let sent = own
                            .write_slice(&len.to_be_bytes())
                            .and_then(|()| own.write_bytes(body))
                            .and_then(|()| own.flush());
                        if sent.is_err() {
                            return;
                        }
                    }
                });
                return Ok(());
            }
        }
        conn.try_flush().map(drop)
    }
}

impl Handler for Obedient {
    type State = u64;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<u64> {
        let id = conn.id();
        self.alone(id, || {
            self.books.connected.fetch_add(1, SeqCst);
            let books = Arc::clone(&self.books);
            conn.on_close(move |_| {
                books.closed.fetch_add(1, SeqCst);
            });
            Ok(id)
        })
    }

    fn on_request(&self, conn: &mut Connection, id: &mut u64) -> io::Result<()> {
        self.alone(*id, || self.obey(conn))
    }

    fn on_disconnect(&self, id: u64, _: CloseReason) {
        self.alone(id, || self.books.disconnected.fetch_add(1, SeqCst));
    }
}

/// One peer's story. Replies are checked as long as nothing was asked for that ends it.
fn story(server: &Server, dice: &mut Dice, blocking: bool) {
    let mut peer = server.connect();
    // Once the connection has been hijacked, everything is echoed and nothing is obeyed.
    let mut hijacked = false;
    for _ in 0..dice.roll(6) {
        let len = dice.roll(3000) as usize + 1;
        let mut body = pattern(dice.roll(1000), len);
        body[0] = b'.';
        let order = dice.roll(16);
        match if hijacked && order < 8 { 15 } else { order } {
            0 => {
                body[0] = b'p';
                let _ = peer.write_all(&frame(&body));
                return peer.expect_gone();
            }
            1 => {
                body[0] = b'e';
                let _ = peer.write_all(&frame(&body));
                return peer.expect_gone();
            }
            2 => {
                body[0] = b'c';
                peer.write_all(&frame(&body)).unwrap();
                assert!(peer.rest().unwrap() == frame(&body), "the last reply");
                return;
            }
            3 => {
                body[0] = b'a';
                let _ = peer.write_all(&frame(&body));
                return peer.expect_gone();
            }
            4 => {
                body[0] = b's';
                peer.ping(&body);
            }
            5 if blocking => {
                body[0] = b'w';
                peer.write_all(&frame(&body)).unwrap();
                peer.write_all(b"mo").unwrap();
                peer.write_all(b"re").unwrap();
                assert!(read_frame(&mut peer).unwrap() == body);
            }
            6 => {
                body[0] = b'r';
                peer.ping(&body);
            }
            7 if blocking => {
                body[0] = b'h';
                peer.ping(&body);
                hijacked = true;
            }
            8 => {
                peer.write_all(&frame(&body)[..len / 2]).unwrap();
                return;
            }
            9 => {
                peer.write_all(&frame(&body)[..len / 2]).unwrap();
                peer.shutdown_write();
                let _ = peer.read_to_end(&mut Vec::new());
                return;
            }
            10 => {
                peer.write_all(&frame(&body)).unwrap();
                peer.shutdown_write();
                assert!(
                    peer.rest().unwrap() == frame(&body),
                    "the reply after a FIN"
                );
                return;
            }
            11 => {
                let _ = peer.write_all(&frame(&body));
                return peer.reset();
            }
            12 => {
                let many: Vec<u8> = (0..20).flat_map(|_| frame(&body)).collect();
                let mut sender = peer.try_clone();
                let sending = thread::spawn(move || sender.write_all(&many).unwrap());
                for _ in 0..20 {
                    assert!(read_frame(&mut peer).unwrap() == body);
                }
                sending.join().unwrap();
            }
            13 => {
                for part in frame(&body).chunks(1 + len / 7) {
                    peer.write_all(part).unwrap();
                }
                assert!(read_frame(&mut peer).unwrap() == body);
            }
            _ => peer.ping(&body),
        }
    }
}

fn chaos(case: Case, threads: u64, stories: u64) {
    let blocking = case.kind != Kind::Inline;
    let books = Arc::new(Books::default());
    let builder = case.builder().pollers(2);
    let server = Arc::new(case.serve_with(
        builder,
        Obedient {
            blocking,
            inside: Mutex::default(),
            books: Arc::clone(&books),
        },
    ));
    let peers: Vec<_> = (0..threads)
        .map(|thread| {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                for number in 0..stories {
                    let mut dice = Dice((thread * 7919 + number + 1).wrapping_mul(0x9E37_79B9));
                    story(&server, &mut dice, blocking);
                }
            })
        })
        .collect();
    for peer in peers {
        peer.join().unwrap();
    }
    let event_loop = server.event_loop.clone();
    // A peer may be done before it was accepted.
    let ended = || {
        let stats = event_loop.stats();
        stats.active == 0 && stats.accepted == threads * stories && stats.closed == stats.accepted
    };
    eventually_or("the ends", ended, || {
        format!("{case:?}: {:?}", event_loop.stats())
    });
    Arc::into_inner(server).expect("the peers are over").stop();
    let stats = event_loop.stats();
    let get = |counter: &AtomicU64| counter.load(SeqCst);
    assert_eq!(get(&books.overlaps), 0, "callbacks at once");
    assert_eq!(get(&books.connected), get(&books.disconnected));
    assert_eq!(get(&books.connected), get(&books.closed));
    assert_eq!(stats.connected, get(&books.connected));
    assert_eq!(stats.disconnected, get(&books.disconnected));
    assert_eq!(stats.accepted, stats.closed);
    assert_eq!(stats.accepted, threads * stories);
    assert_eq!(stats.panics, get(&books.panics));
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn whatever_peers_and_handlers_do_the_books_balance() {
    every(|case| chaos(case, 4, 60));
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn whatever_peers_and_handlers_do_nothing_is_left_behind() {
    in_child(
        "whatever_peers_and_handlers_do_nothing_is_left_behind",
        || {
            let kinds = [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom];
            for kind in kinds {
                chaos(Case::new(Transport::Tcp, kind), 2, 10);
            }
            let (fds, tasks) = (crate::support::descriptors(), crate::support::threads());
            for kind in kinds {
                for transport in [Transport::Tcp, Transport::Unix] {
                    chaos(Case::new(transport, kind), 3, 40);
                }
                settled_descriptors(fds);
                settled_threads(tasks);
            }
        },
    );
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn a_shutdown_in_the_middle_of_everything_ends() {
    every(|case| {
        let blocking = case.kind != Kind::Inline;
        for round in 0..5 {
            let books = Arc::new(Books::default());
            let server = Arc::new(case.serve(Obedient {
                blocking,
                inside: Mutex::default(),
                books: Arc::clone(&books),
            }));
            let peers: Vec<_> = (0..4u64)
                .map(|thread| {
                    let server = Arc::clone(&server);
                    thread::spawn(move || {
                        let mut dice = Dice((thread + 1) * 31 + round);
                        // Until nobody answers any more; the last replies may be missing.
                        loop {
                            let Ok(mut peer) = crate::support::Peer::connect(&server.address)
                            else {
                                return;
                            };
                            let orders = b".sprceaw.....";
                            for _ in 0..dice.roll(8) {
                                let order = orders[dice.roll(orders.len() as u64) as usize];
                                if order == b'w' && !blocking {
                                    continue;
                                }
                                let body = [order; 50];
                                let mut out = frame(&body);
                                if order == b'w' {
                                    out.extend_from_slice(b"more");
                                }
                                if peer.write_all(&out).is_err() {
                                    break;
                                }
                                match read_frame(&mut peer) {
                                    Ok(reply) => assert_eq!(reply, body),
                                    Err(_) => break,
                                }
                            }
                        }
                    })
                })
                .collect();
            let event_loop = server.event_loop.clone();
            eventually("some life", || {
                event_loop.stats().accepted >= 10 + round * 10
            });
            event_loop.shutdown(crate::support::LIMIT).unwrap();
            for peer in peers {
                peer.join().unwrap();
            }
            let stats = event_loop.stats();
            assert_eq!(stats.accepted, stats.closed);
            assert_eq!(stats.connected, stats.disconnected);
            assert_eq!(books.connected.load(SeqCst), books.closed.load(SeqCst));
            assert_eq!(books.overlaps.load(SeqCst), 0);
        }
    });
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn a_chain_of_loops_passes_everything_on() {
    // Three loops in a row, each a client of the next, all on the same pollers.
    every_blocking(|case| {
        let group = netpoll::PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let dispatch = || match case.kind {
            Kind::OneWorker => Kind::Workers.dispatch(),
            kind => kind.dispatch(),
        };
        let builder = || {
            netpoll::EventLoop::builder()
                .pollers(group.clone())
                .dispatch(dispatch())
        };
        let mut servers = vec![case.serve_with(builder(), crate::support::echo())];
        for _ in 0..2 {
            let next = servers.last().unwrap().address.clone();
            let pool = netpoll::Pool::new(
                netpoll::Dialer::new()
                    .pollers(group.clone())
                    .read_timeout(crate::support::LIMIT),
            );
            servers.push(case.serve_with(
                builder(),
                handler_fn(move |conn| {
                    while let Some(request) = decode(conn)? {
                        let len = request.len();
                        let mut to = pool.get(&next)?;
                        to.append(request)?;
                        to.flush()?;
                        let reply = to.slice(len)?;
                        conn.append(reply)?;
                        conn.flush()?;
                    }
                    Ok(())
                }),
            ));
        }
        let front = servers.last().unwrap();
        thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    let mut peer = front.connect();
                    for round in 0..40u64 {
                        peer.ping(&pattern(thread * 100 + round, (round * 97) as usize));
                    }
                });
            }
        });
        while let Some(server) = servers.pop() {
            server.stop();
        }
        group.close();
    });
}
