//! Idle relays: what counts as movement, and what a relay leaves behind that is stopped.

use crate::support::{LIMIT, Peer, Transport, bounded, eventually, let_pass, pattern};
use netpoll::{Connection, Dialer, Relay, RelayEnd, RelayOutcome, RelayVerdict, relay};
use socket2::SockRef;
use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Unix];

/// A side, and its peer with small buffers or usual ones.
fn side(transport: Transport, small: bool) -> (Connection, Peer) {
    let (ours, peer): (OwnedFd, _) = match transport {
        Transport::Tcp => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap().into();
            let peer = if small {
                Peer::connect_small(&to).unwrap()
            } else {
                Peer::connect(&to).unwrap()
            };
            (listener.accept().unwrap().0.into(), peer)
        }
        Transport::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (ours.into(), Peer::Unix(peer))
        }
    };
    peer.set_limit(Some(LIMIT));
    (Dialer::new().adopt(ours).unwrap(), peer)
}

/// A relay to a reader, and a writer who sends more than all buffers on the way hold.
struct Download {
    relay: Relay,
    reader: Peer,
    writing: JoinHandle<io::Result<()>>,
    writer: Peer,
}

const SIZE: usize = 12_000_000;

impl Download {
    fn begin(transport: Transport, idle_timeout: Duration) -> Self {
        let (a, reader) = side(transport, true);
        let (b, writer) = side(transport, false);
        let relay = Relay::builder().idle_timeout(idle_timeout);
        let relay = relay.start(a, b).unwrap();
        let mut out = writer.try_clone();
        let writing = thread::spawn(move || out.write_all(&pattern(7, SIZE)));
        Self {
            relay,
            reader,
            writing,
            writer,
        }
    }

    /// Waits until everything is full.
    fn fill(&self) {
        let mut before = (0, Instant::now());
        eventually("nothing moves", || {
            let moved = self.relay.moved().1;
            if moved != before.0 {
                before = (moved, Instant::now());
            }
            moved > 0 && before.1.elapsed() > Duration::from_millis(50)
        });
    }

    /// The reader has room from here on.
    fn hurry(&self) {
        let socket = SockRef::from(&self.reader);
        socket.set_recv_buffer_size(4 << 20).unwrap();
    }

    #[track_caller]
    fn end(&self) -> RelayOutcome {
        let outcome = self.relay.wait_timeout(LIMIT).unwrap();
        outcome.expect("the relay ends")
    }
}

#[test]
fn a_download_that_is_read_slowly_is_not_idle() {
    bounded("slow", || {
        for transport in TRANSPORTS {
            // On a busy machine it may take some attempts to be a reader without pauses.
            assert!((0..20).any(|_| reads_slowly(transport)), "never in time");
        }
    });
}

/// `false`: the reader made a pause, so the relay may have been right to end.
fn reads_slowly(transport: Transport) -> bool {
    let timeout = Duration::from_millis(600);
    let mut download = Download::begin(transport, timeout);
    let mut got = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let mut last = Instant::now();
    let begin = last;
    // Far less in all this time than the third of a send buffer at which a system reports room.
    while begin.elapsed() < timeout * 4 {
        let n = download.reader.read(&mut piece).unwrap();
        if last.elapsed() > timeout / 2 {
            println!("not judged: {:?} without a read", last.elapsed());
            download.relay.interrupt();
            drop(download.end());
            drop(download.reader);
            let _ = download.writing.join().unwrap();
            return false;
        }
        assert!(n > 0, "the end after {} bytes", got.len());
        got.extend_from_slice(&piece[..n]);
        last = Instant::now();
        let_pass(timeout / 20);
    }
    download.hurry();
    let reader = thread::spawn(move || {
        download.reader.read_to_end(&mut got).unwrap();
        got
    });
    download.writing.join().unwrap().unwrap();
    download.writer.shutdown_write();
    drop(download.writer);
    assert!(reader.join().unwrap() == pattern(7, SIZE));
    true
}

/// What may become of a side that is given back.
const FATES: [fn(Relay, RelayOutcome); 3] = [
    |_, outcome| drop(outcome),
    |_, outcome| outcome.a.unwrap().close().unwrap(),
    |relay, outcome| {
        drop((relay, outcome.a));
    },
];

