//! A million bytes each way through two proxies in a row, for every pair of ways to end.
//!
//! Both proxies share one poller, so the chain would stand still if a relay ever held it up.

use netpoll::{Address, Connection, Dialer, EventLoop, Relay, RelayEnd};
use socket2::SockRef;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);
const LEN: usize = 1_000_000;

/// How one end of the chain behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Reads what it knows is coming, then closes.
    Closes,
    /// Ends its output first, then reads to the end of input.
    HalfCloses,
    /// Reads nothing until the other end cannot send more.
    Stalls,
    /// Resets the connection when everything has arrived.
    Resets,
}

const ENDS: [End; 4] = [End::Closes, End::HalfCloses, End::Stalls, End::Resets];

fn pattern(seed: u8) -> Arc<Vec<u8>> {
    Arc::new((0..LEN).map(|i| (i * 31 + i / 256) as u8 ^ seed).collect())
}

/// A proxy to `backend` on one poller that others share; reports how its relays end.
fn proxy(
    pollers: &netpoll::PollerGroup,
    backend: SocketAddr,
    ends: &mpsc::Sender<RelayEnd>,
) -> (EventLoop, SocketAddr) {
    let ends = ends.clone();
    let dialer = Dialer::new().pollers(pollers.clone());
    let proxy = EventLoop::builder()
        .pollers(pollers.clone())
        .build(netpoll::event_fn(move |client: &mut Connection, event| {
            if event == netpoll::ConnectionEvent::Connected {
                let backend = dialer.dial_connection(Address::from(backend))?;
                let relay = Relay::builder()
                    .in_flight(64 << 10)
                    .start(client.hijack()?, backend)?;
                let ends = ends.clone();
                relay.on_end(move |outcome| ends.send(outcome.end).unwrap());
            }
            Ok(())
        }));
    let proxy = proxy.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    proxy.serve_in_background(listener).unwrap();
    (proxy, addr)
}

#[allow(clippy::too_many_arguments)]
/// Sends and receives as `end` does; `sent` counts what each side has handed to its kernel.
fn play(
    end: End,
    mut socket: TcpStream,
    ours: Arc<Vec<u8>>,
    theirs: &[u8],
    sent: &Arc<[AtomicUsize; 2]>,
    index: usize,
    arrived: &Barrier,
    other: End,
) {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.set_write_timeout(Some(LIMIT)).unwrap();
    let mut out = socket.try_clone().unwrap();
    let counts = Arc::clone(sent);
    let writer = thread::spawn(move || {
        for piece in ours.chunks(10_000) {
            out.write_all(piece).unwrap();
            counts[index].fetch_add(piece.len(), Ordering::SeqCst);
        }
        if end == End::HalfCloses {
            out.shutdown(Shutdown::Write).unwrap();
        }
    });
    if end == End::Stalls {
        // Until the other end is done or got no further for a while.
        let mut before = usize::MAX;
        loop {
            let now = sent[1 - index].load(Ordering::SeqCst);
            if now == LEN || now == before {
                break;
            }
            before = now;
            thread::sleep(Duration::from_millis(25));
        }
    }
    let mut got = vec![0; LEN];
    socket.read_exact(&mut got).unwrap();
    assert!(got == theirs, "{end:?}: what arrived differs");
    writer.join().unwrap();
    // Both ends have everything before either goes.
    arrived.wait();
    match end {
        End::Resets => SockRef::from(&socket)
            .set_linger(Some(Duration::ZERO))
            .unwrap(),
        End::HalfCloses => match socket.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(e) if other == End::Resets => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
            unexpected => panic!("{unexpected:?} instead of the end of input"),
        },
        End::Closes | End::Stalls if other == End::Resets => {
            // A reset is passed on as a reset, however many relays are between.
            let error = socket.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        End::Closes | End::Stalls => {}
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn two_proxies_in_a_row_lose_nothing_however_the_ends_behave() {
    let pollers = netpoll::PollerGroup::new(1, netpoll::Balance::RoundRobin).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&server)
        .set_recv_buffer_size(32 << 10)
        .unwrap();
    let (ends, ended) = mpsc::channel();
    let (inner, inner_addr) = proxy(&pollers, server.local_addr().unwrap(), &ends);
    let (outer, outer_addr) = proxy(&pollers, inner_addr, &ends);
    let (request, reply) = (pattern(0), pattern(0x5a));
    for client_end in ENDS {
        for server_end in ENDS {
            let client = TcpStream::connect(outer_addr).unwrap();
            SockRef::from(&client)
                .set_recv_buffer_size(32 << 10)
                .unwrap();
            let (accepted, _) = server.accept().unwrap();
            let sent = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
            let arrived = Arc::new(Barrier::new(2));
            let far = {
                let (sent, arrived) = (Arc::clone(&sent), Arc::clone(&arrived));
                let (request, reply) = (Arc::clone(&request), Arc::clone(&reply));
                thread::spawn(move || {
                    let ours = reply;
                    play(
                        server_end, accepted, ours, &request, &sent, 1, &arrived, client_end,
                    );
                })
            };
            let ours = Arc::clone(&request);
            play(
                client_end, client, ours, &reply, &sent, 0, &arrived, server_end,
            );
            far.join().unwrap();
            let resets = client_end == End::Resets || server_end == End::Resets;
            for _ in 0..2 {
                let end = ended.recv_timeout(LIMIT).expect("both relays end");
                let fits = match end {
                    RelayEnd::Failed(_) => resets,
                    other => !resets && other == RelayEnd::Finished,
                };
                assert!(fits, "{client_end:?} and {server_end:?} ended with {end:?}");
            }
        }
    }
    outer.shutdown(LIMIT).unwrap();
    inner.shutdown(LIMIT).unwrap();
    pollers.close();
}
