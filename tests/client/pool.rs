//! The client pool: what is kept, what is handed out, and the limits.

use crate::support::{
    Case, Kind, LIMIT, Log, Script, Transport, bounded, decode, echo, echo_frames, eventually,
    every, every_blocking, frame, giving, in_child, on_tcp, settled_descriptors,
};
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, ConnectionState, Dialer, Error, Pool,
    PoolBuilder, handler_fn,
};
use socket2::SockRef;
use std::{
    io::{self, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

fn dialer() -> Dialer {
    Dialer::new()
        .connect_timeout(LIMIT)
        .read_timeout(LIMIT)
        .write_timeout(LIMIT)
}

fn pool() -> Pool {
    Pool::new(dialer())
}

/// A pool with options that hold.
fn pool_with(options: impl FnOnce(PoolBuilder) -> PoolBuilder) -> Pool {
    options(Pool::builder(dialer())).build().unwrap()
}

fn call(conn: &mut Connection, body: &[u8]) -> io::Result<()> {
    let out = frame(body);
    conn.write_slice(&out)?;
    conn.flush()?;
    assert_eq!(conn.next(out.len())?, out);
    Ok(())
}

/// Whether the peer's end has come to this socket.
fn has_fin(socket: &OwnedFd) -> bool {
    match peek(socket.as_fd()) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Whether bytes lie in this socket.
fn has_come(socket: BorrowedFd<'_>) -> bool {
    peek(socket).is_ok_and(|n| n > 0)
}

fn peek(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut byte = [MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    SockRef::from(&socket).recv_with_flags(&mut byte, flags)
}

#[test]
fn a_connection_is_used_again() {
    every(|case| {
        let server = case.serve(echo());
        let pool = pool();
        let mut ids = Vec::new();
        for _ in 0..20 {
            let mut conn = pool.get(&server.address).unwrap();
            call(&mut conn, b"hello").unwrap();
            ids.push(conn.id());
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let stats = pool.stats();
        assert_eq!(
            (stats.dialled, stats.reused, stats.idle, stats.in_use),
            (1, 19, 1, 0)
        );
        pool.close();
        server.stop();
    });
}

#[test]
fn addresses_are_kept_apart() {
    bounded("addresses", || {
        let tcp = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let unix = Case::new(Transport::Unix, Kind::Adaptive).serve(echo());
        let pool = pool();
        for _ in 0..3 {
            for server in [&tcp, &unix] {
                let mut conn = pool.get(&server.address).unwrap();
                assert_eq!(conn.peer_addr(), &server.address);
                call(&mut conn, b"mine").unwrap();
            }
        }
        assert_eq!(pool.stats().dialled, 2);
        pool.close();
    });
}

#[test]
fn a_connection_that_the_server_closed_is_never_handed_out() {
    every(|case| {
        // The server answers once and closes.
        let server = case.serve(handler_fn(|conn| {
            let Some(frame) = decode(conn)? else {
                return Ok(());
            };
            conn.append(frame)?;
            conn.flush()?;
            conn.handle().close();
            Ok(())
        }));
        let pool = pool();
        for round in 1..=30 {
            let mut conn = pool.get(&server.address).unwrap();
            call(&mut conn, b"once").unwrap();
            let socket = conn.as_fd().try_clone_to_owned().unwrap();
            // Gone back before or after the news of the end, it makes no difference.
            drop(conn);
            let event_loop = &server.event_loop;
            eventually("the server's end", || event_loop.stats().closed >= round);
            eventually("the FIN has come", || has_fin(&socket));
        }
        let stats = pool.stats();
        assert_eq!((stats.dialled, stats.reused), (30, 0));
        eventually("all are closed, without a call", || {
            let stats = pool.stats();
            stats.discarded + stats.rejected == 30 && stats.idle == 0
        });
        pool.close();
        server.stop();
    });
}

#[test]
fn a_connection_with_unread_input_is_never_handed_out() {
    every(|case| {
        // Two answers to each request; the caller reads one.
        let server = case.serve(handler_fn(|conn| {
            let Some(mut request) = decode(conn)? else {
                return Ok(());
            };
            let answer = request.read_vec(request.len())?;
            conn.write_slice(&answer)?;
            conn.write_slice(&answer)?;
            conn.flush()
        }));
        let pool = pool();
        let mut ids = Vec::new();
        for round in 0..20 {
            let mut conn = pool.get(&server.address).unwrap();
            call(&mut conn, &[round]).unwrap();
            if round % 2 == 0 {
                // The second answer is in our buffer.
                conn.fill(5).unwrap();
            } else {
                // Some of it is, or it has come to the socket.
                let more = || conn.available() > 0 || has_come(conn.as_fd());
                eventually("the second answer", more);
            }
            ids.push(conn.id());
        }
        ids.dedup();
        assert_eq!(ids.len(), 20, "a dirty connection was used again");
        pool.close();
        server.stop();
    });
}

#[test]
fn a_connection_with_unsent_output_is_not_kept() {
    every(|case| {
        let server = case.serve(echo());
        let pool = pool();
        let mut conn = pool.get(&server.address).unwrap();
        conn.write_slice(b"not flushed").unwrap();
        drop(conn);
        let stats = pool.stats();
        assert_eq!((stats.rejected, stats.idle, stats.in_use), (1, 0, 0));
        let mut conn = pool.get(&server.address).unwrap();
        call(&mut conn, b"clean").unwrap();
        drop(conn);
        pool.close();
        server.stop();
    });
}

#[test]
fn a_half_read_reply_is_not_kept() {
    every(|case| {
        let server = case.serve(echo());
        let pool = pool();
        let mut conn = pool.get(&server.address).unwrap();
        conn.write_slice(&frame(b"0123456789")).unwrap();
        conn.flush().unwrap();
        conn.next(7).unwrap();
        conn.fill(7).unwrap();
        drop(conn);
        assert_eq!(pool.stats().rejected, 1);
        pool.close();
        server.stop();
    });
}

#[test]
fn a_user_that_panics_gives_nothing_back() {
    bounded("panic", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(1));
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut conn = pool.get(&server.address).unwrap();
            call(&mut conn, b"x").unwrap();
            panic!("as asked");
        }));
        assert!(result.is_err());
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.in_use, stats.rejected), (0, 0, 1));
        call(
            &mut pool.get(&server.address).unwrap(),
            b"the place is free",
        )
        .unwrap();
    });
}

