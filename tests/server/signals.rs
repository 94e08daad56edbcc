//! Shutdown on signals. Every test runs in a process of its own, which signals itself.

use crate::support::{
    Gate, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Transport, bounded, descriptors,
    eventually, in_child, let_pass, settled_descriptors, settled_threads, test_path, threads,
};
use netpoll::{
    CloseReason, Error, EventLoop, SIGINT, SIGTERM, SignalGuard, handler_fn, shutdown_on,
};
use signal_hook::{consts::SIGUSR2, low_level::raise};
use std::{
    env, fs, io,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

/// A grace period that no test waits for.
const HOUR: Duration = Duration::from_secs(3600);

/// Runs `body` in a child process, where it may not hang.
#[track_caller]
fn alone(name: &str, body: impl FnOnce() + Send + 'static) {
    let what = name.to_owned();
    in_child(name, move || bounded(&what, body));
}

fn echo() -> EventLoop {
    EventLoop::new(handler_fn(|conn| {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }))
    .unwrap()
}

/// A server with one connection whose handler waits for input that never comes, and the log of
/// how it ended.
fn stuck() -> (Server, Peer, Log<CloseReason>) {
    let (started, ended) = (Log::new(), Log::new());
    let (starting, ending) = (started.clone(), ended.clone());
    let script = Script::new()
        .request(move |conn| {
            starting.push(());
            conn.fill(1 << 20)
        })
        .disconnect(move |_, reason| ending.push(reason));
    let server = Server::start(Transport::Tcp, EventLoop::builder().pollers(1), script);
    let mut peer = server.connect();
    io::Write::write_all(&mut peer, b"x").unwrap();
    started.wait_len(1);
    (server, peer, ended)
}

fn cut(guard: &SignalGuard) -> usize {
    guard.wait().expect("all callbacks end")
}

#[test]
fn a_signal_drains() {
    alone("a_signal_drains", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let at_gate = gate.clone();
        let script = Script::new().request(move |conn| {
            let byte = conn.read_u8()?;
            if byte == b'w' {
                at_gate.pass();
            }
            conn.write_u8(byte)?;
            conn.flush()
        });
        let server = Server::start(Transport::Tcp, EventLoop::builder().pollers(1), script);
        let guard = shutdown_on(&server.event_loop, &[SIGTERM, SIGINT], HOUR).unwrap();

        let mut idle = server.connect();
        io::Write::write_all(&mut idle, b"i").unwrap();
        let mut reply = [0];
        io::Read::read_exact(&mut idle, &mut reply).unwrap();
        let mut busy = server.connect();
        io::Write::write_all(&mut busy, b"w").unwrap();
        gate.wait_arrived(1);

        raise(SIGTERM).unwrap();
        idle.expect_end();
        eventually("the listener is closed", || {
            Peer::connect(&server.address).is_err()
        });
        assert!(guard.poll().is_none(), "a request is being handled");

        gate.open();
        assert_eq!(
            busy.rest().unwrap(),
            b"w",
            "the request before the signal is answered"
        );
        assert_eq!(cut(&guard), 0);
        assert_eq!(guard.poll().unwrap().unwrap(), 0, "the result stays");
    });
}

#[test]
fn what_is_left_after_the_grace_period_is_cut() {
    alone("what_is_left_after_the_grace_period_is_cut", || {
        let (server, mut peer, ended) = stuck();
        let guard = shutdown_on(&server.event_loop, &[SIGINT], Duration::from_millis(20)).unwrap();
        raise(SIGINT).unwrap();
        assert_eq!(cut(&guard), 1);
        assert_eq!(
            ended.all(),
            [CloseReason::Shutdown],
            "its callbacks have run"
        );
        peer.expect_gone();
    });
}

#[test]
fn a_second_signal_cuts_at_once() {
    alone("a_second_signal_cuts_at_once", || {
        let (server, mut peer, ended) = stuck();
        let guard = shutdown_on(&server.event_loop, &[SIGTERM, SIGINT], HOUR).unwrap();
        raise(SIGTERM).unwrap();
        eventually("the drain begins", || server.event_loop.is_shutting_down());
        assert!(guard.poll().is_none() && ended.len() == 0);
        raise(SIGINT).unwrap();
        assert_eq!(cut(&guard), 1);
        assert_eq!(ended.all(), [CloseReason::Shutdown]);
        peer.expect_gone();
    });
}

#[test]
fn signals_in_quick_succession_are_counted() {
    alone("signals_in_quick_succession_are_counted", || {
        let (server, _peer, ended) = stuck();
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        for _ in 0..5 {
            raise(SIGTERM).unwrap();
        }
        assert_eq!(cut(&guard), 1);
        assert_eq!(ended.all(), [CloseReason::Shutdown]);
    });
}

