//! No memory is asked for and nothing is copied once a connection is warm.

use crate::support::{
    Case, Kind, LIMIT, Peer, Script, Transport, counting, decode, echo, echo_frames, eventually,
    frame, in_child, one_thread, pair, pattern,
};
use netpoll::{Connection, Dialer, EventLoop, Handler, PollerGroup, handler_fn};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// Exchanges `rounds` frames with fixed buffers only.
fn exchange(peer: &mut Peer, out: &[u8], back: &mut [u8], rounds: usize) {
    for _ in 0..rounds {
        peer.write_all(out).unwrap();
        peer.read_exact(back).unwrap();
    }
    assert!(back == out, "the echo differs");
}

#[track_caller]
fn server_allocates_nothing(case: Case, handler: impl Handler, len: usize) {
    const ROUNDS: usize = 300;
    let server = case.serve(handler);
    let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    let out = frame(&pattern(1, len));
    let mut back = vec![0; out.len()];
    for peer in &mut peers {
        exchange(peer, &out, &mut back, 500);
    }
    // On a busy machine a thread that lost its processor hands its role over; one quiet window must
    // come.
    let mut fewest = u64::MAX;
    for _ in 0..100 {
        let before = counting::calls();
        for peer in &mut peers {
            exchange(peer, &out, &mut back, ROUNDS / 3);
        }
        fewest = fewest.min(counting::calls() - before);
        if fewest == 0 {
            break;
        }
    }
    // A large frame may come in pieces on a busy machine, and then gets a chunk of its own.
    let most = if len > 16 << 10 {
        ROUNDS as u64 / 50
    } else {
        0
    };
    assert!(
        fewest <= most,
        "{fewest} allocations in {ROUNDS} requests of {len} bytes, {case:?}"
    );
    drop(peers);
    server.stop();
}

#[test]
fn an_echo_of_linked_frames_allocates_nothing() {
    in_child("an_echo_of_linked_frames_allocates_nothing", || {
        for kind in [Kind::Adaptive, Kind::Inline, Kind::Workers] {
            for transport in [Transport::Tcp, Transport::Unix] {
                for len in [1, 100, 1000, 4096, 16 << 10, 40 << 10] {
                    server_allocates_nothing(Case::new(transport, kind), echo(), len);
                }
            }
        }
    });
}

#[test]
fn an_echo_of_everything_there_is_allocates_nothing() {
    in_child("an_echo_of_everything_there_is_allocates_nothing", || {
        for kind in [Kind::Adaptive, Kind::Inline] {
            for len in [100, 4096] {
                let handler = handler_fn(|conn| {
                    let all = conn.slice(conn.available())?;
                    conn.append(all)?;
                    conn.flush()
                });
                server_allocates_nothing(Case::new(Transport::Tcp, kind), handler, len);
            }
        }
    });
}

#[test]
fn an_echo_of_copied_frames_allocates_nothing() {
    in_child("an_echo_of_copied_frames_allocates_nothing", || {
        let handler = || {
            handler_fn(|conn| {
                // The body is looked at and written anew.
                while let Some(head) = conn.try_peek(4)? {
                    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                    let mut body = [0; 4096];
                    let Some(whole) = conn.try_next(4 + len)? else {
                        break;
                    };
                    body[..len].copy_from_slice(&whole[4..]);
                    let slot = conn.reserve_slot::<4>()?;
                    conn.write_slice(&body[..len])?;
                    conn.fill_slot(slot, (len as u32).to_be_bytes())?;
                }
                conn.flush()
            })
        };
        for kind in [Kind::Adaptive, Kind::Inline, Kind::Workers] {
            for len in [1, 100, 1000, 4096] {
                server_allocates_nothing(Case::new(Transport::Tcp, kind), handler(), len);
            }
        }
    });
}

#[test]
fn an_echo_with_a_waiting_handler_allocates_nothing() {
    in_child("an_echo_with_a_waiting_handler_allocates_nothing", || {
        // The handler asks for the frame and waits for it, whether it is there or not.
        let handler = handler_fn(|conn| {
            let head = conn.next(4)?;
            let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = conn.slice(len)?;
            conn.write_slice(&(len as u32).to_be_bytes())?;
            conn.append(body)?;
            conn.flush()
        });
        server_allocates_nothing(Case::new(Transport::Tcp, Kind::Adaptive), handler, 1000);
    });
}