#[test]
fn discard_and_into_inner_take_a_connection_out() {
    bounded("take out", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(1));
        pool.get(&server.address).unwrap().discard();
        let mut own = pool.get(&server.address).unwrap().into_inner();
        call(&mut own, b"mine now").unwrap();
        // Both have freed their place.
        call(&mut pool.get(&server.address).unwrap(), b"x").unwrap();
        drop(own);
        let stats = pool.stats();
        assert_eq!((stats.dialled, stats.idle, stats.in_use), (3, 1, 0));
    });
}

#[test]
fn no_more_than_max_idle_are_kept() {
    bounded("max_idle", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_idle(3));
        let all: Vec<_> = (0..8).map(|_| pool.get(&server.address).unwrap()).collect();
        assert_eq!(pool.stats().in_use, 8);
        drop(all);
        let stats = pool.stats();
        assert_eq!(
            (stats.idle, stats.in_use, stats.rejected, stats.peak),
            (3, 0, 5, 8)
        );
        eventually("the others are closed", || {
            server.event_loop.stats().active == 3
        });
    });
}

#[test]
fn beyond_max_total_get_fails_at_once() {
    bounded("max_total", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(2));
        let first = pool.get(&server.address).unwrap();
        let second = pool.get(&server.address).unwrap();
        let error = pool.get(&server.address).unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::PoolExhausted));
        drop(first);
        let third = pool.get(&server.address).unwrap();
        drop((second, third));
        assert_eq!(pool.stats().peak, 2);
    });
}

#[test]
fn with_wait_get_waits_for_a_place() {
    bounded("wait", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(1).wait(LIMIT));
        let mut held = pool.get(&server.address).unwrap();
        call(&mut held, b"held").unwrap();
        let id = held.id();
        let (other, address) = (pool.clone(), server.address.clone());
        let waiting = thread::spawn(move || other.get(&address).map(|conn| conn.id()));
        // Whether it waits already or comes later, it gets the one that is given back.
        thread::yield_now();
        drop(held);
        assert_eq!(waiting.join().unwrap().unwrap(), id);
        // And one that is discarded frees its place too.
        let held = pool.get(&server.address).unwrap();
        let (other, address) = (pool, server.address.clone());
        let waiting = thread::spawn(move || other.get(&address).map(|conn| conn.id()));
        held.discard();
        assert_ne!(waiting.join().unwrap().unwrap(), id);
        // At the end of the wait there is an error.
        let short = pool_with(|options| options.max_total(1).wait(Duration::from_millis(20)));
        let held = short.get(&server.address).unwrap();
        let error = short.get(&server.address).unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::PoolExhausted));
        drop(held);
    });
}

