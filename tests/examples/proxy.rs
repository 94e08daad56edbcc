//! `proxy` in front of `echo_server`: what it does beside passing bytes on.

use crate::support::{Server, Socket, eventually, figure, fresh_path, noise, run, text};
use socket2::{Domain, SockRef, Type};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

const TCP: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn proxy(backends: &str, flags: &[&str]) -> Server {
    let mut args = vec!["--listen", "127.0.0.1:0", "--backend", backends];
    args.extend_from_slice(flags);
    Server::start("proxy", &args)
}

fn end(proxy: Server) -> (i32, String) {
    proxy.signal("TERM");
    proxy.wait_output()
}

/// An address that refuses, as long as the socket is kept: it is bound and does not listen.
fn nobody() -> (socket2::Socket, String) {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    let bound = socket.local_addr().expect("its address");
    let bound = bound.as_socket().expect("an IP address");
    (socket, bound.to_string())
}

fn reset_on_drop(socket: &Socket) {
    let Socket::Tcp(socket) = socket else {
        panic!("a unix socket has no reset")
    };
    let at_once = Some(Duration::ZERO);
    SockRef::from(socket).set_linger(at_once).expect("linger");
}

#[test]
fn every_byte_comes_back_and_the_end_is_passed_on() {
    let echo = Server::start("echo_server", &TCP);
    let proxy = proxy(&echo.place, &[]);
    let mut socket = proxy.connect();
    let data = noise(3 << 20);
    let mut out = socket.duplicate();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        out.send(&sent);
        out.finish();
    });
    assert!(socket.receive(data.len()) == data);
    assert_eq!(socket.receive_rest(), b"");
    writer.join().expect("the writer");
    drop(socket);
    let (code, statistics) = end(proxy);
    assert_eq!(code, 0);
    assert_eq!(figure(&statistics, "finished"), 1, "{statistics}");
    assert_eq!(figure(&statistics, "to_backends"), 3 << 20, "{statistics}");
    assert_eq!(figure(&statistics, "to_clients"), 3 << 20, "{statistics}");
}

#[test]
fn unix_sockets_on_both_sides() {
    let (front, back) = (fresh_path(".sock"), fresh_path(".sock"));
    let echo = Server::start("echo_server", &["--listen", &format!("unix:{back}")]);
    let listen = format!("unix:{front}");
    let proxy = Server::start("proxy", &["--listen", &listen, "--backend", &echo.place]);
    let mut socket = proxy.connect();
    socket.send(b"hello");
    assert_eq!(socket.receive(5), b"hello");
    drop(socket);
    assert_eq!(end(proxy).0, 0);
}

#[test]
fn backends_are_taken_in_turn_and_the_next_one_if_one_refuses() {
    let echoes = [(); 2].map(|()| Server::start("echo_server", &TCP));
    let (_refuses, nobody) = nobody();
    let all = format!("{},{nobody},{}", echoes[0].place, echoes[1].place);
    let proxy = proxy(&all, &["--connect-timeout-ms", "5000"]);
    for round in 0..9 {
        let mut socket = proxy.connect();
        socket.send(&[round]);
        assert_eq!(socket.receive(1), [round]);
    }
    let (code, statistics) = end(proxy);
    assert_eq!(code, 0);
    assert_eq!(figure(&statistics, "refused"), 3, "{statistics}");
    // The signal may have been faster than the end of the last client.
    let ended = figure(&statistics, "finished") + figure(&statistics, "drained");
    assert_eq!(ended, 9, "{statistics}");
}

#[test]
fn a_client_is_let_go_if_no_backend_answers() {
    let (one, two) = (nobody(), nobody());
    let proxy = proxy(&format!("{},{}", one.1, two.1), &[]);
    for _ in 0..3 {
        assert_eq!(proxy.connect().receive_rest(), b"");
    }
    let (code, statistics) = end(proxy);
    assert_eq!(code, 0);
    assert_eq!(figure(&statistics, "clients"), 3, "{statistics}");
    assert_eq!(figure(&statistics, "unserved"), 3, "{statistics}");
    assert_eq!(figure(&statistics, "gone"), 3, "{statistics}");
    assert_eq!(figure(&statistics, "refused"), 6, "{statistics}");
}