#[test]
fn serve_returns_and_then_the_result_is_there() {
    alone("serve_returns_and_then_the_result_is_there", || {
        let server = echo();
        let guard = shutdown_on(&server, &[SIGTERM], HOUR).unwrap();
        let listener = crate::support::listener(Transport::Tcp);
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || server.serve(listener));
        let mut peer = Peer::connect(&address).unwrap();
        io::Write::write_all(&mut peer, b"hello").unwrap();
        io::Read::read_exact(&mut peer, &mut [0; 5]).unwrap();
        raise(SIGTERM).unwrap();
        serving.join().unwrap().unwrap();
        assert_eq!(cut(&guard), 0);
        peer.expect_end();
    });
}

#[test]
fn a_shutdown_without_a_signal_ends_the_wait() {
    alone("a_shutdown_without_a_signal_ends_the_wait", || {
        let server = Server::serve(Transport::Tcp, echo());
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        let waiting = std::thread::spawn(move || guard.wait());
        server.stop();
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
}

#[test]
fn a_wait_sleeps_until_something_happens() {
    alone("a_wait_sleeps_until_something_happens", || {
        let server = Server::serve(Transport::Tcp, echo());
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        let (told, ids) = (Log::new(), Log::new());
        let (tell, id) = (told.clone(), ids.clone());
        let waiting = std::thread::spawn(move || {
            // SAFETY: the call takes nothing and returns a number.
            id.push(unsafe { libc::gettid() });
            let result = guard.wait().unwrap();
            tell.push(result);
        });
        let id = ids.wait_len(1)[0];
        let switches = || -> u64 {
            let status = fs::read_to_string(format!("/proc/self/task/{id}/status")).unwrap();
            status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                .and_then(|count| count.trim().parse().ok())
                .unwrap()
        };
        let asleep = || -> bool {
            let stat = fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap();
            let (_, rest) = stat.rsplit_once(')').unwrap();
            rest.trim_start().starts_with('S')
        };
        let mut before = switches();
        eventually("it sleeps and stays asleep", || {
            // Longer than any interval at which somebody would look again.
            let_pass(Duration::from_millis(350));
            let now = switches();
            let still = asleep() && now == before;
            before = now;
            still
        });
        assert_eq!(told.len(), 0);
        server.stop();
        assert_eq!(told.wait_len(1), [0]);
        waiting.join().unwrap();
    });
}

#[test]
fn every_waiter_is_told() {
    alone("every_waiter_is_told", || {
        let (server, mut peer, ended) = stuck();
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        let guard = std::sync::Arc::new(guard);
        let waiting = [(); 4].map(|()| {
            let guard = std::sync::Arc::clone(&guard);
            std::thread::spawn(move || guard.wait())
        });
        raise(SIGTERM).unwrap();
        eventually("the drain begins", || server.event_loop.is_shutting_down());
        raise(SIGTERM).unwrap();
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        }
        assert_eq!(cut(&guard), 1, "also whoever asks later");
        assert_eq!(ended.all(), [CloseReason::Shutdown]);
        peer.expect_gone();
    });
}

#[test]
fn the_result_says_how_many_were_cut() {
    alone("the_result_says_how_many_were_cut", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (started, ended) = (Log::new(), Log::new());
        let (starting, ending, at_gate) = (started.clone(), ended.clone(), gate.clone());
        let script = Script::new()
            .request(move |conn| {
                let byte = conn.read_u8()?;
                starting.push(byte);
                match byte {
                    // Never comes.
                    b's' => conn.fill(1 << 20),
                    b'w' => {
                        at_gate.pass();
                        conn.write_u8(byte)?;
                        conn.flush()
                    }
                    _ => Ok(()),
                }
            })
            .disconnect(move |_, reason| ending.push(reason));
        let server = Server::start(Transport::Tcp, EventLoop::builder().pollers(1), script);
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        // Three that hang, two that will be answered, four that are idle.
        let mut peers: Vec<Peer> = b"sssww----"
            .iter()
            .map(|byte| {
                let mut peer = server.connect();
                io::Write::write_all(&mut peer, &[*byte]).unwrap();
                peer
            })
            .collect();
        started.wait_len(9);
        gate.wait_arrived(2);
        raise(SIGTERM).unwrap();
        for idle in &mut peers[5..] {
            idle.expect_end();
        }
        gate.open();
        for answered in &mut peers[3..5] {
            assert_eq!(answered.rest().unwrap(), b"w");
        }
        peers.truncate(3);
        eventually("only those that hang are left", || {
            server.event_loop.stats().active == 3
        });
        assert!(guard.poll().is_none());
        raise(SIGTERM).unwrap();
        assert_eq!(cut(&guard), 3);
        assert_eq!(ended.len(), 9, "every callback has run");
    });
}

#[test]
fn several_loops_drain_on_one_signal() {
    alone("several_loops_drain_on_one_signal", || {
        let servers = [(); 3].map(|()| Server::serve(Transport::Tcp, echo()));
        let guards = [0, 1, 2]
            .map(|i: usize| shutdown_on(&servers[i].event_loop, &[SIGTERM], HOUR).unwrap());
        let mut peers = [0, 1, 2].map(|i: usize| servers[i].connect());
        raise(SIGTERM).unwrap();
        for (guard, peer) in guards.iter().zip(&mut peers) {
            assert_eq!(cut(guard), 0);
            peer.expect_gone();
        }
    });
}