#[test]
fn limits_hold_when_many_call_at_once() {
    on_tcp(&[Kind::Adaptive, Kind::Workers], |case| {
        let server = Arc::new(case.serve(echo()));
        let pool = pool_with(|options| options.max_total(4).max_idle(2).wait(LIMIT));
        let most = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..16u8)
            .map(|i| {
                let (pool, server, most) = (pool.clone(), Arc::clone(&server), Arc::clone(&most));
                thread::spawn(move || {
                    for round in 0..50u8 {
                        let mut conn = pool.get(&server.address).unwrap();
                        most.fetch_max(pool.stats().in_use, SeqCst);
                        call(&mut conn, &[i, round]).unwrap();
                        if round % 10 == 9 {
                            conn.discard();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(most.load(SeqCst) <= 4, "{} in use", most.load(SeqCst));
        let stats = pool.stats();
        assert!(stats.peak <= 4, "peak {}", stats.peak);
        assert_eq!(stats.in_use, 0);
        assert!(stats.idle <= 2);
        assert_eq!(stats.dialled + stats.reused, 800);
        pool.close();
    });
}

#[test]
fn a_failed_dial_gives_its_place_back() {
    bounded("failed dial", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let address = server.address.clone();
        server.stop();
        let pool = pool_with(|options| options.max_total(1));
        for _ in 0..3 {
            let error = pool.get(&address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
        let stats = pool.stats();
        assert_eq!((stats.failed, stats.in_use, stats.dialled), (3, 0, 0));
    });
}

#[test]
fn connections_that_were_idle_for_too_long_are_not_used() {
    bounded("idle_timeout", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.idle_timeout(Duration::from_nanos(1)));
        let first = pool.get(&server.address).unwrap().id();
        let second = pool.get(&server.address).unwrap().id();
        assert_ne!(first, second);
        eventually("both are closed", || server.event_loop.stats().active == 0);
        eventually("and counted", || pool.stats().discarded == 2);
        assert_eq!((pool.stats().idle, pool.stats().reused), (0, 0));
    });
}

#[test]
fn what_ends_while_it_is_kept_is_closed_without_a_call() {
    every(|case| {
        let handles = Log::new();
        let log = handles.clone();
        let server = case.serve(Script::new().request(echo_frames).connect(move |conn| {
            log.push(conn.handle());
            Ok(())
        }));
        let dialer = dialer();
        let pool = Pool::new(dialer.clone());
        let mut conns: Vec<_> = (0..6).map(|_| pool.get(&server.address).unwrap()).collect();
        for conn in &mut conns {
            call(conn, b"x").unwrap();
        }
        drop(conns);
        assert_eq!((pool.stats().idle, pool.evict()), (6, 0));
        for (i, handle) in handles.wait_len(6)[..4].iter().enumerate() {
            if i % 2 == 0 {
                handle.close();
            } else {
                handle.abort();
            }
        }
        eventually("four are closed", || dialer.stats().unwrap().active == 2);
        eventually("and counted", || pool.stats().discarded == 4);
        assert_eq!(pool.stats().idle, 2);
        for _ in 0..3 {
            call(&mut pool.get(&server.address).unwrap(), b"y").unwrap();
        }
        assert_eq!((pool.stats().dialled, pool.stats().reused), (6, 3));
        pool.close();
        server.stop();
    });
}

#[test]
fn what_was_kept_for_too_long_is_closed_without_a_call() {
    every(|case| {
        let server = case.serve(echo());
        let dialer = dialer();
        let pool = Pool::builder(dialer.clone())
            .idle_timeout(Duration::from_millis(40))
            .build()
            .unwrap();
        for round in 1..=3 {
            let mut conns: Vec<_> = (0..5).map(|_| pool.get(&server.address).unwrap()).collect();
            for conn in &mut conns {
                call(conn, b"x").unwrap();
            }
            drop(conns);
            eventually("all are closed", || dialer.stats().unwrap().active == 0);
            eventually("and counted", || pool.stats().discarded == 5 * round);
            assert_eq!(pool.stats().idle, 0);
        }
        server.stop();
    });
}

#[test]
fn evict_closes_what_is_dirty_and_keeps_the_rest() {
    every(|case| {
        // On request the server says more than it was asked for, when the connection is kept again.
        let handles = Log::new();
        let log = handles.clone();
        let server = case.serve(Script::new().request(echo_frames).connect(move |conn| {
            log.push(conn.handle());
            Ok(())
        }));
        let pool = pool();
        let mut conns: Vec<_> = (0..4).map(|_| pool.get(&server.address).unwrap()).collect();
        for conn in &mut conns {
            call(conn, b"x").unwrap();
        }
        let sockets: Vec<OwnedFd> = conns
            .iter()
            .map(|conn| conn.as_fd().try_clone_to_owned().unwrap())
            .collect();
        drop(conns);
        assert_eq!(pool.evict(), 0);
        for handle in &handles.wait_len(4)[..2] {
            handle.send_bytes("more".into()).unwrap();
        }
        let dirty = || sockets.iter().filter(|fd| has_come(fd.as_fd())).count();
        eventually("it has come", || dirty() == 2);
        assert_eq!(pool.evict(), 2);
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.discarded), (2, 2));
        pool.close();
        server.stop();
    });
}

#[test]
fn a_closed_pool_hands_nothing_out_and_keeps_nothing() {
    bounded("close", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool();
        let mut out = pool.get(&server.address).unwrap();
        drop(pool.get(&server.address).unwrap());
        pool.close();
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.in_use), (0, 1), "one is still out");
        let error = pool.get(&server.address).unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
        call(&mut out, b"goes on").unwrap();
        drop(out);
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.in_use), (0, 0));
        eventually("all are closed", || server.event_loop.stats().active == 0);
        pool.close();
    });
}

