//! A caller that waits for input on a connection of its own may wait inside the receive: whatever that
//! does to the descriptor, nobody else gets to see, and everything that ends a wait ends this one.

use crate::support::{
    LIMIT, Peer, asleep_in, bounded, descriptors, fresh_path, in_child, let_pass, outlast, pattern,
    settled_descriptors, soon, test_path,
};
use netpoll::{
    Address, CloseReason, Connection, Dialer, Error, EventLoop, Listener, Pool, Relay, handler_fn,
};
use socket2::SockRef;
use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// So many waits are certainly enough for the next one to be inside the receive.
const WARM: usize = 12;

/// A connection and its peer, over TCP or a unix socket.
fn pair_of(unix: bool, dialer: &Dialer) -> (Connection, Peer) {
    if !unix {
        return crate::support::socket_pair(|to| dialer.dial_connection(to));
    }
    let path = fresh_path();
    let listener = UnixListener::bind(&path).unwrap();
    let conn = dialer.dial_connection(Address::Unix(path.clone())).unwrap();
    let (stream, _) = listener.accept().unwrap();
    fs::remove_file(path).unwrap();
    let peer = Peer::Unix(stream);
    peer.set_limit(Some(LIMIT));
    (conn, peer)
}

/// Calls and answers until waits are inside the receive.
fn warm(conn: &mut Connection, peer: &mut Peer) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut got = [0];
            for _ in 0..WARM {
                peer.read_exact(&mut got).unwrap();
                peer.write_all(&got).unwrap();
            }
        });
        for n in 0..WARM {
            conn.write_slice(&[n as u8]).unwrap();
            conn.flush().unwrap();
            assert_eq!(conn.read_u8().unwrap(), n as u8);
        }
    });
}

fn warm_pair(unix: bool, dialer: &Dialer) -> (Connection, Peer) {
    let (mut conn, mut peer) = pair_of(unix, dialer);
    warm(&mut conn, &mut peer);
    (conn, peer)
}

fn patient() -> Dialer {
    Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT)
}

fn is_non_blocking(fd: BorrowedFd<'_>) -> bool {
    is_non_blocking_by(
        &fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap(),
    )
}

fn is_non_blocking_by(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    flags & libc::O_NONBLOCK != 0
}

/// Whether the descriptor of this end of a TCP connection is in blocking mode. It is found among those of
/// the process by its two addresses, for a connection that is asked for its descriptor changes the mode.
fn blocks(conn: &Address, peer: &Address) -> bool {
    let ends = [conn, peer].map(|end| end.as_socket_addr());
    let fd = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|&fd| {
            // SAFETY: asking for addresses changes nothing, whatever has the number meanwhile; the
            // connection keeps the one that is looked for open.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let socket = SockRef::from(&fd);
            let found = [socket.local_addr(), socket.peer_addr()];
            found.map(|end| end.ok().and_then(|end| end.as_socket())) == ends
        });
    let fd = fd.expect("the connection is open");
    !is_non_blocking_by(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap())
}

fn ends_by(
    unix: bool,
    act: impl FnOnce(&netpoll::ConnectionHandle) + Send,
    delay: Duration,
) -> io::Error {
    let (mut conn, peer) = warm_pair(unix, &patient());
    let handle = conn.handle();
    let (tell, told) = mpsc::channel();
    let error = thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            tell.send(()).unwrap();
            conn.fill(1).unwrap_err()
        });
        told.recv().unwrap();
        // Before the wait, in its first part or in its second: the outcome is the same.
        let_pass(delay);
        act(&handle);
        waiting.join().unwrap()
    });
    drop(peer);
    error
}

