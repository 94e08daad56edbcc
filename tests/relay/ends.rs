//! How relays end when a side fails: what had come from it is delivered first.

use crate::support::{
    Case, Kind, LIMIT, Peer, Script, Transport, bounded, eventually, every, every_blocking, pattern,
};
use netpoll::{
    Address, Connection, Dialer, Pool, Relay, RelayBuilder, RelayEnd, RelayVerdict, relay,
};
use socket2::SockRef;
use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::mpsc,
    thread,
    time::Duration,
};

const REPLY: &[u8] = b"-ERR Protocol error\r\n";

/// As much as goes through memory, and as much as makes a relay go through the kernel.
const SIZES: [usize; 2] = [300_000, 3_000_000];

/// A dialer whose connections wait for slow peers as long as a test may take.
fn dialer(case: Case) -> Dialer {
    Dialer::new()
        .dispatch(case.kind.dispatch())
        .linger(LIMIT, 256 << 10)
}

fn side(transport: Transport, dialer: &Dialer) -> (Connection, Peer) {
    let (ours, peer): (OwnedFd, _) = match transport {
        Transport::Tcp => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            peer.set_nodelay(true).unwrap();
            (listener.accept().unwrap().0.into(), Peer::Tcp(peer))
        }
        Transport::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (ours.into(), Peer::Unix(peer))
        }
    };
    peer.set_limit(Some(LIMIT));
    (dialer.adopt(ours).unwrap(), peer)
}

/// A relay between one that asks and one that answers.
struct Talk {
    relay: Relay,
    asker: Peer,
    author: Option<Peer>,
    /// Our end of the author's connection.
    theirs: netpoll::ConnectionHandle,
    /// Our end of the asker's connection.
    ours: netpoll::ConnectionHandle,
}

impl Talk {
    /// The author is behind side `b`, or `a` if `turned`; `mixed`: over a socket of the other family.
    fn begin(case: Case, turned: bool, mixed: bool) -> Self {
        Self::over(case.transport, &dialer(case), turned, mixed)
    }

    fn over(transport: Transport, dialer: &Dialer, turned: bool, mixed: bool) -> Self {
        Self::with(&Relay::builder(), transport, dialer, turned, mixed)
    }

    fn with(
        builder: &RelayBuilder,
        transport: Transport,
        dialer: &Dialer,
        turned: bool,
        mixed: bool,
    ) -> Self {
        let other = match transport {
            Transport::Tcp if mixed => Transport::Unix,
            Transport::Unix if mixed => Transport::Tcp,
            same => same,
        };
        let (near, asker) = side(transport, dialer);
        let (far, author) = side(other, dialer);
        let (ours, theirs) = (near.handle(), far.handle());
        let builder = builder.clone();
        let relay = if turned {
            builder.start(far, near)
        } else {
            builder.start(near, far)
        };
        Self {
            relay: relay.unwrap(),
            asker,
            author: Some(author),
            theirs,
            ours,
        }
    }

    fn author(&mut self) -> &mut Peer {
        self.author.as_mut().expect("it is still there")
    }

    fn take_author(&mut self) -> Peer {
        self.author.take().expect("it is still there")
    }

    #[track_caller]
    fn expect_failure(&self) {
        let outcome = self
            .relay
            .wait_timeout(LIMIT)
            .unwrap()
            .expect("the relay ends");
        assert!(matches!(outcome.end, RelayEnd::Failed(_)), "{outcome:?}");
    }
}

/// Both directions, and both families of sockets on the author's side.
fn each(test: impl Fn(Case, bool, bool) + Send + Sync + 'static) {
    every(move |case| {
        for turned in [false, true] {
            for mixed in [false, true] {
                test(case, turned, mixed);
            }
        }
    });
}

/// As [`each`], for what takes its time: under the two dispatches that differ most.
fn each_slow(test: impl Fn(Case, bool, bool) + Send + Sync + 'static) {
    bounded("slow", move || {
        for transport in [Transport::Tcp, Transport::Unix] {
            for kind in [Kind::Adaptive, Kind::Inline] {
                for turned in [false, true] {
                    for mixed in [false, true] {
                        println!("{transport:?} {kind:?} {turned} {mixed}");
                        test(Case::new(transport, kind), turned, mixed);
                    }
                }
            }
        }
    });
}