#[test]
fn closing_a_pool_ends_the_wait_for_a_place() {
    bounded("close", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(1).wait(LIMIT * 3));
        let held = pool.get(&server.address).unwrap();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let (pool, address) = (pool.clone(), server.address.clone());
                thread::spawn(move || pool.get(&address).map(drop))
            })
            .collect();
        pool.close();
        for waiter in waiters {
            let error = waiter.join().unwrap().unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
        }
        drop(held);
    });
}

#[test]
fn a_server_that_restarts_is_no_trouble() {
    bounded("restart", || {
        let pool = pool();
        let address = {
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
            let mut conns: Vec<_> = (0..5).map(|_| pool.get(&server.address).unwrap()).collect();
            for conn in &mut conns {
                call(conn, b"before").unwrap();
            }
            drop(conns);
            let address = server.address.clone();
            server.stop();
            address
        };
        let event_loop = netpoll::EventLoop::new(echo()).unwrap();
        event_loop
            .serve_in_background(netpoll::Listener::bind(address.clone()).unwrap())
            .unwrap();
        // Every kept connection is dead; none of them is handed out.
        for _ in 0..5 {
            call(&mut pool.get(&address).unwrap(), b"after").unwrap();
        }
        eventually("all are counted", || pool.stats().discarded == 5);
        pool.close();
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn a_pool_leaves_no_descriptor_behind() {
    in_child("a_pool_leaves_no_descriptor_behind", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        // A thread that has waited once keeps its bell, so it waits before the count.
        let mut first = server.dial();
        call(&mut first, b"x").unwrap();
        drop(first);
        eventually("its end", || server.event_loop.stats().active == 0);
        let before = crate::support::descriptors();
        for _ in 0..10 {
            let pool = pool();
            let mut conns: Vec<_> = (0..10)
                .map(|_| pool.get(&server.address).unwrap())
                .collect();
            for conn in &mut conns {
                call(conn, b"x").unwrap();
            }
            conns.pop().unwrap().discard();
            drop(conns);
            drop(pool);
            settled_descriptors(before);
        }
    });
}

#[test]
fn handlers_may_use_a_pool_to_call_their_own_loop() {
    // One poller and one worker: every link of the chain waits for the next.
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let pool = pool();
        let own: Arc<std::sync::OnceLock<Address>> = Arc::default();
        let (address, inner) = (Arc::clone(&own), pool.clone());
        let server = case.serve(handler_fn(move |conn| {
            while let Some(depth) = conn.try_next(1)? {
                let depth = depth[0];
                let mut answer = 0;
                if depth > 0 {
                    let mut next = inner.get(address.get().unwrap())?;
                    next.write_u8(depth - 1)?;
                    next.flush()?;
                    answer = next.read_u8()? + 1;
                }
                conn.write_u8(answer)?;
                conn.flush()?;
            }
            Ok(())
        }));
        own.set(server.address.clone()).unwrap();
        let mut peer = server.connect();
        for _ in 0..10 {
            peer.write_all(&[6]).unwrap();
            let mut answer = [0];
            io::Read::read_exact(&mut peer, &mut answer).unwrap();
            assert_eq!(answer, [6]);
        }
        drop(peer);
        assert_eq!(pool.stats().in_use, 0);
        pool.close();
        server.stop();
    });
}

// ------------------------------------------------------------------------------------- options

#[test]
fn options_that_cannot_hold_are_errors_that_say_which() {
    let builder = || Pool::builder(Dialer::new());
    for (options, name) in [
        (builder().max_total(0), "max_total(0)"),
        (builder().idle_timeout(Duration::ZERO), "idle_timeout(0)"),
        (builder().max_idle(3).max_total(2), "max_idle(3)"),
        (builder().max_total(2).max_idle(3), "max_total(2)"),
    ] {
        let error = options.build().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(name), "{error}");
    }
    // These do hold.
    for options in [
        builder(),
        builder().max_total(1),
        builder().max_idle(0).max_total(1),
        builder().max_idle(2).max_total(2),
        builder().idle_timeout(Duration::MAX).wait(Duration::ZERO),
    ] {
        options.build().unwrap();
    }
}

#[test]
fn options_of_one_pool_are_not_those_of_another() {
    bounded("options", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let builder = Pool::builder(dialer());
        let open = builder.clone().build().unwrap();
        let narrow = builder.max_total(1).build().unwrap();
        let copy = open.clone();
        let one = narrow.get(&server.address).unwrap();
        assert!(narrow.get(&server.address).is_err());
        let others: Vec<_> = (0..3).map(|_| copy.get(&server.address).unwrap()).collect();
        assert_eq!((open.stats().in_use, narrow.stats().in_use), (3, 1));
        drop((one, others));
    });
}