#[test]
fn a_close_from_elsewhere_ends_the_wait_with_its_reason() {
    bounded("close", || {
        for unix in [false, true] {
            for delay in [0, 2, 10, 40].map(Duration::from_millis) {
                let error = ends_by(unix, |handle| handle.close(), delay);
                let reason = Error::Closed(CloseReason::Local);
                assert_eq!(Error::from_io(&error), Some(reason), "{delay:?}");
                assert_eq!(error.kind(), io::ErrorKind::NotConnected);
                let error = ends_by(unix, |handle| handle.abort(), delay);
                let reason = Error::Closed(CloseReason::Abort);
                assert_eq!(Error::from_io(&error), Some(reason), "{delay:?}");
            }
        }
    });
}

#[test]
fn a_close_from_elsewhere_ends_the_wait_soon() {
    bounded("soon", || {
        for unix in [false, true] {
            soon("a close", 21, Duration::from_millis(50), || {
                let (mut conn, peer) = warm_pair(unix, &patient());
                let handle = conn.handle();
                let waiting = asleep_in(move || {
                    assert!(conn.fill(1).is_err());
                    Instant::now()
                });
                let before = Instant::now();
                handle.close();
                let at = waiting.join().unwrap();
                drop(peer);
                at.saturating_duration_since(before)
            });
        }
    });
}

#[test]
fn a_pollers_end_ends_the_wait() {
    bounded("poller", || {
        for unix in [false, true] {
            let group = netpoll::PollerGroup::new(1, netpoll::Balance::default()).unwrap();
            let (mut conn, peer) = warm_pair(unix, &patient().pollers(group.clone()));
            let waiting = thread::spawn(move || conn.fill(1).unwrap_err());
            group.close();
            let error = waiting.join().unwrap();
            let reason = Error::Closed(CloseReason::Poller);
            assert_eq!(Error::from_io(&error), Some(reason));
            drop(peer);
        }
    });
}

#[test]
fn the_peers_end_ends_the_wait_after_what_came_before() {
    bounded("peer", || {
        for unix in [false, true] {
            let (mut conn, mut peer) = warm_pair(unix, &patient());
            let waiting = thread::spawn(move || {
                let error = conn.fill(5).unwrap_err();
                let error = Error::from_io(&error);
                let end = Error::PeerClosed {
                    wanted: 5,
                    available: 3,
                };
                assert_eq!(error, Some(end));
                assert_eq!(conn.next(3).unwrap(), b"end");
            });
            peer.write_all(b"end").unwrap();
            drop(peer);
            waiting.join().unwrap();
        }
    });
}

#[test]
fn a_write_that_fails_elsewhere_ends_the_wait() {
    bounded("halves", || {
        for unix in [false, true] {
            let (conn, peer) = warm_pair(unix, &patient());
            let (mut reading, mut writing) = conn.into_split();
            let waiting = thread::spawn(move || reading.fill(1).unwrap_err());
            drop(peer);
            // The peer's end is seen by the reader, or by the writer first.
            while writing
                .write_slice(&[1; 1000])
                .and_then(|()| writing.flush())
                .is_ok()
            {}
            waiting.join().unwrap();
        }
    });
}

#[test]
fn timeouts_and_deadlines_are_never_early_and_may_change_with_each_call() {
    bounded("timeouts", || {
        for unix in [false, true] {
            let (mut conn, mut peer) = warm_pair(unix, &patient());
            for time in [5, 39, 41, 45, 60, 90, 0].map(Duration::from_millis) {
                conn.set_read_timeout(Some(time));
                let start = Instant::now();
                let error = conn.fill(1).unwrap_err();
                assert!(start.elapsed() >= time, "{time:?}: {:?}", start.elapsed());
                assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));

                let start = Instant::now();
                conn.set_read_deadline(Some(start + time));
                let error = conn.fill(1).unwrap_err();
                assert!(start.elapsed() >= time, "{time:?}: {:?}", start.elapsed());
                assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));

                // Back to waits inside the receive.
                conn.set_read_timeout(Some(LIMIT));
                warm(&mut conn, &mut peer);
            }
            // And for ever is for ever: longer than any slice.
            conn.set_read_timeout(None);
            let waiting = asleep_in(move || conn.read_u8().unwrap());
            outlast(Duration::from_millis(70));
            peer.write_all(b"!").unwrap();
            assert_eq!(waiting.join().unwrap(), b'!');
        }
    });
}