#[test]
fn every_client_is_counted_once() {
    let echo = Server::start("echo_server", &TCP);
    let (_refuses, nobody) = nobody();
    // One with a backend that answers, one with none.
    let proxies = [
        proxy(&echo.place, &["--idle-ms", "30000"]),
        proxy(&nobody, &[]),
    ];
    let sent = 3;
    for round in 0..sent {
        let mut finished = proxies[0].connect();
        finished.send(&[round]);
        assert_eq!(finished.receive(1), [round]);
        drop(finished);
        let mut reset = proxies[0].connect();
        reset.send(&[round]);
        assert_eq!(reset.receive(1), [round]);
        reset_on_drop(&reset);
        drop(reset);
        assert_eq!(proxies[1].connect().receive_rest(), b"");
    }
    let mut stays = proxies[0].connect();
    stays.send(b"x");
    assert_eq!(stays.receive(1), b"x");
    for (proxy, clients) in proxies
        .into_iter()
        .zip([2 * u64::from(sent) + 1, sent.into()])
    {
        let (code, statistics) = end(proxy);
        assert_eq!(code, 0);
        assert_eq!(figure(&statistics, "clients"), clients, "{statistics}");
        assert_eq!(figure(&statistics, "gone"), clients, "{statistics}");
        let ends = [
            "finished", "released", "idle", "drained", "failed", "unserved",
        ];
        let counted: u64 = ends.map(|end| figure(&statistics, end)).iter().sum();
        assert_eq!(counted, clients, "{statistics}");
    }
}

#[test]
fn the_last_reply_of_a_backend_reaches_its_client() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    // Answers and closes with input unread.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let _ = stream.read(&mut [0; 16]);
            let _ = stream.write_all(b"-ERR Protocol error\r\n");
        }
    });
    let proxy = proxy(&address, &[]);
    for _ in 0..100 {
        let mut client = proxy.connect();
        while client.try_send(b"payload") {}
        assert_eq!(client.receive(21), b"-ERR Protocol error\r\n");
    }
    assert_eq!(end(proxy).0, 0);
}

#[test]
fn statistics_are_printed_at_a_signal_too() {
    let echo = Server::start("echo_server", &TCP);
    let mut proxy = proxy(&echo.place, &["--pool", "2"]);
    for round in 0..5 {
        let mut socket = proxy.connect();
        socket.send(b"hello");
        assert_eq!(socket.receive(5), b"hello");
        drop(socket);
        eventually("the client is gone", || {
            proxy.signal("USR1");
            figure(&proxy.line(), "released") == round + 1
        });
    }
    proxy.signal("USR1");
    let statistics = proxy.line();
    assert_eq!(figure(&statistics, "dialled"), 1, "{statistics}");
    assert_eq!(figure(&statistics, "reused"), 4, "{statistics}");
    assert_eq!(figure(&statistics, "kept"), 1, "{statistics}");
    assert_eq!(figure(&statistics, "to_backends"), 25, "{statistics}");
    assert_eq!(end(proxy).0, 0);
}

#[test]
fn idle_clients_do_not_hold_up_the_end() {
    let echo = Server::start("echo_server", &TCP);
    let proxy = proxy(&echo.place, &["--grace-ms", "60000"]);
    let mut clients: Vec<_> = (0..5).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.send(b"hello");
        assert_eq!(client.receive(5), b"hello");
    }
    proxy.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.receive_rest(), b"");
    }
    drop(clients);
    let (code, statistics) = proxy.wait_output();
    assert_eq!(code, 0, "nobody was cut: {statistics}");
    assert_eq!(figure(&statistics, "drained"), 5, "{statistics}");
}

#[test]
fn an_idle_time_ends_relays() {
    let echo = Server::start("echo_server", &TCP);
    let proxy = proxy(&echo.place, &["--idle-ms", "50"]);
    let mut socket = proxy.connect();
    socket.send(b"hello");
    assert_eq!(socket.receive(5), b"hello");
    assert_eq!(socket.receive_rest(), b"");
    let (code, statistics) = end(proxy);
    assert_eq!(code, 0);
    assert_eq!(figure(&statistics, "idle"), 1, "{statistics}");
}

#[test]
fn a_wrong_command_line_is_told() {
    for args in [
        &["--listen", "127.0.0.1:0"][..],
        &["--listen", "127.0.0.1:0", "--backend", "nowhere"],
        &[
            "--listen",
            "127.0.0.1:0",
            "--backend",
            "a:1",
            "--chain",
            "2",
        ],
    ] {
        let output = run("proxy", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("usage: proxy"), "{args:?}");
    }
}