// ------------------------------------------------------------------------------------- the total

#[test]
fn what_is_thrown_away_counts_until_it_is_closed() {
    in_child("what_is_thrown_away_counts_until_it_is_closed", || {
        for unix in [false, true] {
            let transport = if unix {
                Transport::Unix
            } else {
                Transport::Tcp
            };
            let case = Case::new(transport, Kind::Adaptive);
            // A server that answers and keeps its side open, whatever the client does.
            let server = case.serve_with(
                netpoll::EventLoop::builder().half_open(true),
                Script::new().request(echo_frames),
            );
            let dialer = dialer();
            let pool = Pool::builder(dialer.clone()).max_total(2).build().unwrap();
            let address = server.address.clone();
            for round in 0..200 {
                let mut conn = pool.get(&address).unwrap();
                call(&mut conn, b"x").unwrap();
                match round % 4 {
                    0 => conn.discard(),
                    // Not sound: an answer that is not read, output that is not flushed.
                    1 => {
                        conn.write_slice(&frame(b"y")).unwrap();
                        conn.flush().unwrap();
                        conn.fill(1).unwrap();
                    }
                    2 => conn.write_slice(b"not flushed").unwrap(),
                    _ => {
                        let lost = catch_unwind(AssertUnwindSafe(move || {
                            let _conn = conn;
                            panic!("as asked");
                        }));
                        assert!(lost.is_err());
                    }
                }
                let open = dialer.stats().unwrap().active;
                assert!(open <= 2, "{open} connections exist in round {round}");
            }
            let stats = pool.stats();
            assert!(stats.peak <= 2, "{stats:?}");
            assert_eq!((stats.rejected, stats.in_use), (200, 0));
            pool.close();
            server.event_loop.shutdown_forced(Duration::ZERO).ok();
        }
    });
}

#[test]
fn what_was_flushed_before_a_discard_arrives() {
    bounded("flushed", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let pool = pool();
        for _ in 0..20 {
            let mut conn = pool.get(&address).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            let bytes = crate::support::pattern(3, 100_000);
            conn.write_slice(&bytes).unwrap();
            conn.flush().unwrap();
            conn.discard();
            let mut got = Vec::new();
            io::Read::read_to_end(&mut peer, &mut got).unwrap();
            assert!(got == bytes, "{} bytes", got.len());
        }
    });
}

#[test]
fn output_that_a_discard_cuts_does_not_look_complete() {
    bounded("cut", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let pool = Pool::new(dialer().output_limit(64 << 20, netpoll::OnFull::Error));
        let mut conn = pool.get(&address).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        conn.write_slice(&vec![7; 32 << 20]).unwrap();
        assert!(
            !conn.try_flush().unwrap(),
            "the kernel takes less than that"
        );
        conn.discard();
        let error = io::Read::read_to_end(&mut peer, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_connection_that_was_exchanged_is_not_taken_for_the_pools() {
    bounded("exchanged", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool_with(|options| options.max_total(1));
        let mut own = dialer().dial_connection(server.address.clone()).unwrap();
        let mut conn = pool.get(&server.address).unwrap();
        std::mem::swap(&mut *conn, &mut own);
        drop(conn);
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.in_use, stats.rejected), (0, 0, 1));
        // What was the pool's is the user's.
        call(&mut own, b"mine").unwrap();
        call(&mut pool.get(&server.address).unwrap(), b"new").unwrap();
        assert_eq!(pool.stats().dialled, 2);
    });
}

// ------------------------------------------------------------------------------------- waiting

/// Starts a thread that waits in `pool` and then calls `then`; returns when it waits.
fn start_waiting(
    pool: &Pool,
    address: &Address,
    then: impl FnOnce(io::Result<netpoll::Pooled>) + Send + 'static,
) -> thread::JoinHandle<()> {
    let before = pool.stats().waiting;
    let (pool, address) = (pool.clone(), address.clone());
    let asked = pool.clone();
    let thread = thread::spawn(move || then(pool.get(&address)));
    eventually("it waits", || asked.stats().waiting == before + 1);
    thread
}

#[test]
fn those_who_wait_are_served_in_their_order() {
    bounded("order", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        // What comes back is a connection, or a place for one.
        for discards in [false, true] {
            let pool = pool_with(|options| options.max_total(2).wait(LIMIT));
            let held: Vec<_> = (0..2).map(|_| pool.get(&server.address).unwrap()).collect();
            let served = Log::new();
            let waiting: Vec<_> = (0..12)
                .map(|n| {
                    let served = served.clone();
                    start_waiting(&pool, &server.address, move |conn| {
                        let mut conn = conn.unwrap();
                        served.push(n);
                        call(&mut conn, b"x").unwrap();
                        if discards {
                            conn.discard();
                        }
                    })
                })
                .collect();
            let (first, second) = {
                let mut held = held.into_iter();
                (held.next().unwrap(), held.next().unwrap())
            };
            // One connection goes round, so the order in which they are served is that of the queue.
            drop(first);
            let log = served.wait_len(12);
            assert_eq!(log, (0..12).collect::<Vec<_>>());
            drop(second);
            for thread in waiting {
                thread.join().unwrap();
            }
            assert_eq!((pool.stats().waiting, pool.stats().in_use), (0, 0));
        }
    });
}

