//! The client pool: what is kept, what is handed out, and the limits.

mod support;

use netpoll::{Address, Connection, Dialer, Error, Pool, handler_fn};
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
    time::Duration,
};
use support::{
    Case, Kind, LIMIT, Log, Script, Transport, bounded, decode, echo, echo_frames, eventually,
    every, frame, in_child, on_tcp, settled_descriptors,
};

fn pool() -> Pool {
    Pool::new(
        Dialer::new()
            .connect_timeout(LIMIT)
            .read_timeout(LIMIT)
            .write_timeout(LIMIT),
    )
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
        assert_eq!(stats.discarded + stats.rejected + stats.idle as u64, 30);
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
        let pool = pool().max_total(1);
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
        let pool = pool().max_total(1);
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
        let pool = pool().max_idle(3);
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
        let pool = pool().max_total(2);
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
        let pool = pool().max_total(1).wait(LIMIT);
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
        let short = Pool::new(Dialer::new())
            .max_total(1)
            .wait(Duration::from_millis(20));
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
        let pool = pool().max_total(4).max_idle(2).wait(LIMIT);
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
        let pool = pool().max_total(1);
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
        let pool = pool().idle_timeout(Duration::ZERO);
        let first = pool.get(&server.address).unwrap().id();
        let second = pool.get(&server.address).unwrap().id();
        assert_ne!(first, second);
        assert_eq!(pool.stats().discarded, 1);
        assert_eq!(pool.evict(), 1);
        assert_eq!(pool.stats().idle, 0);
        eventually("both are closed", || server.event_loop.stats().active == 0);
    });
}

#[test]
fn evict_closes_what_is_dead_and_keeps_the_rest() {
    every(|case| {
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
        drop(conns);
        assert_eq!(pool.evict(), 0);
        for handle in &handles.wait_len(4)[..2] {
            handle.close();
            handle.done().wait().unwrap();
        }
        let mut evicted = 0;
        eventually("two are dead", || {
            evicted += pool.evict();
            evicted == 2
        });
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
        let pool = pool().max_total(1).wait(LIMIT * 3);
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
        assert_eq!(pool.stats().discarded, 5);
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
        let before = support::descriptors();
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