#[test]
fn answers_of_every_delay_arrive() {
    bounded("delays", || {
        for unix in [false, true] {
            let (mut conn, mut peer) = warm_pair(unix, &patient());
            let delays = [
                0, 30, 5, 50, 0, 0, 19, 20, 21, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22,
            ];
            let answering = thread::spawn(move || {
                for delay in delays {
                    let mut got = [0; 8];
                    peer.read_exact(&mut got).unwrap();
                    let_pass(Duration::from_millis(delay));
                    peer.write_all(&got).unwrap();
                }
                peer
            });
            for n in 0..delays.len() as u64 {
                conn.write_slice(&n.to_be_bytes()).unwrap();
                conn.flush().unwrap();
                assert_eq!(conn.next(8).unwrap(), n.to_be_bytes());
            }
            drop(answering.join().unwrap());
        }
    });
}

#[test]
fn large_answers_arrive_whole_after_small_ones() {
    bounded("large", || {
        let (mut conn, mut peer) = warm_pair(false, &patient());
        let answering = thread::spawn(move || {
            for len in [1, 100, 20_000, 70_000, 1_500_000, 7] {
                peer.write_all(&pattern(len as u64, len)).unwrap();
                peer.read_exact(&mut [0]).unwrap();
            }
        });
        for len in [1, 100, 20_000, 70_000, 1_500_000, 7] {
            assert!(conn.next(len).unwrap() == pattern(len as u64, len), "{len}");
            conn.write_slice(b"k").unwrap();
            conn.flush().unwrap();
        }
        answering.join().unwrap();
    });
}

#[test]
fn try_operations_never_wait() {
    bounded("try", || {
        for unix in [false, true] {
            let (mut conn, mut peer) = warm_pair(unix, &Dialer::new());
            // A wait inside the receive would be for ever, or at least a slice each.
            soon("ten tries", 8, Duration::from_millis(50), || {
                let start = Instant::now();
                for _ in 0..10 {
                    assert!(!conn.try_fill(1).unwrap());
                }
                start.elapsed()
            });
            warm(&mut conn, &mut peer);
        }
    });
}

#[test]
fn a_descriptor_that_is_shown_is_non_blocking_and_stays_so() {
    bounded("shown", || {
        for unix in [false, true] {
            let (mut conn, mut peer) = warm_pair(unix, &patient());
            assert!(is_non_blocking(conn.as_fd()));
            let copy = conn.as_fd().try_clone_to_owned().unwrap();
            warm(&mut conn, &mut peer);
            assert!(is_non_blocking(copy.as_fd()));
        }
    });
}

#[test]
fn the_mode_is_back_before_anybody_else_has_the_descriptor() {
    bounded("mode", || {
        for way in 0..3 {
            let (mut conn, mut peer) = pair_of(false, &patient());
            let ends = (conn.local_addr().unwrap(), conn.peer_addr().clone());
            let blocks = || blocks(&ends.0, &ends.1);
            assert!(!blocks());
            warm(&mut conn, &mut peer);
            assert!(blocks(), "or the other tests show nothing");
            let kept: Box<dyn std::any::Any> = match way {
                0 => Box::new(conn.attach(handler_fn(|_| Ok(()))).unwrap()),
                1 => Box::new(conn.detach().unwrap()),
                _ => {
                    conn.as_fd();
                    Box::new(conn)
                }
            };
            assert!(!blocks(), "{way}");
            drop((kept, peer));
        }
    });
}

