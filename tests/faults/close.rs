//! Rows 48 to 66 of the fault matrix (`docs/reliability.md`): closing, and descriptors that others
//! know too.
//!
//! A plan of faults is for the whole process, so the tests take turns.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, descriptors, echo,
    echo_frames, eventually, every, giving, in_child, let_pass, on_tcp, pattern,
    settled_descriptors,
};
use netpoll::{
    Bytes, CloseReason, Connection, Dialer, PollerGroup,
    fault::{Call, Fault, Plan},
};
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

#[test]
fn row_048_a_close_sends_what_is_queued_although_sends_are_short_and_interrupted() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(case.builder().linger(LIMIT, 256 << 10), giving(&handles));
        let sent = pattern(48, 2 << 20);
        let mut peer = Peer::connect_small(&server.address).unwrap();
        let handle = handles.wait_len(1).remove(0);
        let plan = Plan::new(48)
            .chance(Call::Send, 300, Fault::Errno(libc::EINTR))
            .chance(Call::Send, 50, Fault::Errno(libc::ENOBUFS))
            .every(Call::Send, 1, Fault::Short(50_000));
        let installed = plan.install();
        handle.send(Bytes::from(sent.clone())).unwrap();
        handle.close();
        let got = peer.rest().unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        drop(installed);
        let _ = handle.done().wait();
        assert_eq!(handle.stats().lost_bytes, 0);
        server.stop();
    });
}

#[test]
fn row_049_a_close_whose_shutdown_fails_still_closes() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let (handles, ends) = (Log::new(), Log::new());
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().linger(LIMIT * 10, usize::MAX),
            giving(&handles).disconnect(move |_, reason| log.push(reason)),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let plan = Plan::new(49).from(Call::Shutdown, 1, 1, Fault::Errno(libc::ENOBUFS));
        let installed = plan.install();
        handle.close();
        // There is nothing to linger for.
        peer.expect_end();
        assert_eq!(ends.wait_len(1), [CloseReason::Local]);
        drop((installed, peer));
        server.stop();
    });
}

#[test]
fn row_049_input_that_fails_while_it_is_drained_ends_the_draining() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder().linger(LIMIT * 10, usize::MAX),
            giving(&handles),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        handle.close();
        peer.expect_end();
        let event_loop = &server.event_loop;
        assert_eq!(event_loop.stats().active, 1, "it lingers");
        let plan = Plan::new(49).every(Call::Receive, 1, Fault::Errno(libc::ETIMEDOUT));
        let installed = plan.install();
        peer.write_all(b"too late").unwrap();
        eventually("the descriptor", || event_loop.stats().active == 0);
        drop(installed);
        server.stop();
    });
}

#[test]
fn row_066_unwanted_input_is_dropped_in_portions_and_others_have_their_turn_between() {
    let _turn = crate::TURN.lock();
    /// In the socket of the closed connection, read byte by byte.
    const UNWANTED: u64 = 64 << 10;
    const REQUESTS: u64 = 10;
    for transport in [Transport::Tcp, Transport::Unix] {
        bounded(&format!("{transport:?}"), move || {
            // One thread for everything. A request holds it between two meetings with the test.
            let meeting = Arc::new(Barrier::new(2));
            let (handles, met) = (Log::new(), Arc::clone(&meeting));
            let script = giving(&handles).request(move |conn| {
                met.wait();
                if conn.next_bytes(1)?.as_ref() == b"c" {
                    conn.handle().close();
                }
                met.wait();
                Ok(())
            });
            let case = Case::new(transport, Kind::Inline);
            let builder = case.builder().linger(LIMIT * 10, usize::MAX);
            let server = case.serve_with(builder, script);
            let (mut sender, mut other) = (server.connect(), server.connect());
            handles.wait_len(2);
            let installed = Plan::new(66)
                .every(Call::Receive, 1, Fault::Short(1))
                .install();
            sender.write_all(b"c").unwrap();
            meeting.wait();
            sender.write_all(&vec![0; UNWANTED as usize]).unwrap();
            let before = installed.calls(Call::Receive);
            for _ in 0..REQUESTS {
                // There before the turn that follows begins.
                other.write_all(b"r").unwrap();
                meeting.wait();
                meeting.wait();
            }
            let receives = installed.calls(Call::Receive) - before;
            meeting.wait();
            // Not all at once, but in between.
            assert!(receives < UNWANTED / 2, "{receives} receives");
            assert!(
                receives > 2 * REQUESTS,
                "{receives} receives, nothing was dropped"
            );
            drop((installed, sender));
            let event_loop = &server.event_loop;
            eventually("the rest was dropped", || event_loop.stats().active == 1);
            drop(other);
            server.stop();
        });
    }
}