#[test]
fn a_side_that_was_cut_in_a_stream_sees_a_reset() {
    bounded("cut", || {
        for interrupt in [false, true] {
            for fate in FATES {
                let timeout = if interrupt { 60_000 } else { 100 };
                let timeout = Duration::from_millis(timeout);
                let mut download = Download::begin(Transport::Tcp, timeout);
                if interrupt {
                    download.fill();
                    download.relay.interrupt();
                }
                let outcome = download.end();
                let end = if interrupt {
                    RelayEnd::Interrupted
                } else {
                    RelayEnd::IdleTimeout
                };
                assert_eq!(outcome.end, end);
                assert!(outcome.a.is_some() && outcome.b.is_some());
                fate(download.relay, outcome);
                let mut got = Vec::new();
                let error = download.reader.read_to_end(&mut got).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                let _ = download.writing.join().unwrap();
            }
        }
    });
}

#[test]
fn a_side_that_is_dropped_at_the_end_of_its_relay_sees_a_reset() {
    bounded("callback", || {
        let mut download = Download::begin(Transport::Tcp, Duration::from_millis(100));
        let (ends, ended) = mpsc::channel();
        // As a proxy does that only counts.
        download
            .relay
            .on_end(move |outcome| ends.send(outcome.end).unwrap());
        assert_eq!(ended.recv_timeout(LIMIT).unwrap(), RelayEnd::IdleTimeout);
        let error = download.reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let _ = download.writing.join().unwrap();
    });
}

#[test]
fn sides_that_were_stopped_in_a_stream_go_on_in_another_relay() {
    bounded("another", || {
        for transport in TRANSPORTS {
            let mut download = Download::begin(transport, Duration::from_millis(100));
            let outcome = download.end();
            assert_eq!(outcome.end, RelayEnd::IdleTimeout);
            let again = relay(outcome.a.unwrap(), outcome.b.unwrap()).unwrap();
            download.hurry();
            let (writer, writing) = (download.writer, download.writing);
            let ending = thread::spawn(move || {
                writing.join().unwrap().unwrap();
                writer.shutdown_write();
                writer
            });
            let mut got = Vec::new();
            download
                .reader
                .read_to_end(&mut got)
                .expect("an end in order");
            assert!(got == pattern(7, SIZE));
            let writer = ending.join().unwrap();
            drop(download.reader);
            assert_eq!(again.wait().unwrap().end, RelayEnd::Finished);
            drop(writer);
        }
    });
}

#[test]
fn a_side_that_gets_something_else_after_its_relay_ends_in_order() {
    bounded("else", || {
        let mut download = Download::begin(Transport::Tcp, Duration::from_millis(100));
        let RelayOutcome { a, b, .. } = download.end();
        let mut a = a.unwrap();
        let reading = thread::spawn(move || {
            let mut got = Vec::new();
            download.reader.read_to_end(&mut got).map(|_| got)
        });
        a.write_str("that is all").unwrap();
        a.flush().unwrap();
        drop((a, b));
        let got = reading.join().unwrap().expect("an end in order");
        assert!(got.ends_with(b"that is all"));
        let _ = download.writing.join().unwrap();
    });
}

#[test]
fn output_that_only_a_kernel_has_is_unsent_when_its_reader_was_idle() {
    bounded("kernel", || {
        for transport in TRANSPORTS {
            let (a, reader) = side(transport, true);
            let (b, mut writer) = side(transport, false);
            let builder = Relay::builder().idle_timeout(Duration::from_millis(100));
            let relay = builder.start(a, b).unwrap();
            writer.write_all(&[1; 100_000]).unwrap();
            let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
            assert_eq!(
                (outcome.end, outcome.b_to_a, outcome.a_verdict),
                (RelayEnd::IdleTimeout, 100_000, RelayVerdict::UnsentOutput)
            );
            assert_eq!(outcome.a.as_ref().unwrap().stats().queued, 0);
            drop(reader);
        }
    });
}

#[test]
fn a_relay_whose_sides_have_everything_ends_in_order_when_it_was_idle() {
    bounded("sound", || {
        let (a, mut client) = side(Transport::Tcp, false);
        let (b, mut server) = side(Transport::Tcp, false);
        let builder = Relay::builder().idle_timeout(Duration::from_millis(100));
        let relay = builder.start(a, b).unwrap();
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
        assert_eq!(
            (outcome.end, outcome.a_verdict, outcome.b_verdict),
            (
                RelayEnd::IdleTimeout,
                RelayVerdict::Sound,
                RelayVerdict::Sound
            )
        );
        drop(outcome);
        client.expect_end();
        server.expect_end();
    });
}