#[test]
fn a_descriptor_of_the_users_keeps_its_mode_and_its_timeout() {
    bounded("adopted", || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let time = Some(Duration::from_secs(7));
        ours.set_read_timeout(time).unwrap();
        let copy = ours.try_clone().unwrap();
        let mut conn = patient().adopt(ours).unwrap();
        warm(&mut conn, &mut Peer::Unix(theirs));
        assert!(is_non_blocking(copy.as_fd()));
        assert_eq!(copy.read_timeout().unwrap(), time);
    });
}

#[test]
fn a_detached_descriptor_is_as_it_was_made() {
    bounded("detached", || {
        let (conn, mut peer) = warm_pair(false, &patient());
        let (fd, rest) = conn.detach().unwrap();
        assert!(rest.is_empty());
        assert!(is_non_blocking(fd.as_fd()));
        let mut stream = TcpStream::from(fd);
        assert_eq!(stream.read_timeout().unwrap(), None);
        // In the user's hands it waits as long as the user says.
        stream.set_nonblocking(false).unwrap();
        let reading = asleep_in(move || {
            let mut got = [0];
            stream.read_exact(&mut got).unwrap();
            got[0]
        });
        outlast(Duration::from_millis(50));
        peer.write_all(b"d").unwrap();
        assert_eq!(reading.join().unwrap(), b'd');

        let (conn, mut peer) = warm_pair(true, &patient());
        let mut stream = UnixStream::from(conn.detach().unwrap().0);
        assert!(is_non_blocking(stream.as_fd()));
        assert_eq!(stream.read_timeout().unwrap(), None);
        peer.write_all(b"u").unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut got = [0];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"u");
    });
}

#[test]
fn a_handler_gets_a_connection_that_never_holds_its_poller_up() {
    bounded("attach", || {
        let group = netpoll::PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let dialer = patient().pollers(group).dispatch(netpoll::Dispatch::Inline);
        for unix in [false, true] {
            let (first, mut peer) = warm_pair(unix, &dialer);
            let (second, mut other) = warm_pair(unix, &dialer);
            let echo = || {
                handler_fn(|conn| {
                    let all = conn.slice(conn.available())?;
                    conn.append(all)?;
                    conn.try_flush().map(drop)
                })
            };
            let handles = [
                first.attach(echo()).unwrap(),
                second.attach(echo()).unwrap(),
            ];
            for n in 0..50 {
                for peer in [&mut peer, &mut other] {
                    peer.write_all(&[n]).unwrap();
                    let mut got = [0];
                    peer.read_exact(&mut got).unwrap();
                    assert_eq!(got, [n]);
                }
            }
            for handle in handles {
                handle.close();
                handle.done().wait().unwrap();
            }
        }
    });
}

/// A server that echoes, at a unix socket or a TCP one.
fn echo_server(unix: bool) -> (EventLoop, Address) {
    let events = EventLoop::new(handler_fn(|conn| {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }))
    .unwrap();
    let address = if unix {
        Address::Unix(fresh_path())
    } else {
        Address::from(([127, 0, 0, 1], 0))
    };
    let listener = Listener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    events.serve_in_background(listener).unwrap();
    (events, address)
}