#[test]
fn waiting_in_a_callback_is_refused() {
    alone("waiting_in_a_callback_is_refused", || {
        let (errors, place) = (Log::new(), Log::<std::sync::Arc<SignalGuard>>::new());
        let (error, guard) = (errors.clone(), place.clone());
        let script = Script::new().connect(move |_| {
            let guard = guard.wait("the guard", |all| !all.is_empty()).remove(0);
            error.push(guard.wait().map_err(|e| Error::from_io(&e)));
            Ok(())
        });
        let server = Server::start(Transport::Tcp, EventLoop::builder().pollers(1), script);
        let guard = shutdown_on(&server.event_loop, &[SIGTERM], HOUR).unwrap();
        place.push(std::sync::Arc::new(guard));
        let _peer = server.connect();
        assert_eq!(errors.wait_len(1), [Err(Some(Error::WouldDeadlock))]);
    });
}

#[test]
fn signals_that_cannot_be_handled_are_refused() {
    alone("signals_that_cannot_be_handled_are_refused", || {
        let server = echo();
        let before = caught();
        for signals in [
            &[][..],
            &[libc::SIGKILL],
            &[libc::SIGSTOP],
            &[libc::SIGSEGV],
            &[9999],
        ] {
            let error = shutdown_on(&server, signals, LIMIT).unwrap_err();
            assert_eq!(
                error.kind(),
                io::ErrorKind::InvalidInput,
                "{signals:?}: {error}"
            );
        }
        assert_eq!(caught(), before);
        // One that is refused takes those before it back.
        shutdown_on(&server, &[SIGUSR2, libc::SIGKILL], LIMIT).unwrap_err();
        assert!(!server.is_shutting_down());
    });
}

/// The signals this process has handlers for, as a mask.
fn caught() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find(|line| line.starts_with("SigCgt:"))
        .unwrap()
        .to_owned()
}

#[test]
fn nothing_is_touched_unless_asked() {
    alone("nothing_is_touched_unless_asked", || {
        let before = caught();
        let server = Server::serve(Transport::Tcp, echo());
        server.connect();
        let address = server.address.clone();
        server.stop();
        Peer::connect(&address).unwrap_err();
        assert_eq!(caught(), before);

        let server = echo();
        let guard = shutdown_on(&server, &[SIGUSR2], LIMIT).unwrap();
        assert_ne!(caught(), before, "this test can see a handler");
        drop(guard);
    });
}

#[test]
fn guards_come_and_go_without_a_trace() {
    alone("guards_come_and_go_without_a_trace", || {
        let server = echo();
        let once = || drop(shutdown_on(&server, &[SIGTERM, SIGUSR2, SIGTERM], LIMIT).unwrap());
        once();
        let (fds, running) = (descriptors(), threads());
        for _ in 0..50 {
            once();
        }
        settled_descriptors(fds);
        settled_threads(running);
    });
}

/// Says which part of a test a child process plays.
const PART: &str = "NETPOLL_SIGNAL_TEST";

/// Runs this test again in a process that `command` starts, for its way to end.
fn end_of(name: &str, mut command: Command) -> ExitStatus {
    let child = command
        .env(PART, name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.unwrap().wait().unwrap()
}

fn again(name: &str) -> [String; 3] {
    let exe = env::current_exe().unwrap();
    [
        exe.into_os_string().into_string().unwrap(),
        test_path(name),
        "--exact".to_owned(),
    ]
}

#[test]
fn a_signal_has_its_default_effect_back() {
    let name = "a_signal_has_its_default_effect_back";
    if env::var(PART).as_deref() == Ok(name) {
        let server = echo();
        let first = shutdown_on(&server, &[SIGTERM], HOUR).unwrap();
        let second = shutdown_on(&server, &[SIGTERM], HOUR).unwrap();
        drop(first);
        // The second one still has it.
        raise(SIGTERM).unwrap();
        second.wait().unwrap();
        drop(second);
        raise(SIGTERM).unwrap();
        unreachable!("SIGTERM ends a process");
    }
    let [exe, args @ ..] = again(name);
    let mut command = Command::new(exe);
    command.args(args);
    let status = end_of(name, command);
    assert_eq!(status.signal(), Some(SIGTERM), "{status}");
}

#[test]
fn an_ignored_signal_is_ignored_again() {
    let name = "an_ignored_signal_is_ignored_again";
    if env::var(PART).as_deref() == Ok(name) {
        let server = echo();
        let guard = shutdown_on(&server, &[SIGINT], HOUR).unwrap();
        raise(SIGINT).unwrap();
        guard.wait().unwrap();
        drop(guard);
        raise(SIGINT).unwrap();
        std::process::exit(7);
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' INT; exec \"$@\"", "sh"])
        .args(again(name));
    let status = end_of(name, command);
    assert_eq!(status.code(), Some(7), "{status}");
}