#[test]
fn a_blocking_call_allocates_nothing() {
    in_child("a_blocking_call_allocates_nothing", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for len in [1usize, 100, 1000, 4096, 16 << 10, 60 << 10] {
            let dialer = Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT);
            let mut conn = dialer.dial_connection(address).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let echoing = thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(n) => stream.write_all(&buffer[..n]).unwrap(),
                    }
                }
            });
            let body = pattern(2, len);
            let call = |conn: &mut Connection| {
                conn.malloc(4)
                    .unwrap()
                    .copy_from_slice(&(len as u32).to_be_bytes());
                conn.write_slice(&body).unwrap();
                conn.flush().unwrap();
                let head = conn.next(4).unwrap();
                assert_eq!(head, (len as u32).to_be_bytes());
                assert!(conn.next(len).unwrap() == body);
            };
            for _ in 0..300 {
                call(&mut conn);
            }
            let mut fewest = u64::MAX;
            // One quiet window must come; see above.
            for _ in 0..500 {
                let before = counting::calls();
                for _ in 0..100 {
                    call(&mut conn);
                }
                fewest = fewest.min(counting::calls() - before);
                if fewest == 0 {
                    break;
                }
            }
            assert_eq!(fewest, 0, "allocations in 100 calls of {len} bytes");
            drop(conn);
            echoing.join().unwrap();
        }
    });
}

#[test]
fn a_pooled_call_allocates_little() {
    in_child("a_pooled_call_allocates_little", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = netpoll::Pool::new(Dialer::new().read_timeout(LIMIT));
        let out = frame(&pattern(3, 100));
        let call = || {
            let mut conn = pool.get(&server.address).unwrap();
            conn.write_slice(&out).unwrap();
            conn.flush().unwrap();
            assert!(conn.next(out.len()).unwrap() == out);
        };
        for _ in 0..300 {
            call();
        }
        let mut fewest = u64::MAX;
        // One quiet window must come; see above.
        for _ in 0..500 {
            let before = counting::calls();
            for _ in 0..100 {
                call();
            }
            fewest = fewest.min(counting::calls() - before);
            if fewest == 0 {
                break;
            }
        }
        assert_eq!(fewest, 0, "allocations in 100 calls");
        pool.close();
        server.stop();
    });
}

#[test]
fn a_linked_echo_copies_nothing() {
    in_child("a_linked_echo_copies_nothing", || {
        // The bytes that are sent lie where they were received.
        let checked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&checked);
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let server = case.serve(handler_fn(move |conn| {
            while let Some(head) = conn.try_peek(4)? {
                let received = head.as_ptr();
                let Some(frame) = decode(conn)? else { break };
                let sent = frame.chunks().next().expect("a frame has bytes").as_ptr();
                assert_eq!(received, sent, "the frame was copied");
                conn.append(frame)?;
                count.fetch_add(1, SeqCst);
            }
            conn.flush()
        }));
        let mut peer = server.connect();
        for len in [600, 1000, 4096, 20_000] {
            let out = frame(&pattern(4, len));
            let mut back = vec![0; out.len()];
            exchange(&mut peer, &out, &mut back, 50);
        }
        assert_eq!(checked.load(SeqCst), 200);
        drop(peer);
        let event_loop = server.event_loop.clone();
        server.stop();
        assert_eq!(event_loop.stats().panics, 0);
    });
}

#[test]
fn a_large_message_in_small_pieces_takes_little_more_than_its_size() {
    in_child(
        "a_large_message_in_small_pieces_takes_little_more_than_its_size",
        || {
            let (mut conn, mut peer) = pair();
            let piece = [7; 1024];
            let before = counting::total();
            let sending = thread::spawn(move || {
                for _ in 0..1024 {
                    peer.write_all(&piece).unwrap();
                }
            });
            let message = conn.next(1 << 20).unwrap();
            assert!(message.iter().all(|byte| *byte == 7));
            let used = counting::total() - before;
            sending.join().unwrap();
            assert!(
                used <= 4 << 20,
                "{used} bytes were allocated for a message of 1 MiB"
            );
        },
    );
}

/// The most that one thread may keep to receive into, whatever size it chooses.
const CHUNK: usize = 1 << 20;