/// Sockets that belong to somebody else in the process: a descriptor closed once too often would be
/// one of theirs sooner or later.
struct Stranger {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Stranger {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut rounds = 0_u64;
            while !stopped.load(SeqCst) {
                let mut pairs: Vec<_> = (0..8).map(|_| UnixStream::pair().unwrap()).collect();
                for (number, (_, writer)) in pairs.iter_mut().enumerate() {
                    writer.write_all(&[number as u8; 16]).unwrap();
                }
                thread::yield_now();
                for (number, (mut reader, writer)) in pairs.into_iter().enumerate() {
                    drop(writer);
                    let mut bytes = Vec::new();
                    reader.read_to_end(&mut bytes).unwrap();
                    assert_eq!(bytes, [number as u8; 16], "somebody else's descriptor");
                }
                rounds += 1;
            }
            rounds
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, SeqCst);
        assert!(self.thread.join().unwrap() > 0);
    }
}

#[test]
fn row_058_whatever_ends_a_connection_nobody_elses_descriptor_is_closed() {
    let _turn = crate::TURN.lock();
    in_child(
        "row_058_whatever_ends_a_connection_nobody_elses_descriptor_is_closed",
        || {
            bounded("strangers", || {
                for kind in KINDS {
                    for transport in [Transport::Tcp, Transport::Unix] {
                        ends_of_all_kinds(Case::new(transport, kind));
                    }
                }
            });
        },
    );
}

fn ends_of_all_kinds(case: Case) {
    let handles = Log::new();
    let server = case.serve_with(
        case.builder().linger(Duration::from_millis(20), 1024),
        giving(&handles).request(|conn| match conn.peek(1)?[0] {
            b'e' => Err(io::Error::other("on request")),
            b'p' => panic!("a panic of the handler, as it should be"),
            b'h' => conn.hijack().map(drop),
            b'd' => {
                let (fd, _) = conn.hijack()?.detach()?;
                drop(fd);
                Ok(())
            }
            _ => conn.skip(conn.available()),
        }),
    );
    // The pollers of all dials are started by the first.
    drop(server.dial());
    handles.wait_len(1);
    handles.take();
    eventually("quiet", || server.event_loop.stats().active == 0);
    let before = descriptors();
    let strangers: Vec<_> = (0..2).map(|_| Stranger::start()).collect();
    for round in 0..200 {
        let (mut peer, handle) = server.connect_given(&handles);
        match round % 10 {
            0 => handle.close(),
            1 => handle.abort(),
            2 => peer.reset_or_close(),
            3 => peer.write_all(b"e").unwrap(),
            4 => peer.write_all(b"p").unwrap(),
            5 => peer.write_all(b"h").unwrap(),
            6 => peer.write_all(b"d").unwrap(),
            7 => {
                let closers: Vec<_> = (0..3)
                    .map(|_| {
                        let handle = handle.clone();
                        thread::spawn(move || handle.close())
                    })
                    .collect();
                handle.abort();
                for closer in closers {
                    closer.join().unwrap();
                }
            }
            8 => {
                let dialled: Connection = server.dial();
                handles.wait_len(1);
                handles.take();
                dialled.abort();
                handle.close();
            }
            _ => {}
        }
    }
    eventually("their ends", || server.event_loop.stats().active == 0);
    for stranger in strangers {
        stranger.stop();
    }
    settled_descriptors(before);
    server.stop();
}