/// Everything up to the end, and whether the end was one in order.
fn read_all(peer: &mut Peer) -> (Vec<u8>, io::Result<()>) {
    let mut got = Vec::new();
    let end = peer.read_to_end(&mut got).map(drop);
    (got, end)
}

/// A unix socket has no reset of its own.
#[track_caller]
fn expect_reset(peer: &Peer, end: &io::Result<()>) {
    if matches!(peer, Peer::Tcp(_)) {
        let kind = end.as_ref().map_err(io::Error::kind);
        assert_eq!(kind, Err(ErrorKind::ConnectionReset), "a cut stream");
    }
}

/// Writes until nobody is there.
fn write_on(peer: &Peer) {
    let mut peer = peer.try_clone();
    while peer.write_all(b"payload").is_ok() {}
}

/// Reads a little, answers and closes with input unread.
fn answer_and_go(mut author: Peer) {
    author.read_exact(&mut [0; 7]).unwrap();
    author.write_all(REPLY).unwrap();
}

#[test]
fn a_last_reply_arrives_whatever_its_author_left_unread() {
    each(|case, turned, mixed| {
        for _ in 0..8 {
            let mut talk = Talk::begin(case, turned, mixed);
            let author = talk.take_author();
            let answering = thread::spawn(move || answer_and_go(author));
            write_on(&talk.asker);
            answering.join().unwrap();
            let (got, _) = read_all(&mut talk.asker);
            assert_eq!(got, REPLY, "{turned} {mixed}");
            talk.expect_failure();
        }
    });
}

/// How an author goes whose stream is not complete.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    /// With a reset of its own.
    Resets,
    /// With input unread, which resets as well.
    LeavesUnread,
    /// The same when the asker has ended its output.
    HalfClosed,
}

#[test]
fn what_came_before_a_reset_arrives_before_the_reset() {
    each_slow(|case, turned, mixed| {
        for leave in [Leave::Resets, Leave::LeavesUnread, Leave::HalfClosed] {
            for size in SIZES {
                let what = format!("{leave:?} {size} {turned} {mixed}");
                let mut talk = Talk::begin(case, turned, mixed);
                if leave != Leave::Resets || matches!(talk.author(), Peer::Unix(_)) {
                    talk.asker.write_all(b"never read").unwrap();
                    eventually("it is with the author", || {
                        let moved = talk.relay.moved();
                        moved.0 + moved.1 == 10
                    });
                }
                if leave == Leave::HalfClosed {
                    talk.asker.shutdown_write();
                }
                let sent = flood(talk.author(), size);
                // What the author's own system still has goes with its connection.
                let author = talk.take_author();
                let least = sent - author.unsent() as usize;
                if leave == Leave::Resets && matches!(author, Peer::Tcp(_)) {
                    author.reset();
                } else {
                    drop(author);
                }
                eventually("the relay's side knows", || !talk.theirs.is_active());
                let (got, end) = read_all(&mut talk.asker);
                assert!(got.len() >= least, "{what}: {} of {least}", got.len());
                assert!(got == pattern(0, size)[..got.len()], "{what}");
                expect_reset(&talk.asker, &end);
                talk.expect_failure();
            }
        }
    });
}

/// Writes a pattern of that size, as much as goes without a reader; how much that was.
fn flood(peer: &mut Peer, size: usize) -> usize {
    let data = pattern(0, size);
    let mut sent = 0;
    peer.set_limit(Some(Duration::from_millis(50)));
    while sent < size {
        match peer.write(&data[sent..]) {
            Ok(n) => sent += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(e) => panic!("flood after {sent} bytes: {e}"),
        }
    }
    peer.set_limit(Some(LIMIT));
    sent
}

#[test]
fn an_end_in_order_stays_one_although_later_sends_fail() {
    each(|case, turned, mixed| {
        let mut talk = Talk::begin(case, turned, mixed);
        talk.asker.write_all(b"?").unwrap();
        talk.author().read_exact(&mut [0]).unwrap();
        talk.author().write_all(REPLY).unwrap();
        // Nothing is unread: this is an end of the stream.
        drop(talk.take_author());
        let asker = talk.asker.try_clone();
        let writing = thread::spawn(move || write_on(&asker));
        let (got, end) = read_all(&mut talk.asker);
        assert_eq!(got, REPLY);
        end.expect("the reply was complete");
        writing.join().unwrap();
        talk.expect_failure();
    });
}