#[test]
fn an_announced_length_sets_nothing_aside() {
    in_child("an_announced_length_sets_nothing_aside", || {
        const PEERS: usize = 200;
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let group = one_thread();
        let seen: crate::support::Log<()> = crate::support::Log::new();
        let log = seen.clone();
        let server = case.serve_with(
            case.builder()
                .pollers(group.clone())
                .input_limits(1 << 20, usize::MAX),
            handler_fn(move |conn| {
                assert!(decode(conn)?.is_none());
                if conn.available() == 104 {
                    log.push(());
                }
                Ok(())
            }),
        );
        let mut peers: Vec<Peer> = (0..PEERS).map(|_| server.connect()).collect();
        eventually("all", || {
            server.event_loop.stats().connected == PEERS as u64
        });
        let before = counting::live();
        for peer in &mut peers {
            let mut promise = vec![1; 104];
            promise[..4].fill(0xFF);
            peer.write_all(&promise).unwrap();
        }
        seen.wait_len(PEERS);
        // Each handler has seen its promise; what the last one returns to may take a moment.
        let most = CHUNK + PEERS * 4096;
        let held = || counting::live().saturating_sub(before);
        eventually("promises of 4 GiB hold little", || held() <= most);
        println!("{} bytes for {PEERS} promises of 4 GiB", held());
        drop(peers);
        server.stop();
        group.close();
    });
}

#[test]
fn a_burst_leaves_no_memory_behind() {
    in_child("a_burst_leaves_no_memory_behind", || {
        for kind in [Kind::Adaptive, Kind::Workers] {
            let case = Case::new(Transport::Tcp, kind);
            let server = case.serve(handler_fn(|conn| {
                while let Some(frame) = decode(conn)? {
                    conn.append(frame)?;
                    conn.try_flush()?;
                }
                Ok(())
            }));
            let mut peer = server.connect();
            peer.ping(b"warm");
            let before = counting::live();
            {
                let out = frame(&pattern(5, 32 << 20));
                let mut sender = peer.try_clone();
                let sending = thread::spawn(move || sender.write_all(&out).unwrap());
                let mut head = [0; 4];
                peer.read_exact(&mut head).unwrap();
                let mut part = vec![0; 64 << 10];
                let mut left = u32::from_be_bytes(head) as usize;
                while left > 0 {
                    left -= peer.read(&mut part[..left.min(64 << 10)]).unwrap();
                }
                sending.join().unwrap();
            }
            peer.ping(b"small again");
            eventually("the memory goes", || {
                counting::live().saturating_sub(before) <= 1 << 20
            });
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn kept_bytes_of_small_messages_pin_little() {
    in_child("kept_bytes_of_small_messages_pin_little", || {
        use netpoll::Bytes;
        const MESSAGES: usize = 8000;
        let (kept, seen) = (
            crate::support::Log::<Bytes>::new(),
            crate::support::Log::new(),
        );
        let (log, count) = (kept.clone(), seen.clone());
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let group = one_thread();
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            handler_fn(move |conn| {
                while let Some(byte) = conn.try_next_bytes(1)? {
                    log.push(byte);
                    count.push(());
                }
                Ok(())
            }),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        seen.wait_len(1);
        let before = counting::live();
        for i in 2..=MESSAGES {
            peer.write_all(b"x").unwrap();
            seen.wait_len(i);
        }
        let held = counting::live().saturating_sub(before);
        println!("{held} bytes for {} messages of one byte", MESSAGES - 1);
        assert!(
            held <= CHUNK + MESSAGES * 200,
            "{held} bytes for {} messages of one byte",
            MESSAGES - 1
        );
        assert_eq!(kept.len(), MESSAGES);
        drop(peer);
        server.stop();
        group.close();
    });
}

#[test]
fn connections_come_and_go_without_growth() {
    in_child("connections_come_and_go_without_growth", || {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let cycle = |connections: usize| {
            let event_loop = EventLoop::builder()
                .pollers(group.clone())
                .build(Script::new().request(echo_frames))
                .unwrap();
            let server = crate::support::Server::serve(Transport::Tcp, event_loop);
            for _ in 0..connections {
                server.connect().ping(&[1; 2000]);
            }
            server.stop();
        };
        cycle(50);
        cycle(50);
        let before = counting::live();
        for _ in 0..50 {
            cycle(100);
        }
        eventually("the memory is given back", || {
            counting::live().saturating_sub(before) <= 64 << 10
        });
        group.close();
        let _: io::Result<()> = Ok(());
    });
}