#[test]
fn later_calls_go_first_as_often_as_promised() {
    bounded("overtaking", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        // How many waiters there are, and how many connections.
        for (waiters, connections) in [(1, 1), (3, 1), (1, 4), (6, 4)] {
            let promised = 12 * connections;
            for round in 0..8 {
                let pool = pool_with(|options| options.max_total(connections).wait(LIMIT));
                let mut held: Vec<_> = (0..connections)
                    .map(|_| pool.get(&server.address).unwrap())
                    .collect();
                let served = Log::new();
                let waiting: Vec<_> = (0..waiters)
                    .map(|n| {
                        let log = served.clone();
                        start_waiting(&pool, &server.address, move |conn| {
                            let _conn = conn.unwrap();
                            log.push(n);
                        })
                    })
                    .collect();
                // This thread runs and the others have to be woken. What it gets while as many wait as before
                // it gets between two services of waiters.
                let (mut still, mut first) = (waiters, 0);
                while still > 0 {
                    drop(held.pop());
                    held.push(pool.get(&server.address).unwrap());
                    let now = pool.stats().waiting;
                    first = if now == still { first + 1 } else { 0 };
                    still = now;
                    assert!(first <= promised, "{waiters}, {connections}, {round}");
                }
                drop(held);
                for thread in waiting {
                    thread.join().unwrap();
                }
                let mut log = served.wait_len(waiters);
                log.sort_unstable();
                assert_eq!(log, (0..waiters).collect::<Vec<_>>());
            }
        }
    });
}

/// How often a thread of this process gave its processor up to wait.
#[cfg(target_os = "linux")]
fn waits_of(thread: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = status
        .lines()
        .find(|l| l.starts_with("voluntary_ctxt_switches"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|count| count.parse().ok())
        .expect("the kernel counts them")
}

#[cfg(target_os = "linux")]
#[test]
fn what_comes_back_wakes_one_waiter_of_its_address_and_no_other() {
    bounded("no herd", || {
        let servers = [Transport::Tcp, Transport::Unix]
            .map(|transport| Case::new(transport, Kind::Adaptive).serve(echo()));
        let pool = pool_with(|options| options.max_total(1).wait(LIMIT));
        let held = pool.get(&servers[0].address).unwrap();
        let ids = Log::new();
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let (pool, address, ids) = (pool.clone(), servers[0].address.clone(), ids.clone());
                crate::support::asleep_in(move || {
                    // SAFETY: it only returns a number.
                    ids.push(unsafe { libc::gettid() });
                    let mut conn = pool.get(&address).unwrap();
                    call(&mut conn, b"x").unwrap();
                })
            })
            .collect();
        let ids = ids.wait_len(6);
        assert_eq!(pool.stats().waiting, 6);
        let before: Vec<_> = ids.iter().map(|id| waits_of(*id)).collect();
        // Many returns at another address.
        for _ in 0..500 {
            call(&mut pool.get(&servers[1].address).unwrap(), b"x").unwrap();
        }
        let after: Vec<_> = ids.iter().map(|id| waits_of(*id)).collect();
        assert_eq!(before, after, "woken for nothing");
        drop(held);
        for thread in waiting {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_waiter_that_is_given_a_dead_connection_makes_a_new_one() {
    bounded("dead", || {
        let handles = Log::new();
        let log = handles.clone();
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let server = case.serve(Script::new().request(echo_frames).connect(move |conn| {
            log.push(conn.handle());
            Ok(())
        }));
        let pool = pool_with(|options| options.max_total(1).wait(LIMIT));
        for _ in 0..20 {
            let mut held = pool.get(&server.address).unwrap();
            call(&mut held, b"x").unwrap();
            let newest = handles.wait_len(1).pop().unwrap();
            let waiting = start_waiting(&pool, &server.address, |conn| {
                call(&mut conn.unwrap(), b"y").unwrap();
            });
            let socket = held.as_fd().try_clone_to_owned().unwrap();
            newest.abort();
            eventually("the reset has come", || has_fin(&socket));
            drop(held);
            waiting.join().unwrap();
            // The next round begins with another connection.
            let conn = pool.get(&server.address).unwrap();
            conn.discard();
        }
        assert!(pool.stats().peak == 1);
    });
}

#[test]
fn a_call_has_a_time_of_its_own() {
    bounded("own time", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let short = Duration::from_millis(30);
        for wait in [None, Some(LIMIT * 10)] {
            let pool = pool_with(|options| {
                let options = options.max_total(1);
                match wait {
                    Some(wait) => options.wait(wait),
                    None => options,
                }
            });
            // Nothing is kept: without time nothing is dialled.
            let error = pool
                .get_timeout(&server.address, Duration::ZERO)
                .unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
            let mut held = pool.get_timeout(&server.address, LIMIT).unwrap();
            call(&mut held, b"x").unwrap();
            let start = Instant::now();
            let error = pool.get_timeout(&server.address, short).unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::PoolExhausted));
            assert!(start.elapsed() >= short);
            let start = Instant::now();
            let error = pool.get_until(&server.address, start + short).unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::PoolExhausted));
            assert!(start.elapsed() >= short);
            // It waits although the pool's callers do not.
            let (other, address) = (pool.clone(), server.address.clone());
            let waiting =
                thread::spawn(move || other.get_timeout(&address, Duration::MAX).map(drop));
            eventually("it waits", || pool.stats().waiting == 1);
            drop(held);
            waiting.join().unwrap().unwrap();
            // What is kept can be had without any time.
            let past = Instant::now();
            call(&mut pool.get_until(&server.address, past).unwrap(), b"y").unwrap();
            assert_eq!(pool.stats().dialled, 1);
        }
    });
}