#[test]
fn pooled_connections_go_from_calls_to_relays() {
    bounded("relay", || {
        for unix in [false, true] {
            let (events, address) = echo_server(unix);
            let pool = Pool::new(patient());
            for n in 0..20 {
                let mut conn = pool.get(&address).unwrap();
                conn.write_slice(&[n]).unwrap();
                conn.flush().unwrap();
                assert_eq!(conn.read_u8().unwrap(), n);
            }
            assert_eq!(pool.stats().dialled, 1);
            let (front, mut peer) = warm_pair(false, &patient());
            let relayed = Relay::builder()
                .start(front, pool.get(&address).unwrap())
                .unwrap();
            // Enough that it is moved by the kernel.
            let bytes = pattern(5, 8 << 20);
            let mut sending = match &peer {
                Peer::Tcp(stream) => stream.try_clone().unwrap(),
                Peer::Unix(_) => unreachable!("a TCP peer was asked for"),
            };
            thread::scope(|scope| {
                scope.spawn(|| {
                    sending.write_all(&bytes).unwrap();
                    sending.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                peer.read_to_end(&mut got).unwrap();
                assert!(got == bytes);
            });
            drop(peer);
            relayed.wait().unwrap();
            pool.close();
            events.shutdown(LIMIT).unwrap();
        }
    });
}

#[test]
fn output_goes_on_while_the_owner_waits() {
    bounded("both ways", || {
        for unix in [false, true] {
            let (conn, mut peer) = warm_pair(unix, &patient());
            let handle = conn.handle();
            let (mut reading, mut writing) = conn.into_split();
            let bytes = pattern(9, 4 << 20);
            thread::scope(|scope| {
                let waiting = scope.spawn(move || reading.read_u8().unwrap());
                scope.spawn(|| {
                    writing.write_slice(&bytes).unwrap();
                    writing.flush().unwrap();
                    handle
                        .send_bytes(netpoll::Bytes::from_static(b"end"))
                        .unwrap();
                });
                let mut got = vec![0; bytes.len() + 3];
                peer.read_exact(&mut got).unwrap();
                assert!(got[..bytes.len()] == bytes && got.ends_with(b"end"));
                assert!(!waiting.is_finished());
                peer.write_all(b"w").unwrap();
                assert_eq!(waiting.join().unwrap(), b'w');
            });
        }
    });
}

#[test]
fn a_closed_connection_lingers_without_holding_its_poller_up() {
    bounded("linger", || {
        let group = netpoll::PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let dialer = patient().pollers(group);
        for unix in [false, true] {
            let (conn, mut peer) = warm_pair(unix, &dialer);
            let done = conn.handle().done();
            // What the peer still sends is read and dropped by the only poller.
            conn.close().unwrap();
            peer.write_all(b"late").unwrap();
            done.wait().unwrap();
            let (mut next, mut other) = warm_pair(unix, &dialer);
            warm(&mut next, &mut other);
            peer.expect_end();
        }
    });
}

/// Stands before and behind the calls that are counted: a file that is not there is looked for.
const MARK: &str = "/netpoll-counted-calls";

/// Calls on a pooled connection, of which the system calls are counted.
const COUNTED: usize = 60;

#[cfg(target_os = "linux")]
#[test]
fn a_pooled_call_is_three_system_calls() {
    let name = "a_pooled_call_is_three_system_calls";
    if std::env::var_os("NETPOLL_COUNTED").is_some() {
        return bounded("counted", || {
            [false, true].into_iter().for_each(pooled_calls)
        });
    }
    let file = fresh_path();
    let traced = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&file)
        .arg(std::env::current_exe().unwrap())
        .args([test_path(name).as_str(), "--exact", "--test-threads=1"])
        .env("NETPOLL_COUNTED", "1")
        .output();
    let Ok(traced) = traced else {
        return eprintln!("skipped: strace is not installed");
    };
    let lines = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    if !lines.contains(MARK) {
        // Where a process may not be traced it does not run.
        assert!(!traced.status.success(), "{traced:?}");
        return eprintln!("skipped: strace may not trace");
    }
    assert!(traced.status.success(), "{traced:?}");
    // The thread's calls between two marks, of a call on a connection each.
    let (mut thread, mut calls) = ("", Vec::<Vec<String>>::new());
    for line in lines.lines() {
        let Some((of, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim();
        if call.contains(MARK) {
            thread = of;
            calls.push(Vec::new());
        } else if let (true, Some(last)) = (of == thread, calls.last_mut()) {
            match last.last_mut() {
                // One that others run into takes two lines; a mark may too.
                Some(begun) if call.contains(" resumed>") => begun.push_str(call),
                None if call.contains(" resumed>") => {}
                _ => last.push(call.to_owned()),
            }
        }
    }
    // Behind the last mark of each transport other things are done.
    for (transport, calls) in ["TCP", "unix"].iter().zip(calls.chunks(COUNTED + 1)) {
        let is_three = |call: &&Vec<String>| {
            let begins = ["recv", "send", "recv"];
            call.len() == 3
                && call[0].contains("MSG_PEEK")
                && call
                    .iter()
                    .zip(begins)
                    .all(|(call, begin)| call.starts_with(begin))
        };
        let calls = &calls[..COUNTED];
        // On a busy machine an answer takes longer than the slice of a receive, and is polled for.
        let slow = |call: &&Vec<String>| call.iter().any(|call| call.starts_with("poll("));
        assert!(
            calls.iter().any(|call| is_three(&call)),
            "{transport}: {:?}",
            calls[0]
        );
        let others: Vec<_> = calls
            .iter()
            .filter(|call| !is_three(call) && !slow(call))
            .collect();
        assert!(others.len() < COUNTED / 4, "{transport}: {:?}", others[0]);
    }
}

fn pooled_calls(unix: bool) {
    let (server, address) = echo_server(unix);
    let pool = Pool::new(patient());
    let call = || {
        let mut conn = pool.get(&address).unwrap();
        conn.write_slice(b"q").unwrap();
        conn.flush().unwrap();
        assert_eq!(conn.next(1).unwrap(), b"q");
    };
    (0..WARM).for_each(|_| call());
    for _ in 0..COUNTED {
        assert!(fs::metadata(MARK).is_err());
        call();
    }
    assert!(fs::metadata(MARK).is_err());
    pool.close();
    server.shutdown(LIMIT).unwrap();
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn a_storm_of_signals_neither_ends_a_wait_nor_prolongs_it() {
    in_child(
        "a_storm_of_signals_neither_ends_a_wait_nor_prolongs_it",
        || {
            // SAFETY: plain integers, for which zeros are a value.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = nothing as *const () as libc::sighandler_t;
            // Without SA_RESTART: every call of the system may be interrupted.
            // SAFETY: the handler does nothing, the structure is ours.
            let set =
                unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
            assert_eq!(set, 0);
            for unix in [false, true] {
                let (mut conn, mut peer) = warm_pair(unix, &patient());
                for time in [60, 150].map(Duration::from_millis) {
                    warm(&mut conn, &mut peer);
                    conn.set_read_timeout(Some(time));
                    let (tell, told) = mpsc::channel();
                    thread::scope(|scope| {
                        let waiting = scope.spawn(|| {
                            // SAFETY: it has no conditions.
                            tell.send(unsafe { libc::pthread_self() }).unwrap();
                            let start = Instant::now();
                            let error = conn.fill(1).unwrap_err();
                            assert!(start.elapsed() >= time, "{:?}", start.elapsed());
                            assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
                        });
                        let thread = told.recv().unwrap();
                        while !waiting.is_finished() {
                            // SAFETY: the thread is joined later, so its number is its own until then.
                            let sent = unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                            assert_eq!(sent, 0);
                            thread::sleep(Duration::from_micros(200));
                        }
                        // It ended although the storm went on.
                        waiting.join().unwrap();
                    });
                    conn.set_read_timeout(Some(LIMIT));
                }
            }
        },
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_that_waits_has_one_descriptor_for_it() {
    in_child("a_thread_that_waits_has_one_descriptor_for_it", || {
        let dialer = patient();
        let mut kept = vec![pair_of(true, &dialer)];
        for round in 0..3 {
            let (mut conn, mut peer) = pair_of(true, &dialer);
            let before = descriptors();
            // A first wait is polled for, so the bell is there when it sleeps.
            let waiting = asleep_in(move || {
                conn.read_u8().unwrap();
                conn
            });
            assert_eq!(descriptors(), before + 1, "round {round}");
            peer.write_all(b"x").unwrap();
            let conn = waiting.join().unwrap();
            // It is closed with the thread, which may take a moment after the join.
            settled_descriptors(before);
            kept.push((conn, peer));
        }
    });
}