/// A backend of which each connection is treated that way.
fn backend(treat: impl Fn(Peer) + Send + Sync + 'static) -> Address {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let peer = Peer::Tcp(stream.unwrap());
            peer.set_limit(Some(LIMIT));
            treat(peer);
        }
    });
    address.into()
}

fn proxy(pool: Pool, to: Address) -> Script {
    Script::new().connect(move |client| {
        let backend = pool.get(&to)?;
        relay(client.hijack()?, backend).map(drop)
    })
}

#[test]
fn a_proxy_delivers_the_last_words_of_its_backends() {
    every_blocking(|case| {
        let to = backend(answer_and_go);
        let server = case.serve(proxy(Pool::new(dialer(case)), to));
        for _ in 0..20 {
            let mut client = server.connect();
            write_on(&client);
            assert_eq!(read_all(&mut client).0, REPLY);
        }
        server.stop();
    });
}

#[test]
fn a_proxy_delivers_what_its_backend_said_before_the_relay() {
    every_blocking(|case| {
        let to = backend(|mut author| author.write_all(REPLY).unwrap());
        let server = case.serve(proxy(Pool::new(dialer(case)), to));
        for _ in 0..20 {
            let mut client = server.connect();
            assert_eq!(client.rest().unwrap(), REPLY);
        }
        server.stop();
    });
}

#[test]
fn a_side_that_is_closed_here_resets_whom_it_cuts() {
    each(|case, turned, mixed| {
        let mut talk = Talk::begin(case, turned, mixed);
        let sent = flood(talk.author(), SIZES[1]);
        let moved = talk.relay.moved();
        talk.theirs.close();
        let (got, end) = read_all(&mut talk.asker);
        assert!(got.len() as u64 >= moved.0 + moved.1 && got.len() <= sent);
        assert!(got == pattern(0, SIZES[1])[..got.len()]);
        expect_reset(&talk.asker, &end);
        talk.expect_failure();
    });
}

#[test]
fn a_side_that_has_not_got_everything_sees_no_end_in_order() {
    each_slow(|case, turned, mixed| {
        let mut talk = Talk::begin(case, turned, mixed);
        flood(talk.author(), 30_000_000);
        let author = talk.take_author();
        let writing = thread::spawn(move || write_on(&author));
        // There is always more than it gets.
        talk.ours.close();
        let (_, end) = read_all(&mut talk.asker);
        expect_reset(&talk.asker, &end);
        talk.expect_failure();
        writing.join().unwrap();
    });
}

#[test]
fn a_relay_ends_whose_sides_both_fail_with_both_ways_full() {
    each_slow(|case, turned, mixed| {
        let mut talk = Talk::begin(case, turned, mixed);
        let peers = [talk.take_author(), talk.asker.try_clone()];
        let floods = [0, 1].map(|index: usize| {
            let mut peer = peers[index].try_clone();
            thread::spawn(move || flood(&mut peer, 30_000_000))
        });
        for flood in floods {
            flood.join().unwrap();
        }
        let (relay, theirs) = (talk.relay.clone(), talk.theirs.clone());
        drop(talk);
        for peer in peers {
            if matches!(peer, Peer::Tcp(_)) {
                peer.reset();
            }
        }
        let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
        assert!(matches!(outcome.end, RelayEnd::Failed(_)), "{outcome:?}");
        theirs
            .done()
            .wait_timeout(LIMIT)
            .expect("it is over")
            .unwrap_err();
    });
}

