//! A whole server with faults in the way of its system calls: what arrives is what was sent.
//!
//! A plan is for the whole process, so the tests take turns.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use netpoll::{
    Dialer, EventLoop, Listener,
    fault::{Call, Fault, Plan},
    handler_fn,
};

/// Echoes everything.
struct Server {
    events: EventLoop,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let events = EventLoop::new(handler_fn(|conn| {
            let all = conn.slice(conn.available())?;
            conn.append(all)?;
            conn.flush()
        }))
        .unwrap();
        let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let address = listener.local_addr().unwrap().as_socket_addr().unwrap();
        events.serve_in_background(listener).unwrap();
        Self { events, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream.set_write_timeout(limit).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let result = self.events.shutdown(Duration::from_secs(10));
        if !thread::panicking() {
            result.unwrap();
        }
    }
}

/// Bytes without a short period, so that none that are lost, doubled or swapped go unseen.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Sends `bytes` through the server, reads at the same time, and compares.
fn echo(stream: &TcpStream, bytes: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::with_capacity(bytes.len());
        (&*stream).read_to_end(&mut back).unwrap();
        assert!(
            back == bytes,
            "{} bytes came back of {}",
            back.len(),
            bytes.len()
        );
    });
}

fn echo_under(plan: Plan, len: usize) {
    let bytes = pattern(len);
    let installed = plan.install();
    let server = Server::start();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| echo(&server.connect(), &bytes));
        }
    });
    assert!(installed.hits(Call::Send) + installed.hits(Call::Receive) > 0);
}

#[test]
fn signals_at_every_other_call() {
    let _turn = crate::TURN.lock();
    echo_under(
        Plan::new(1)
            .every(Call::Send, 2, Fault::Errno(libc::EINTR))
            .every(Call::Receive, 2, Fault::Errno(libc::EINTR))
            .every(Call::Accept, 2, Fault::Errno(libc::EINTR))
            .every(Call::Peek, 2, Fault::Errno(libc::EINTR)),
        1 << 20,
    );
}

#[test]
fn sends_of_a_few_bytes() {
    let _turn = crate::TURN.lock();
    for (cap, len) in [(1, 5_000), (7, 50_000), (4097, 1 << 20)] {
        echo_under(Plan::new(2).every(Call::Send, 1, Fault::Short(cap)), len);
    }
}

#[test]
fn receives_of_a_few_bytes() {
    let _turn = crate::TURN.lock();
    for (cap, len) in [(1, 5_000), (7, 50_000), (4097, 1 << 20)] {
        echo_under(Plan::new(3).every(Call::Receive, 1, Fault::Short(cap)), len);
    }
}

#[test]
fn sends_that_find_no_memory() {
    let _turn = crate::TURN.lock();
    echo_under(
        Plan::new(4)
            .chance(Call::Send, 300, Fault::Errno(libc::ENOBUFS))
            .every(Call::Send, 1, Fault::Short(20_000)),
        1 << 20,
    );
    // Long enough at once to be reported to the connection.
    echo_under(
        Plan::new(4).from(Call::Send, 2, 9, Fault::Errno(libc::ENOMEM)),
        1 << 20,
    );
}

#[test]
fn everything_at_random() {
    let _turn = crate::TURN.lock();
    for seed in 0..8 {
        echo_under(
            Plan::new(seed)
                .chance(Call::Send, 150, Fault::Errno(libc::EINTR))
                .chance(Call::Send, 150, Fault::Errno(libc::ENOBUFS))
                .chance(Call::Send, 300, Fault::Short(777))
                .chance(Call::Receive, 150, Fault::Errno(libc::EINTR))
                .chance(Call::Receive, 300, Fault::Short(555))
                .chance(Call::Accept, 300, Fault::Errno(libc::ECONNABORTED)),
            200_000,
        );
    }
}

#[test]
fn accepting_goes_on_after_every_error() {
    let _turn = crate::TURN.lock();
    let numbers = [
        libc::EINTR,
        libc::ECONNABORTED,
        libc::EPROTO,
        libc::EPERM,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EIO,
    ];
    let mut plan = Plan::new(5);
    for (index, errno) in (1..).zip(numbers) {
        plan = plan.from(Call::Accept, index, 1, Fault::Errno(errno));
    }
    let installed = plan.install();
    let server = Server::start();
    for _ in 0..3 {
        echo(&server.connect(), b"still here");
    }
    assert_eq!(installed.hits(Call::Accept), numbers.len() as u64);
}

#[test]
fn a_server_that_starts_in_a_shortage_accepts_after_it() {
    let _turn = crate::TURN.lock();
    for _ in 0..50 {
        let _installed = Plan::new(5)
            .from(Call::Accept, 1, 1, Fault::Errno(libc::EMFILE))
            .install();
        let server = Server::start();
        echo(&server.connect(), b"here after all");
    }
}

#[test]
fn a_reset_of_one_connection_leaves_the_others() {
    let _turn = crate::TURN.lock();
    let server = Server::start();
    let mut bystander = server.connect();
    // Settled before the plan counts.
    bystander.write_all(b"x").unwrap();
    bystander.read_exact(&mut [0]).unwrap();
    for call in [Call::Send, Call::Receive] {
        let installed = Plan::new(6)
            .from(call, 1, 1, Fault::Errno(libc::ECONNRESET))
            .install();
        let mut victim = server.connect();
        victim.write_all(b"x").unwrap();
        let mut rest = Vec::new();
        let ended = victim.read_to_end(&mut rest);
        assert!(rest.is_empty() && ended.map_or(true, |n| n == 0));
        assert_eq!(installed.hits(call), 1);
    }
    echo(&bystander, b"not me");
}

#[test]
fn a_blocking_client_is_as_exact() {
    let _turn = crate::TURN.lock();
    let bytes = pattern(300_000);
    let server = Server::start();
    let _installed = Plan::new(7)
        .chance(Call::Send, 200, Fault::Errno(libc::EINTR))
        .chance(Call::Send, 200, Fault::Short(1000))
        .chance(Call::Receive, 200, Fault::Errno(libc::EINTR))
        .chance(Call::Receive, 200, Fault::Short(1000))
        .chance(Call::Receive, 100, Fault::Errno(libc::EAGAIN))
        .this_thread()
        .install();
    let mut client = Dialer::new()
        .read_timeout(Duration::from_secs(60))
        .dial_connection(server.address)
        .unwrap();
    for piece in bytes.chunks(30_000) {
        client.write_slice(piece).unwrap();
        client.flush().unwrap();
        assert!(client.next(piece.len()).unwrap() == piece);
    }
}

#[test]
fn a_dial_that_fails_says_why() {
    let _turn = crate::TURN.lock();
    let _installed = Plan::new(8)
        .every(Call::Connect, 1, Fault::Errno(libc::ENETUNREACH))
        .this_thread()
        .install();
    let error = Dialer::new()
        .dial_connection(([127, 0, 0, 1], 9))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}
