//! The longest and shortest times, stopped processes, storms of signals.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, echo, echo_frames, every,
    frame, in_child, let_pass, only_test, pair, pattern,
};
use netpoll::{
    Address, Balance, CloseReason, Dialer, Dispatch, Error, EventLoop, OnFull, PollerGroup, Pool,
    handler_fn,
};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

#[test]
fn endless_times_are_endless() {
    every(|case| {
        let most = Duration::MAX;
        let server = case.serve_with(
            case.builder()
                .read_timeout(most)
                .write_timeout(most)
                .idle_timeout(most)
                .linger(most, usize::MAX),
            echo(),
        );
        let mut peer = server.connect();
        peer.ping(b"x");
        let dialer = Dialer::new()
            .connect_timeout(most)
            .read_timeout(most)
            .write_timeout(most)
            .idle_timeout(most)
            .linger(most, usize::MAX);
        let pool = Pool::builder(dialer)
            .idle_timeout(most)
            .wait(most)
            .max_total(1)
            .build()
            .unwrap();
        for _ in 0..3 {
            let mut conn = pool.get(&server.address).unwrap();
            conn.write_slice(&frame(b"x")).unwrap();
            conn.flush().unwrap();
            conn.skip(5).unwrap();
        }
        pool.close();
        drop(peer);
        server.event_loop.shutdown(most).unwrap();
    });
}

#[test]
fn numbers_of_pollers_that_make_no_sense_are_errors() {
    for pollers in [0, 8193, 1 << 40, usize::MAX] {
        let error = EventLoop::builder()
            .pollers(pollers)
            .build(echo())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{pollers}");
    }
}

#[test]
fn the_largest_numbers_are_no_limits() {
    let kinds = [
        Dispatch::Adaptive,
        Dispatch::Workers {
            max: usize::MAX,
            keep_alive: Duration::MAX,
        },
    ];
    for dispatch in kinds {
        bounded("numbers", move || {
            let most = usize::MAX;
            let builder = EventLoop::builder()
                .pollers(1)
                .dispatch(dispatch)
                .max_connections(most)
                .input_limits(most, most)
                .output_limit(most, OnFull::Block)
                .output_messages(most);
            let server = Server::start(Transport::Tcp, builder, echo());
            let dialer = Dialer::new()
                .input_limits(most, most)
                .output_limit(most, OnFull::Block);
            let pool = Pool::builder(dialer)
                .max_idle(most)
                .max_total(most)
                .build()
                .unwrap();
            for _ in 0..3 {
                let mut conn = pool.get(&server.address).unwrap();
                conn.write_slice(&frame(b"x")).unwrap();
                conn.flush().unwrap();
                conn.skip(5).unwrap();
            }
            pool.close();
            server.stop();
        });
    }
}

#[test]
fn far_deadlines_are_far() {
    bounded("deadlines", || {
        let (mut conn, mut peer) = pair();
        // As far as the clock reaches, and the number of milliseconds that poll(2) cannot take.
        for far in [
            Duration::from_secs(40 * 86_400),
            Duration::from_secs(1 << 40),
        ] {
            let at = Instant::now().checked_add(far);
            conn.set_read_deadline(at);
            conn.set_write_deadline(at);
            conn.set_read_timeout(Some(far));
            conn.set_write_timeout(Some(far));
            let mut sender = peer.try_clone();
            let sending = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                sender.write_all(b"late").unwrap();
            });
            assert_eq!(conn.next(4).unwrap(), b"late");
            sending.join().unwrap();
            conn.write_bytes(pattern(1, 8 << 20).into()).unwrap();
            let flushing = thread::spawn(move || {
                conn.flush().unwrap();
                conn
            });
            let mut got = vec![0; 8 << 20];
            peer.read_exact(&mut got).unwrap();
            assert!(got == pattern(1, 8 << 20));
            conn = flushing.join().unwrap();
        }
    });
}

#[test]
fn the_shortest_times_end_at_once() {
    bounded("short", || {
        for short in [Duration::ZERO, Duration::from_nanos(1)] {
            let (mut conn, mut peer) = pair();
            conn.set_read_timeout(Some(short));
            let error = conn.fill(1).unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
            peer.write_all(b"here").unwrap();
            crate::support::eventually("the bytes", || conn.fill(4).is_ok());
            assert_eq!(conn.next(4).unwrap(), b"here");
            conn.set_write_timeout(Some(short));
            conn.write_str("fits").unwrap();
            conn.flush().unwrap();
            conn.write_bytes(vec![0; 24 << 20].into()).unwrap();
            let error = conn.flush().unwrap_err();
            assert!(matches!(
                Error::from_io(&error),
                Some(Error::WriteTimeout { .. })
            ));
            let mut got = [0; 4];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"fits");
            // The connection has ended for its owner, and says so.
            assert!(conn.handle().done().wait().is_err());
        }
    });
}

#[test]
fn the_shortest_idle_time_is_no_time() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().idle_timeout(Duration::from_nanos(1)),
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        server.connect().expect_end();
        assert_eq!(ends.wait_len(1), [CloseReason::IdleTimeout]);
        server.stop();
    });
}

const STOPPED: &str = "NETPOLL_TEST_STOPPED";