#[test]
fn the_time_of_a_call_bounds_its_dial() {
    bounded("dial", || {
        let mute = crate::support::Mute::new();
        let pool = Pool::new(Dialer::new());
        let short = Duration::from_millis(40);
        let start = Instant::now();
        let error = pool.get_timeout(&mute.address.into(), short).unwrap_err();
        assert!(start.elapsed() >= short);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout), "{error}");
        // The dialer's own holds as well.
        let pool = Pool::new(Dialer::new().connect_timeout(short));
        let error = pool
            .get_timeout(&mute.address.into(), LIMIT * 10)
            .unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout), "{error}");
        assert_eq!(pool.stats().in_use, 0);
    });
}

// ------------------------------------------------------------------------------------- a fresh start

#[test]
fn the_next_user_has_the_dialers_timeouts_and_no_deadline() {
    every_blocking(|case| {
        let server = case.serve(echo());
        let pool = pool_with(|options| options.max_total(1));
        let past = || Some(Instant::now());
        let short = Some(Duration::from_nanos(1));
        type Change = fn(&mut Connection, Option<Instant>, Option<Duration>);
        let changes: [Change; 5] = [
            |conn, at, _| conn.set_read_deadline(at),
            |conn, _, time| conn.set_read_timeout(time),
            |conn, at, _| conn.set_write_deadline(at),
            |conn, _, time| conn.set_write_timeout(time),
            |conn, _, time| conn.set_idle_timeout(time),
        ];
        for change in changes {
            change(&mut pool.get(&server.address).unwrap(), past(), short);
            let mut conn = pool.get(&server.address).unwrap();
            // More than the sockets hold, so that both directions wait.
            let body = crate::support::pattern(1, 3 << 20);
            let handle = conn.handle();
            thread::scope(|scope| {
                scope.spawn(|| handle.send(frame(&body)).unwrap());
                assert!(conn.next(body.len() + 4).unwrap() == frame(&body));
            });
            conn.write_slice(&frame(&body)).unwrap();
            conn.try_flush().unwrap();
            assert!(conn.next(body.len() + 4).unwrap() == frame(&body));
            // The kernel has it all, which a poller's thread may be about to note.
            eventually("nothing is queued", || conn.stats().queued == 0);
        }
        assert_eq!((pool.stats().dialled, pool.stats().rejected), (1, 0));
        pool.close();
        server.stop();
    });
}

#[test]
fn close_callbacks_of_the_last_user_are_dropped() {
    every(|case| {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
                if self.0.load(SeqCst) % 2 == 0 {
                    panic!("as asked");
                }
            }
        }
        let server = case.serve(echo());
        let pool = pool();
        let (called, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for round in 0..10 {
            let mut conn = pool.get(&server.address).unwrap();
            for _ in 0..2 {
                let (called, held) = (Arc::clone(&called), Counted(Arc::clone(&dropped)));
                conn.on_close(move |_| {
                    let _held = held;
                    called.fetch_add(1, SeqCst);
                });
            }
            call(&mut conn, b"x").unwrap();
            assert_eq!(dropped.load(SeqCst), 2 * round);
        }
        assert_eq!((called.load(SeqCst), dropped.load(SeqCst)), (0, 20));
        // Those of the one who has it when it ends are called.
        let conn = pool.get(&server.address).unwrap();
        let ended = Log::new();
        let log = ended.clone();
        conn.on_close(move |reason| log.push(reason));
        conn.discard();
        assert_eq!(ended.wait_len(1), [CloseReason::Local]);
        assert_eq!((called.load(SeqCst), pool.stats().dialled), (0, 1));
        pool.close();
        server.stop();
    });
}