#[test]
fn a_peer_that_takes_nothing_does_not_hold_an_ended_relay() {
    bounded("bound", || {
        for transport in [Transport::Tcp, Transport::Unix] {
            let dialer = Dialer::new().linger(Duration::from_millis(100), 256 << 10);
            let mut talk = Talk::over(transport, &dialer, false, false);
            SockRef::from(&talk.asker)
                .set_recv_buffer_size(4096)
                .unwrap();
            talk.asker.write_all(b"never read").unwrap();
            eventually("it is with the author", || talk.relay.moved().0 == 10);
            flood(talk.author(), SIZES[0]);
            drop(talk.take_author());
            talk.expect_failure();
            let (got, end) = read_all(&mut talk.asker);
            assert!(got.len() < SIZES[0], "more than its buffers hold");
            expect_reset(&talk.asker, &end);
        }
    });
}

#[test]
fn what_came_from_a_kept_side_arrives_although_the_other_has_ended() {
    every(|case| {
        for mixed in [false, true] {
            for size in SIZES {
                let builder = Relay::builder().keep_b(true);
                let mut talk = Talk::with(&builder, case.transport, &dialer(case), false, mixed);
                let sent = flood(talk.author(), size);
                let least = sent - talk.author().unsent() as usize;
                talk.asker.shutdown_write();
                let (ends, ended) = mpsc::channel();
                talk.relay.on_end(move |outcome| {
                    ends.send((outcome.end, outcome.b_verdict)).unwrap();
                });
                let (got, end) = read_all(&mut talk.asker);
                assert!(
                    got.len() >= least,
                    "{size} {mixed}: {} of {least}",
                    got.len()
                );
                assert!(got == pattern(0, size)[..got.len()]);
                let (how, verdict) = ended.recv_timeout(LIMIT).unwrap();
                assert_eq!(how, RelayEnd::Released);
                if got.len() == sent {
                    end.expect("it has everything");
                    assert_eq!(verdict, RelayVerdict::Sound);
                }
            }
        }
    });
}

/// How two streams come to their ends, each complete.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Parting {
    /// The asker ends its stream; the author sees that, answers and is gone.
    Answers,
    /// The same, with an end of its own first.
    Ends,
    /// The author ends its stream; the asker sees that and is gone; the author sees that and is gone.
    EndsFirst,
    /// The author is gone after its answer; the asker sees that and ends.
    GoesFirst,
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn peers_that_go_after_both_ends_have_finished() {
    const PARTINGS: [Parting; 4] = [
        Parting::Answers,
        Parting::Ends,
        Parting::EndsFirst,
        Parting::GoesFirst,
    ];
    each(|case, turned, mixed| {
        for parting in PARTINGS {
            for size in [0, 10, SIZES[0], SIZES[1]] {
                for _ in 0..5 {
                    go_after_both_ends(case, turned, mixed, parting, size);
                }
            }
        }
    });
}

fn go_after_both_ends(case: Case, turned: bool, mixed: bool, parting: Parting, size: usize) {
    let mut talk = Talk::begin(case, turned, mixed);
    let mut author = talk.take_author();
    let answering = thread::spawn(move || {
        if matches!(parting, Parting::Answers | Parting::Ends) {
            assert_eq!(read_all(&mut author).0, b"question");
        } else {
            author.read_exact(&mut [0; 8]).unwrap();
        }
        author.write_all(&pattern(0, size)).unwrap();
        if matches!(parting, Parting::Ends | Parting::EndsFirst) {
            author.shutdown_write();
        }
        if parting == Parting::EndsFirst {
            assert_eq!(read_all(&mut author).0, b"");
        }
    });
    talk.asker.write_all(b"question").unwrap();
    if matches!(parting, Parting::Answers | Parting::Ends) {
        talk.asker.shutdown_write();
    }
    if size == SIZES[0] && parting != Parting::EndsFirst {
        // It is gone before anything is read, and the relay has what the sockets do not hold.
        answering.join().unwrap();
        let (got, end) = read_all(&mut talk.asker);
        end.expect("an end in order");
        assert!(got == pattern(0, size));
        drop(talk.asker);
    } else {
        let (got, end) = read_all(&mut talk.asker);
        end.expect("an end in order");
        assert!(got == pattern(0, size));
        drop(talk.asker);
        answering.join().unwrap();
    }
    let outcome = talk.relay.wait_timeout(LIMIT).unwrap();
    let what = format!("{parting:?} {size} {turned} {mixed}");
    let outcome = outcome.expect("the relay ends");
    assert_eq!(outcome.end, RelayEnd::Finished, "{what}: {outcome:?}");
}
