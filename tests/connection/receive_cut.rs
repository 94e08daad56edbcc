//! Receives that end before the input does: at urgent data, at descriptors that are passed along, where
//! another process goes on writing. What is behind is received all the same, without more input.

use crate::support::{
    Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Transport, bounded, eventually, every,
    pattern,
};
use netpoll::{Dialer, RelayEnd, relay};
use socket2::{MsgHdr, SockRef};
use std::{
    io::{IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    thread,
};

/// What lies between two parts of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// A byte out of band.
    Urgent,
    /// A descriptor comes along with the second part.
    Rights,
    /// Another process writes the second part, and the receiver asks for credentials.
    Writer,
}

impl Cut {
    fn of(transport: Transport) -> &'static [Self] {
        match transport {
            Transport::Tcp => &[Self::Urgent],
            Transport::Unix => &[Self::Urgent, Self::Rights, Self::Writer],
        }
    }

    /// Prepares the receiver.
    fn prepare(self, receiver: &impl AsFd) {
        if self == Self::Writer {
            SockRef::from(receiver).set_passcred(true).unwrap();
        }
    }

    /// Sends three parts with a cut behind the first or the second.
    fn send(self, peer: &mut Peer, parts: [&[u8]; 3]) {
        peer.write_all(parts[0]).unwrap();
        match self {
            Self::Urgent => {
                SockRef::from(&*peer).send_out_of_band(b"!").unwrap();
                // A second one would make this one an ordinary byte.
                peer.write_all(parts[1]).unwrap();
            }
            Self::Rights => send_with_descriptor(peer, parts[1]),
            Self::Writer => {
                let out = peer.as_fd().try_clone_to_owned().unwrap();
                let text = std::str::from_utf8(parts[1]).unwrap();
                let status = Command::new("printf")
                    .arg(text)
                    .stdout(Stdio::from(out))
                    .status();
                assert!(status.unwrap().success());
            }
        }
        peer.write_all(parts[2]).unwrap();
    }
}

fn send_with_descriptor(peer: &Peer, bytes: &[u8]) {
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    // `struct cmsghdr` and one descriptor.
    let mut control = [0_u8; 24];
    control[..8].copy_from_slice(&20_usize.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control[16..20].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    let pieces = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_buffers(&pieces).with_control(&control);
    let sent = SockRef::from(peer).sendmsg(&message, 0).unwrap();
    assert_eq!(sent, bytes.len());
}

/// A socket for the library, and its peer.
fn sockets(transport: Transport) -> (OwnedFd, Peer) {
    let (ours, peer) = match transport {
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peer.set_nodelay(true).unwrap();
            let (ours, _) = listener.accept().unwrap();
            (OwnedFd::from(ours), Peer::Tcp(peer))
        }
        Transport::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (OwnedFd::from(ours), Peer::Unix(peer))
        }
    };
    peer.set_limit(Some(LIMIT));
    (ours, peer)
}

#[test]
fn what_is_behind_a_cut_is_received_at_once() {
    every(|case| {
        for &cut in Cut::of(case.transport) {
            let (held, seen, prepared) = (Gate::new(), Log::new(), Log::new());
            let _open = OpenOnDrop(held.clone());
            let (gate, log, count) = (held.clone(), seen.clone(), prepared.clone());
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        cut.prepare(conn);
                        count.push(());
                        Ok(())
                    })
                    .request(move |conn| {
                        let bytes = conn.next(conn.available())?.to_vec();
                        if bytes == b"go" {
                            gate.pass();
                        }
                        log.push(bytes);
                        Ok(())
                    }),
            );
            let mut peer = server.connect();
            peer.write_all(b"go").unwrap();
            held.wait_arrived(1);
            cut.send(&mut peer, [b"abc", b"def", b"ghi"]);
            if case.kind != Kind::Inline {
                // The poller has reported all of it when it accepts the next connection.
                drop(server.connect());
                prepared.wait_len(2);
            }
            held.open();
            seen.wait(&format!("what is behind {cut:?}"), |seen| {
                seen.concat() == b"goabcdefghi"
            });
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn a_wait_for_more_goes_past_a_cut() {
    every(|case| {
        if case.kind == Kind::Inline {
            return;
        }
        for &cut in Cut::of(case.transport) {
            let (held, seen, prepared) = (Gate::new(), Log::new(), Log::new());
            let _open = OpenOnDrop(held.clone());
            let (gate, log, count) = (held.clone(), seen.clone(), prepared.clone());
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        conn.set_read_timeout(Some(LIMIT));
                        cut.prepare(conn);
                        count.push(());
                        Ok(())
                    })
                    .request(move |conn| {
                        conn.skip(2)?;
                        gate.pass();
                        log.push(conn.next(9)?.to_vec());
                        Ok(())
                    }),
            );
            let mut peer = server.connect();
            peer.write_all(b"go").unwrap();
            held.wait_arrived(1);
            cut.send(&mut peer, [b"abc", b"def", b"ghi"]);
            drop(server.connect());
            prepared.wait_len(2);
            held.open();
            assert_eq!(seen.wait_len(1), [b"abcdefghi"], "{cut:?}");
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn an_own_connection_receives_past_a_cut() {
    for transport in [Transport::Tcp, Transport::Unix] {
        for &cut in Cut::of(transport) {
            bounded(&format!("{transport:?} {cut:?}"), move || {
                let (ours, mut peer) = sockets(transport);
                cut.prepare(&ours);
                let dialer = Dialer::new().read_timeout(LIMIT);
                let mut conn = dialer.adopt(ours).unwrap();
                cut.send(&mut peer, [b"abc", b"def", b"ghi"]);
                assert_eq!(conn.next(9).unwrap(), b"abcdefghi");
                cut.send(&mut peer, [b"abc", b"def", b"ghi"]);
                eventually("all of it in our kernel", || peer.unsent() == 0);
                assert_eq!(conn.try_next(9).unwrap().unwrap(), b"abcdefghi");
            });
        }
    }
}

#[test]
fn a_bulk_relay_goes_past_a_cut() {
    for transport in [Transport::Tcp, Transport::Unix] {
        for &cut in Cut::of(transport) {
            bounded(&format!("{transport:?} {cut:?}"), move || {
                let (a, mut client) = sockets(transport);
                let (b, mut server) = sockets(transport);
                cut.prepare(&a);
                let dialer = Dialer::new();
                let relay = relay(dialer.adopt(a).unwrap(), dialer.adopt(b).unwrap()).unwrap();
                // Enough for the relay to move it inside of the kernel.
                let bulk = pattern(7, 8 << 20);
                let sent = bulk.clone();
                let writer = thread::spawn(move || {
                    client.write_all(&sent).unwrap();
                    cut.send(&mut client, [b"abc", b"def", b"ghi"]);
                    client
                });
                let mut got = vec![0; bulk.len() + 9];
                server.read_exact(&mut got).unwrap();
                assert!(got.starts_with(&bulk));
                assert_eq!(&got[bulk.len()..], b"abcdefghi");
                let mut client = writer.join().unwrap();
                client.shutdown_write();
                server.expect_end();
                server.shutdown_write();
                client.expect_end();
                let outcome = relay.wait_timeout(LIMIT).unwrap().expect("the relay ends");
                assert_eq!(outcome.end, RelayEnd::Finished);
            });
        }
    }
}
