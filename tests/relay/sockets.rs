//! Relays between real sockets.

use netpoll::{
    Address, Connection, Dialer, EventLoop, Pool, RelayEnd, RelayVerdict, handler_fn, relay,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(20);

fn echo_server() -> (EventLoop, SocketAddr) {
    let echo = EventLoop::new(handler_fn(|conn| {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    }))
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    echo.serve_in_background(listener).unwrap();
    (echo, addr)
}

/// A pair of TCP sockets: ours as a connection, and the peer's.
fn pair() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (Dialer::new().adopt(ours).unwrap(), peer)
}

#[test]
fn moves_both_directions_and_passes_half_close_on() {
    let (a, mut client) = pair();
    let (b, mut server) = pair();
    let relay = relay(a, b).unwrap();
    let data: Vec<u8> = (0..1_000_000_u32)
        .map(|i| (i * 31 + i / 256) as u8)
        .collect();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        back
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == data);
    server.write_all(&data).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert!(writer.join().unwrap() == data);
    let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
    assert_eq!(outcome.end, RelayEnd::Finished);
    assert_eq!((outcome.a_to_b, outcome.b_to_a), (1_000_000, 1_000_000));
}

#[test]
fn an_interrupt_gives_both_sides_back_sound() {
    let (a, mut client) = pair();
    let (b, mut server) = pair();
    let relay = relay(a, b).unwrap();
    client.write_all(b"hello").unwrap();
    let mut five = [0; 5];
    server.read_exact(&mut five).unwrap();
    relay.interrupt();
    let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
    assert_eq!(outcome.end, RelayEnd::Interrupted);
    assert_eq!(
        (outcome.a_verdict, outcome.b_verdict),
        (RelayVerdict::Sound, RelayVerdict::Sound)
    );
    let (mut a, mut b) = (outcome.a.unwrap(), outcome.b.unwrap());
    client.write_all(b"again").unwrap();
    assert_eq!(a.next(5).unwrap(), b"again");
    b.write_slice(b"reply").unwrap();
    b.flush().unwrap();
    server.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"reply");
}

#[test]
fn a_reset_of_one_side_resets_the_other() {
    let (a, client) = pair();
    let (b, mut server) = pair();
    let relay = relay(a, b).unwrap();
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    let error = server.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
    assert!(matches!(outcome.end, RelayEnd::Failed(_)), "{outcome:?}");
}

#[test]
fn a_proxy_takes_its_client_and_a_pooled_backend() {
    let (_echo, backend) = echo_server();
    let backend = Address::from(backend);
    let pool = Pool::new(Dialer::new());
    let kept = pool.clone();
    let (ends, ended) = mpsc::channel();
    let proxy = EventLoop::new(handler_fn(move |client: &mut Connection| {
        let backend = pool.get(&backend)?;
        let relay = relay(client.hijack()?, backend)?;
        let ends = ends.clone();
        relay.on_end(move |outcome| ends.send(outcome.end).unwrap());
        Ok(())
    }))
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    proxy.serve_in_background(listener).unwrap();
    for _ in 0..3 {
        let mut client = TcpStream::connect(addr).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        for size in [1, 1000, 100_000] {
            let data = vec![size as u8; size];
            client.write_all(&data).unwrap();
            let mut back = vec![0; size];
            client.read_exact(&mut back).unwrap();
            assert!(back == data);
        }
        drop(client);
        assert_eq!(ended.recv_timeout(LIMIT).unwrap(), RelayEnd::Finished);
    }
    assert_eq!(kept.stats().in_use, 0);
    proxy.shutdown(LIMIT).unwrap();
}

/// The pattern both ends agree on.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256) as u8).collect()
}

#[test]
fn bulk_arrives_unchanged_however_it_is_moved() {
    let (a, mut client) = pair();
    let (b, mut server) = pair();
    let relay = relay(a, b).unwrap();
    let data = std::sync::Arc::new(pattern(30_000_000));
    let sent = std::sync::Arc::clone(&data);
    let mut source = client.try_clone().unwrap();
    let writer = thread::spawn(move || {
        source.write_all(&sent).unwrap();
        source.shutdown(Shutdown::Write).unwrap();
    });
    let answer = std::sync::Arc::clone(&data);
    let mut back_source = server.try_clone().unwrap();
    let back_writer = thread::spawn(move || {
        back_source.write_all(&answer).unwrap();
        back_source.shutdown(Shutdown::Write).unwrap();
    });
    let back = thread::spawn(move || {
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        back
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == *data);
    assert!(back.join().unwrap() == *data);
    writer.join().unwrap();
    back_writer.join().unwrap();
    let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
    assert_eq!((outcome.a_to_b, outcome.b_to_a), (30_000_000, 30_000_000));
    assert_eq!(outcome.end, RelayEnd::Finished);
}

#[test]
fn a_kept_backend_serves_the_next_client() {
    let (b, mut server) = pair();
    let mut b = Some(b);
    for round in 0..3_u8 {
        let (a, mut client) = pair();
        let relay = netpoll::Relay::builder()
            .keep_b(true)
            .start(a, b.take().unwrap())
            .unwrap();
        client.write_all(&[round; 3]).unwrap();
        let mut three = [0; 3];
        server.read_exact(&mut three).unwrap();
        assert_eq!(three, [round; 3]);
        server.write_all(&[round; 2]).unwrap();
        let mut two = [0; 2];
        client.read_exact(&mut two).unwrap();
        drop(client);
        let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
        assert_eq!(
            (outcome.end, outcome.b_verdict),
            (RelayEnd::Released, RelayVerdict::Sound)
        );
        b = outcome.b;
    }
}