#[test]
fn input_that_came_while_the_process_was_stopped_is_read_before_idleness_is_judged() {
    const NAME: &str =
        "input_that_came_while_the_process_was_stopped_is_read_before_idleness_is_judged";
    const IDLE: Duration = Duration::from_millis(300);
    if let Ok(kind) = std::env::var(STOPPED) {
        let kind = match kind.as_str() {
            "adaptive" => Kind::Adaptive,
            "workers" => Kind::Workers,
            _ => Kind::Inline,
        };
        let case = Case::new(Transport::Tcp, kind);
        let server = case.serve_with(case.builder().idle_timeout(IDLE), echo());
        println!("\nserving {}", server.address);
        // Until the parent closes our input.
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    for kind in ["adaptive", "workers", "inline"] {
        bounded(kind, move || {
            let mut child = only_test(NAME)
                .env(STOPPED, kind)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let address = loop {
                let line = lines.next().expect("the child serves").unwrap();
                if let Some(address) = line.strip_prefix("serving ") {
                    break address.parse().unwrap();
                }
            };
            let signal = |signal| {
                let id = i32::try_from(child.id()).unwrap();
                // SAFETY: a call that touches no memory; the child has not been waited for.
                assert_eq!(unsafe { libc::kill(id, signal) }, 0);
            };
            let mut peers: Vec<Peer> = (0..5).map(|_| Peer::connect(&address).unwrap()).collect();
            for peer in &mut peers {
                peer.ping(b"up");
            }
            let pinged = Instant::now();
            signal(libc::SIGSTOP);
            for peer in &mut peers {
                peer.write_all(&frame(b"meanwhile")).unwrap();
            }
            let in_time = pinged.elapsed() < IDLE;
            let_pass(IDLE * 2);
            signal(libc::SIGCONT);
            for peer in &mut peers {
                let reply = crate::support::read_frame(peer);
                // On a machine that stopped us too the connection may be gone for good reason.
                if in_time {
                    assert_eq!(reply.unwrap(), b"meanwhile");
                }
            }
            drop(child.stdin.take());
            child.wait().unwrap();
        });
    }
}

static ALARMS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_alarm(_: libc::c_int) {
    ALARMS.fetch_add(1, SeqCst);
}

#[test]
fn a_storm_of_signals_disturbs_nobody() {
    in_child("a_storm_of_signals_disturbs_nobody", || {
        // SAFETY: plain integers, for which zeros are a value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count_alarm as *const () as libc::sighandler_t;
        // Without SA_RESTART: every call of the system may be interrupted.
        // SAFETY: the handler does one atomic addition, the structure is ours.
        let set =
            unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        let tick = libc::timeval {
            tv_sec: 0,
            tv_usec: 700,
        };
        let timer = libc::itimerval {
            it_interval: tick,
            it_value: tick,
        };
        // SAFETY: the structure is ours, nothing is returned.
        let set =
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            for transport in [Transport::Tcp, Transport::Unix] {
                let case = Case::new(transport, kind);
                let server = case.serve(handler_fn(|conn| {
                    while let Some(frame) = crate::support::decode(conn)? {
                        conn.append(frame)?;
                        conn.try_flush()?;
                    }
                    Ok(())
                }));
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(300) {
                    let mut conn = Dialer::new()
                        .connect_timeout(LIMIT)
                        .read_timeout(LIMIT)
                        .write_timeout(LIMIT)
                        .dial_connection(server.address.clone())
                        .unwrap();
                    for len in [1, 1000, 300_000] {
                        let out = frame(&pattern(len as u64, len));
                        conn.write_slice(&out).unwrap();
                        conn.flush().unwrap();
                        assert!(conn.next(out.len()).unwrap() == out);
                    }
                }
                server.stop();
            }
        }
        assert!(ALARMS.load(SeqCst) > 100, "the storm did not come");
    });
}

#[test]
fn options_that_cannot_hold_together_are_errors() {
    let group = PollerGroup::new(1, Balance::RoundRobin).unwrap();
    let shared = EventLoop::builder().pollers(group.clone());
    let builders = [
        EventLoop::builder().balance(Balance::Random),
        shared.balance(Balance::RoundRobin),
        EventLoop::builder().input_limits(100, 10),
        EventLoop::builder().input_limits(0, 10),
        EventLoop::builder().input_limits(0, 0),
        EventLoop::builder().max_connections(0),
    ];
    for builder in builders {
        let shown = format!("{builder:?}");
        let error = builder.build(echo()).expect_err(&shown);
        let known = Error::from_io(&error);
        assert!(
            matches!(known, Some(Error::Unsupported(_))),
            "{shown}: {error}"
        );
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Address::from(listener.local_addr().unwrap());
    for (pause_at, max) in [(100, 10), (0, 10), (0, 0)] {
        let dialer = Dialer::new().input_limits(pause_at, max);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let results = [
            dialer.dial_connection(to.clone()).map(drop),
            dialer.dial_with(to.clone(), echo()).map(drop),
            dialer.adopt(ours).map(drop),
            Pool::new(dialer.clone()).get(&to).map(drop),
        ];
        for result in results {
            let error = result.expect_err("these limits");
            let known = Error::from_io(&error);
            assert!(matches!(known, Some(Error::Unsupported(_))), "{error}");
        }
    }
    // The same where they do hold.
    let own = EventLoop::builder().pollers(1).balance(Balance::Random);
    let event_loop = own.input_limits(10, 10).build(echo()).unwrap();
    event_loop.shutdown(LIMIT).unwrap();
    Dialer::new()
        .input_limits(1, 1)
        .dial_connection(to)
        .unwrap();
    group.close();
}