/// What ends a peer without a word, whatever its kind.
trait ResetOrClose {
    fn reset_or_close(&mut self);
}

impl ResetOrClose for Peer {
    fn reset_or_close(&mut self) {
        let _ = socket2::SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }
}

#[test]
fn row_057_a_connection_is_closed_while_others_are_in_its_system_calls() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles).request(echo_frames));
        // Sends that are interrupted again and again take long.
        let plan = Plan::new(57)
            .chance(Call::Send, 700, Fault::Errno(libc::EINTR))
            .every(Call::Send, 1, Fault::Short(1000));
        let installed = plan.install();
        for round in 0..60 {
            let (mut peer, handle) = server.connect_given(&handles);
            let senders: Vec<_> = (0..3)
                .map(|_| {
                    let handle = handle.clone();
                    thread::spawn(move || {
                        let message = Bytes::from(vec![7; 20_000]);
                        while handle.send(message.clone()).is_ok() {}
                    })
                })
                .collect();
            // They are under way.
            peer.read_exact(&mut [0; 3000]).unwrap();
            match round % 3 {
                0 => handle.close(),
                1 => handle.abort(),
                _ => peer.reset_or_close(),
            }
            drop(peer);
            for sender in senders {
                sender.join().unwrap();
            }
            let _ = handle.done().wait();
            let stats = handle.stats();
            assert_eq!(stats.queued, 0);
        }
        drop(installed);
        server.stop();
    });
}

/// A server that keeps a second descriptor of each of its sockets, as a child process would.
fn duplicating(case: Case, group: &PollerGroup, kept: &Log<Arc<OwnedFd>>) -> Server {
    let log = kept.clone();
    case.serve_with(
        case.builder()
            .pollers(group.clone())
            .linger(Duration::ZERO, 0),
        Script::new()
            .connect(move |conn| {
                log.push(Arc::new(conn.as_fd().try_clone_to_owned()?));
                Ok(())
            })
            .request(|conn| {
                conn.skip(conn.available())?;
                conn.handle().close();
                Ok(())
            }),
    )
}

#[test]
fn row_060_a_socket_that_lives_on_elsewhere_is_out_of_the_poller_when_it_is_closed() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let group = PollerGroup::builder().pollers(1).build().unwrap();
        let kept = Log::new();
        let server = duplicating(case, &group, &kept);
        let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(b"bye").unwrap();
            // The end comes although somebody keeps the socket.
            peer.expect_end();
        }
        let event_loop = &server.event_loop;
        eventually("their ends", || event_loop.stats().active == 0);
        assert_eq!(group.stats().total().registered, 1, "the listener");
        assert_eq!(kept.len(), 5);
        // Nothing that happens to those sockets is told to the poller any more.
        let mut quiet = || {
            let before = group.stats().total().events;
            for peer in &mut peers {
                let _ = peer.write(b"anybody?");
            }
            let_pass(Duration::from_millis(50));
            group.stats().total().events == before
        };
        eventually("silence", &mut quiet);
        assert!(quiet(), "events of sockets that were closed");
        kept.take();
        drop(peers);
        server.stop();
        group.close();
    });
}

#[test]
fn row_060_a_dialled_socket_that_lives_on_elsewhere_ends_for_its_peer() {
    let _turn = crate::TURN.lock();
    bounded("a second descriptor", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let event_loop = &server.event_loop;
        let conn = Dialer::new()
            .dial_connection(server.address.clone())
            .unwrap();
        let kept = conn.as_fd().try_clone_to_owned().unwrap();
        eventually("the server's side", || event_loop.stats().connected == 1);
        conn.close().unwrap();
        eventually("its end", || event_loop.stats().active == 0);
        drop(kept);
        server.stop();
    });
}
