//! Servers at unix paths: who may take a path over, and what is left behind.

use crate::support::{
    Case, Kind, LIMIT, Peer, Server, Transport, bounded, echo, eventually, every, fresh_path,
};
use netpoll::{Address, Dialer, EventLoop, Listener};
use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::Path,
    thread,
};

fn server_at(path: &Path) -> io::Result<Server> {
    let event_loop = EventLoop::builder().pollers(1).build(echo())?;
    let listener = Listener::bind(path)?;
    let address = listener.local_addr()?;
    event_loop.serve_in_background(listener)?;
    Ok(Server {
        event_loop,
        address,
    })
}

#[test]
fn the_path_is_removed_with_its_server() {
    every(|case| {
        if case.transport != Transport::Unix {
            return;
        }
        let server = case.serve(echo());
        let path = server.address.as_path().unwrap().to_owned();
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
        server.connect().ping(b"x");
        server.stop();
        assert!(!path.exists());
    });
}

#[test]
fn a_path_left_by_a_dead_server_is_taken_over() {
    bounded("stale", || {
        let path = fresh_path();
        // The standard library leaves the file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let server = server_at(&path).unwrap();
        server.connect().ping(b"mine now");
        server.stop();
        assert!(!path.exists());
    });
}

#[test]
fn a_living_servers_path_is_never_taken() {
    bounded("living", || {
        let path = fresh_path();
        let first = server_at(&path).unwrap();
        for _ in 0..5 {
            let error = server_at(&path).err().expect("the path is in use");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
            first.connect().ping(b"still here");
        }
        first.stop();
        server_at(&path).unwrap().stop();
    });
}

#[test]
fn a_living_server_with_a_full_backlog_keeps_its_path() {
    bounded("full", || {
        let path = fresh_path();
        let listener = UnixListener::bind(&path).unwrap();
        let socket = socket2::SockRef::from(&listener);
        socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        // Nobody accepts: at some point there is no room.
        loop {
            let stream = socket2::Socket::new(
                socket2::Domain::UNIX,
                socket2::Type::STREAM.nonblocking(),
                None,
            )
            .unwrap();
            match stream.connect(&socket2::SockAddr::unix(&path).unwrap()) {
                Ok(()) => waiting.push(stream),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let error = server_at(&path).err().expect("the path is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(listener);
        fs::remove_file(&path).unwrap();
    });
}

#[test]
fn another_servers_file_at_the_path_is_left_alone() {
    bounded("replaced", || {
        let path = fresh_path();
        let first = server_at(&path).unwrap();
        // Somebody moves it away and puts a server of his own there.
        let moved = fresh_path();
        fs::rename(&path, &moved).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        first.stop();
        assert!(path.exists(), "the other's file is gone");
        let client = UnixStream::connect(&path).unwrap();
        second.accept().unwrap();
        drop((client, second));
        fs::remove_file(&path).unwrap();
        let _ = fs::remove_file(&moved);
    });
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    bounded("file", || {
        let path = fresh_path();
        fs::write(&path, b"precious").unwrap();
        assert!(server_at(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(server_at(&path).is_err());
        assert!(path.is_dir());
        fs::remove_dir(&path).unwrap();
    });
}

#[test]
fn a_path_in_a_missing_directory_is_an_error_that_names_it() {
    let error = server_at(Path::new("/nonexistent/dir/socket"))
        .err()
        .expect("no such place");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(
        error.to_string().contains("/nonexistent/dir/socket"),
        "{error}"
    );
    let long = "/tmp/".to_owned() + &"x".repeat(200);
    assert_eq!(
        server_at(Path::new(&long)).err().expect("too long").kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn starting_over_at_one_path_loses_no_server() {
    bounded("restart", || {
        let path = fresh_path();
        for round in 0..30u8 {
            let server = server_at(&path).unwrap();
            server.connect().ping(&[round]);
            server.stop();
        }
        assert!(!path.exists());
    });
}

#[test]
fn the_file_gets_the_mode_that_was_asked_for() {
    bounded("mode", || {
        let path = fresh_path();
        let listener = Listener::builder()
            .mode(0o600)
            .bind(path.as_path())
            .unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
    });
}

#[test]
fn listeners_of_others_are_served_and_their_files_left() {
    bounded("adopted", || {
        let path = fresh_path();
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop
            .serve_in_background(UnixListener::bind(&path).unwrap())
            .unwrap();
        let address = Address::from(path.as_path());
        Peer::connect(&address).unwrap().ping(b"std's");
        event_loop.shutdown(LIMIT).unwrap();
        assert!(path.exists(), "it was not our file");
        fs::remove_file(&path).unwrap();

        let fd = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop
            .serve_in_background(Listener::try_from(fd).unwrap())
            .unwrap();
        Peer::connect(&address).unwrap().ping(b"a descriptor");
        event_loop.shutdown(LIMIT).unwrap();
        fs::remove_file(&path).unwrap();

        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(tcp.local_addr().unwrap());
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop.serve_in_background(tcp).unwrap();
        Peer::connect(&address).unwrap().ping(b"std's tcp");
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn abstract_names_are_served() {
    bounded("abstract", || {
        let name = format!("netpoll-test-{}", std::process::id());
        let std_name = SocketAddr::from_abstract_name(&name).unwrap();
        let address = Address::from(std_name.clone());
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop
            .serve_in_background(Listener::bind(address.clone()).unwrap())
            .unwrap();
        let mut peer = Peer::Unix(UnixStream::connect_addr(&std_name).unwrap());
        peer.ping(b"by name");
        let mut conn = Dialer::new()
            .read_timeout(LIMIT)
            .dial_connection(address)
            .unwrap();
        conn.write_slice(&crate::support::frame(b"x")).unwrap();
        conn.flush().unwrap();
        conn.skip(5).unwrap();
        drop((conn, peer));
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn more_clients_than_the_backlog_holds_are_all_served() {
    bounded("backlog", || {
        let path = fresh_path();
        let listener = Listener::builder().backlog(2).bind(path.as_path()).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = Dialer::new().connect_timeout(LIMIT).read_timeout(LIMIT);
        // They come before anybody accepts; those without room try again.
        let clients: Vec<_> = (0..12u8)
            .map(|i| {
                let (dialer, address) = (dialer.clone(), address.clone());
                thread::spawn(move || {
                    let mut conn = dialer.dial_connection(address)?;
                    conn.write_slice(&crate::support::frame(&[i]))?;
                    conn.flush()?;
                    let back = conn.next(5)?[4];
                    io::Result::Ok(back == i)
                })
            })
            .collect();
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop.serve_in_background(listener).unwrap();
        for client in clients {
            assert!(client.join().unwrap().unwrap());
        }
        let stats = event_loop.clone();
        eventually("the ends", || stats.stats().active == 0);
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn a_dial_to_a_path_without_a_server_is_refused() {
    let case = Case::new(Transport::Unix, Kind::Adaptive);
    let server = case.serve(echo());
    let address = server.address.clone();
    server.stop();
    let error = Dialer::new().dial_connection(address.clone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    drop(UnixListener::bind(address.as_path().unwrap()).unwrap());
    let error = Dialer::new().dial_connection(address.clone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    fs::remove_file(address.as_path().unwrap()).unwrap();
}