#[test]
fn a_timer_of_the_last_user_never_meets_the_next() {
    bounded("timer", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool();
        let mut conn = pool.get(&server.address).unwrap();
        let id = conn.id();
        let timer = conn.handle().after(LIMIT, |conn| conn.close());
        call(&mut conn, b"x").unwrap();
        assert!(timer.cancel());
        drop(conn);
        let conn = pool.get(&server.address).unwrap();
        assert_eq!(conn.id(), id, "no timer is set any more");
        let timer = conn.handle().after(LIMIT, |conn| conn.close());
        drop(conn);
        assert_ne!(pool.get(&server.address).unwrap().id(), id);
        assert_eq!(pool.stats().rejected, 1);
        drop(timer);
    });
}

#[test]
fn output_that_was_promised_never_meets_the_next() {
    bounded("hold", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = pool();
        let mut conn = pool.get(&server.address).unwrap();
        let (id, hold) = (conn.id(), conn.handle().hold());
        call(&mut conn, b"x").unwrap();
        drop(conn);
        let conn = pool.get(&server.address).unwrap();
        assert_ne!(conn.id(), id);
        let (id, other) = (conn.id(), conn.handle().hold());
        drop((hold, other, conn));
        assert_eq!(pool.get(&server.address).unwrap().id(), id, "all were kept");
        assert_eq!(pool.stats().rejected, 1);
    });
}

#[test]
fn a_kept_connection_that_an_old_handle_closes_is_closed() {
    bounded("old handle", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let dialer = dialer();
        let pool = Pool::new(dialer.clone());
        for close in [true, false] {
            let mut conn = pool.get(&server.address).unwrap();
            call(&mut conn, b"x").unwrap();
            let handle = conn.handle();
            drop(conn);
            assert_eq!(pool.stats().idle, 1);
            if close {
                handle.close();
            } else {
                handle.abort();
            }
            eventually("it is closed", || dialer.stats().unwrap().active == 0);
            assert_eq!(handle.state(), ConnectionState::Disconnected);
            assert!(handle.done().wait_timeout(LIMIT).is_some());
            eventually("the server sees it", || {
                server.event_loop.stats().active == 0
            });
            assert_eq!(pool.stats().idle, 0);
        }
    });
}

/// A loan whose user does nothing with it ends as that is said.
fn loan_ends_while_idle(case: Case, how: &str) {
    let servers = Log::new();
    let server = case.serve(giving(&servers));
    let dialer = dialer();
    let pool = Pool::new(dialer.clone());
    drop(pool.get(&server.address).unwrap());
    let mut conn = pool.get(&server.address).unwrap();
    assert_eq!(pool.stats().reused, 1);
    let theirs: ConnectionHandle = servers.wait_len(1).remove(0);
    let (handle, ends) = (conn.handle(), Log::new());
    let log = ends.clone();
    conn.on_close(move |reason| log.push(reason));
    match how {
        "close" => handle.close(),
        "abort" => handle.abort(),
        "idle" => conn.set_idle_timeout(Some(Duration::from_millis(50))),
        "fin" => theirs.close(),
        _ => theirs.abort(),
    }
    let done = handle.done().wait_timeout(LIMIT).expect("an end");
    assert_eq!(done.is_ok(), matches!(how, "close" | "abort"), "{done:?}");
    let reason = ends.wait_len(1)[0];
    match how {
        "close" => assert_eq!(reason, CloseReason::Local),
        "abort" => assert_eq!(reason, CloseReason::Abort),
        "idle" => assert_eq!(reason, CloseReason::IdleTimeout),
        "fin" => assert_eq!(reason, CloseReason::Peer),
        _ => assert!(matches!(reason, CloseReason::Error(_) | CloseReason::Peer)),
    }
    assert!(theirs.done().wait_timeout(LIMIT).is_some(), "its peer");
    eventually("it is closed", || dialer.stats().unwrap().active == 0);
    assert!(conn.fill(1).is_err());
    assert!(conn.write_u8(0).and_then(|()| conn.flush()).is_err());
    drop(conn);
    assert_eq!(ends.len(), 1);
    eventually("its place is free", || {
        let stats = pool.stats();
        (stats.in_use, stats.closing, stats.idle) == (0, 0, 0)
    });
    server.stop();
}

#[test]
fn a_loan_ends_while_its_user_is_idle() {
    for transport in [Transport::Tcp, Transport::Unix] {
        for how in ["close", "abort", "idle", "fin", "reset"] {
            bounded(&format!("{transport:?}, {how}"), move || {
                loan_ends_while_idle(Case::new(transport, Kind::Adaptive), how);
            });
        }
    }
}
