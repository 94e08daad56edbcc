//! What connections keep alive for data that waits: limits bound memory, not only lengths.

use crate::support::{
    Case, Gate, Kind, Log, OpenOnDrop, Peer, Script, Transport, counting, eventually, frame,
    in_child, let_pass, one_thread, read_frame, threads,
};
use netpoll::{Bytes, Connection, Error, LinkBuffer, OnFull, linkbuffer::ChunkPool};
use std::{
    fs,
    io::{Read, Write},
    thread,
    time::Duration,
};

/// What a connection of these tests may have queued.
const QUEUE: usize = 1 << 20;
/// What the test and its thread keep for themselves.
const SLACK: usize = 300 << 10;

/// How the begin of a message is passed on; its rest is dropped.
#[derive(Clone, Copy, Debug)]
enum Way {
    Slice,
    Bytes,
    /// The begin and the end, each as bytes.
    BothEnds,
    Forward,
    Written,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Slice,
        Self::Bytes,
        Self::BothEnds,
        Self::Forward,
        Self::Written,
    ];

    /// Takes a message of `frame` bytes and returns `view` bytes of it, or twice as many.
    fn take(self, conn: &mut Connection, view: usize, frame: usize) -> LinkBuffer {
        let mut message = conn.slice(frame).unwrap();
        let mut out = LinkBuffer::new();
        match self {
            Self::Slice => return message.slice(view).unwrap(),
            Self::Bytes => return LinkBuffer::from(message.next_bytes(view).unwrap()),
            Self::BothEnds => {
                let first = message.next_bytes(view).unwrap();
                message.skip(frame - 2 * view).unwrap();
                let last = message.next_bytes(view).unwrap();
                out.append(LinkBuffer::from(first));
                out.append(LinkBuffer::from(last));
            }
            Self::Forward => message.forward(view, &mut out).unwrap(),
            Self::Written => out.write_slice(message.next(view).unwrap()),
        }
        out
    }
}

/// Allocated bytes, without the chunks that are kept for the next message.
fn live() -> usize {
    ChunkPool::global().clear();
    counting::live()
}

/// Sends parts of messages that one peer sends to another, which reads nothing, until the queue is
/// full, and waits until no more than `most` bytes are held for it.
fn fill_queue(way: Way, view: usize, frame: usize, most: usize) {
    let group = one_thread();
    let (fed, full) = (Log::new(), Log::new());
    let stalled = Log::new();
    let (handles, log, count) = (stalled.clone(), full.clone(), fed.clone());
    let case = Case::new(Transport::Unix, Kind::Inline);
    let builder = case.builder().pollers(group.clone());
    let server = case.serve_with(
        builder.output_limit(QUEUE, OnFull::Error),
        Script::new().request(move |conn| {
            if conn.available() == 1 {
                conn.skip(1)?;
                handles.push(conn.handle());
                return Ok(());
            }
            while conn.try_fill(frame)? {
                let handle = &handles.all()[0];
                let part = way.take(conn, view, frame);
                if let Err(error) = handle.try_send(part) {
                    log.push(Error::from_io(&error));
                }
                count.push(());
            }
            Ok(())
        }),
    );
    let mut reads_nothing = server.connect();
    reads_nothing.write_all(b"x").unwrap();
    let handle = stalled.wait_len(1).remove(0);
    let feed = |until: &dyn Fn() -> bool| {
        let mut feeder = server.connect();
        let message = vec![7; frame];
        while !until() {
            feeder.write_all(&message).unwrap();
        }
        drop(feeder);
        eventually("it is gone", || server.event_loop.stats().active == 1);
    };
    // All that a thread keeps is there from here on.
    feed(&|| fed.len() >= 3);
    let before = live() - handle.stats().queued;
    feed(&|| full.len() > 0);
    assert!(matches!(full.all()[0], Some(Error::OutputFull { .. })));
    // Its last message may be on its way back to the allocator.
    let what = format!("{way:?} of {view} in {frame} hold {most} bytes at most");
    eventually(&what, || live().saturating_sub(before) <= most);
    let (queued, held) = (handle.stats().queued, live() - before);
    println!("{way:?} of {view} in {frame}: {queued} queued, {held} held");
    handle.abort();
    drop(reads_nothing);
    server.stop();
    group.close();
}

#[test]
fn a_full_queue_holds_no_more_than_its_limit() {
    in_child("a_full_queue_holds_no_more_than_its_limit", || {
        for way in Way::ALL {
            for (view, frame) in [
                (40, 300),
                (512, 64 << 10),
                (600, 20_000),
                (5000, 64 << 10),
                (20_000, 300_000),
                (70_000, 1 << 20),
            ] {
                // The logs grow, and what a thread keeps has not all been needed before.
                fill_queue(way, view, frame, QUEUE / 4 * 5 + SLACK);
            }
        }
    });
}

/// The memory of a payload that many connections send is not theirs.
#[test]
fn what_many_send_is_held_once() {
    in_child("what_many_send_is_held_once", || {
        let stalled = Log::new();
        let case = Case::new(Transport::Unix, Kind::Inline);
        let server = case.serve(crate::support::giving(&stalled));
        let peers: Vec<_> = (0..20).map(|_| server.connect()).collect();
        let handles = stalled.wait_len(peers.len());
        let payload = Bytes::from_static(&[1; 20_000]);
        // Until nothing goes into the sockets.
        for handle in &handles {
            while handle.stats().queued == 0 {
                handle.send_bytes(payload.clone()).unwrap();
            }
        }
        let before = counting::live();
        for handle in &handles {
            for _ in 0..20 {
                handle.send_bytes(payload.clone()).unwrap();
            }
        }
        let each = counting::live().saturating_sub(before) / (20 * handles.len());
        println!("{each} bytes for a message of 20000 that waits");
        assert!(each <= 500, "{each} bytes for a message that is not copied");
        handles.iter().for_each(|handle| handle.abort());
        drop(peers);
        server.stop();
    });
}

/// Each piece is received into a chunk that another connection fills up.
#[test]
fn unread_input_holds_little_more_than_itself() {
    in_child("unread_input_holds_little_more_than_itself", || {
        const PIECE: usize = 600;
        const PIECES: usize = 120;
        const PART: usize = 15_000;
        let group = one_thread();
        let (seen, parts) = (Log::new(), Log::new());
        let (log, others) = (seen.clone(), parts.clone());
        let case = Case::new(Transport::Unix, Kind::Inline);
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            Script::new().request(move |conn| {
                if conn.try_peek(1)?.is_some_and(|first| first == b"+") {
                    others.push(conn.available());
                    if conn.try_fill(1 + PART)? {
                        conn.skip(1 + PART)?;
                    }
                    return Ok(());
                }
                log.push(conn.available());
                // There is no end to it.
                assert!(conn.try_until(b'\n')?.is_none());
                Ok(())
            }),
        );
        let (mut slow, mut other) = (server.connect(), server.connect());
        let fill_up = |other: &mut Peer| {
            for _ in 0..(64 << 10) / PART + 1 {
                parts.take();
                other.write_all(b"+").unwrap();
                parts.wait_for(&1);
                other.write_all(&[0; PART]).unwrap();
                parts.wait_for(&(1 + PART));
            }
        };
        fill_up(&mut other);
        let before = live();
        for i in 1..=PIECES {
            slow.write_all(&[b'-'; PIECE]).unwrap();
            seen.wait_for(&(i * PIECE));
            fill_up(&mut other);
        }
        let most = PIECES * PIECE / 4 * 5 + SLACK;
        let what = format!("{} unread bytes hold {most} at most", PIECES * PIECE);
        eventually(&what, || live().saturating_sub(before) <= most);
        println!("{} bytes for {}", live() - before, PIECES * PIECE);
        drop((slow, other));
        server.stop();
        group.close();
    });
}

/// A handler that never returns collects parts of messages, and flushes none of them.
fn collect(way: Way, view: usize, frame: usize, most: usize) {
    let full = Log::new();
    let log = full.clone();
    let gate = Gate::new();
    let _open = OpenOnDrop(gate.clone());
    let held = gate.clone();
    let case = Case::new(Transport::Unix, Kind::Adaptive);
    let server = case.serve_with(
        case.builder().output_limit(QUEUE, OnFull::Error),
        Script::new().request(move |conn| {
            loop {
                conn.fill(frame)?;
                let part = way.take(conn, view, frame);
                if let Err(error) = conn.append(part) {
                    log.push(Error::from_io(&error));
                    held.pass();
                    return Err(error);
                }
            }
        }),
    );
    let peer = server.connect();
    let mut feeder = peer.try_clone();
    let message = vec![7; frame];
    let before = live();
    // Ends with the connection.
    let feeding = thread::spawn(move || while feeder.write_all(&message).is_ok() {});
    assert!(matches!(
        full.wait_len(1)[0],
        Some(Error::OutputFull { .. })
    ));
    let what = format!("{way:?} of {view} in {frame} hold {most} bytes at most");
    eventually(&what, || live().saturating_sub(before) <= most);
    println!("{way:?} of {view} in {frame}: {} held", live() - before);
    gate.open();
    feeding.join().unwrap();
    drop(peer);
    server.stop();
}

#[test]
fn unflushed_output_holds_no_more_than_its_limit() {
    in_child("unflushed_output_holds_no_more_than_its_limit", || {
        for way in Way::ALL {
            for (view, frame) in [
                (40, 300),
                (512, 64 << 10),
                (5000, 64 << 10),
                (20_000, 300_000),
                (70_000, 1 << 20),
            ] {
                // What has come of the next messages, with the room for their rest, and the chunks
                // that the thread keeps.
                let input = 3 * frame + (256 << 10);
                collect(way, view, frame, QUEUE / 4 * 5 + SLACK + input);
            }
        }
    });
}

/// A large message has a chunk of its own, of which a little room is left behind it.
#[test]
fn a_thread_keeps_no_chunk_of_a_large_message() {
    in_child("a_thread_keeps_no_chunk_of_a_large_message", || {
        const LARGE: usize = 1_000_000;
        let group = one_thread();
        let case = Case::new(Transport::Tcp, Kind::Inline);
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            Script::new().request(|conn| {
                while let Some(head) = conn.try_peek(4)? {
                    let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                    let Some(message) = conn.try_slice(4 + len)? else {
                        break;
                    };
                    conn.append(message)?;
                    conn.flush()?;
                }
                Ok(())
            }),
        );
        // One message after the other, of a connection.
        let echo = |lens: &[usize]| {
            let mut peer = server.connect();
            for &len in lens {
                let mut feeder = peer.try_clone();
                let message = frame(&vec![7; len]);
                let feeding = thread::spawn(move || feeder.write_all(&message).unwrap());
                assert_eq!(read_frame(&mut peer).unwrap().len(), len);
                feeding.join().unwrap();
            }
        };
        // All that a thread keeps for small ones is there from here on.
        echo(&[100, 60_000]);
        eventually("it is gone", || server.event_loop.stats().active == 0);
        let before = live();
        for _ in 0..20 {
            echo(&[100, 60_000, 400_000, LARGE]);
        }
        eventually("all are gone", || server.event_loop.stats().active == 0);
        println!("{} bytes", live().saturating_sub(before));
        eventually("no chunk is left", || {
            live().saturating_sub(before) <= LARGE / 2
        });
        server.stop();
        group.close();
    });
}

/// A server that keeps a value of each message of many connections, and drops the rest of it.
#[test]
fn kept_views_hold_little_more_than_themselves() {
    in_child("kept_views_hold_little_more_than_themselves", || {
        const PEERS: usize = 50;
        const MESSAGES: usize = 40 * PEERS;
        for (value, frame, times) in [
            (600, 64 << 10, 1),
            (600, 2000, 1),
            (4000, 64 << 10, 1),
            (4000, 20_000, 16),
            (4096, 64 << 10, 16),
        ] {
            let group = one_thread();
            let (kept, seen) = (Log::<Bytes>::new(), Log::new());
            let (log, count) = (kept.clone(), seen.clone());
            let case = Case::new(Transport::Unix, Kind::Inline);
            let server = case.serve_with(
                case.builder().pollers(group.clone()),
                Script::new().request(move |conn| {
                    while conn.try_fill(frame)? {
                        log.push(conn.next_bytes(value)?);
                        conn.skip(frame - value)?;
                        count.push(());
                    }
                    Ok(())
                }),
            );
            let message = vec![7; frame];
            let mut peers: Vec<_> = (0..PEERS).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.write_all(&message).unwrap();
            }
            seen.wait_len(PEERS);
            let before = live();
            for i in PEERS..MESSAGES {
                peers[i % PEERS].write_all(&message).unwrap();
            }
            seen.wait_len(MESSAGES);
            let all = (MESSAGES - PEERS) * value;
            let most = all * times + all / 2 + SLACK;
            let what = format!("{all} bytes in values of {value} hold {most} at most");
            eventually(&what, || live().saturating_sub(before) <= most);
            println!("{} bytes for {all} kept of {frame}", live() - before);
            drop(peers);
            server.stop();
            group.close();
        }
    });
}

/// Many messages that are under way at once, then none.
fn is_given_back_after_a_peak(kind: Kind) {
    const PEERS: usize = 150;
    let case = Case::new(Transport::Unix, kind);
    let server = case.serve(Script::new().request(|conn| {
        while let Some(head) = conn.try_peek(4)? {
            let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
            let Some(message) = conn.try_slice(4 + len)? else {
                break;
            };
            conn.append(message)?;
            conn.flush()?;
        }
        Ok(())
    }));
    let mut peers: Vec<_> = (0..PEERS).map(|_| server.connect()).collect();
    let message = frame(&vec![7; 100_000]);
    let (begin, end) = message.split_at(99_000);
    let pool = ChunkPool::global();
    let mut most = 0;
    for _ in 0..3 {
        for peer in &mut peers {
            peer.write_all(begin).unwrap();
        }
        for peer in &mut peers {
            peer.write_all(end).unwrap();
            assert_eq!(read_frame(peer).unwrap().len(), 100_000);
        }
        most = most.max(pool.stats().retained);
    }
    assert!(most > 1 << 20, "no peak: {most}");
    // Connections that stay hold nothing.
    eventually("the pool gives it back", || {
        pool.stats().retained <= 256 << 10
    });
    let before = pool.stats();
    drop(peers);
    server.stop();
    println!("{most} bytes, then {before:?}");
}

#[test]
fn a_peak_is_given_back_adaptive() {
    in_child("a_peak_is_given_back_adaptive", || {
        is_given_back_after_a_peak(Kind::Adaptive);
    });
}

#[test]
fn a_peak_is_given_back_workers() {
    in_child("a_peak_is_given_back_workers", || {
        is_given_back_after_a_peak(Kind::Workers);
    });
}

#[test]
fn a_peak_is_given_back_inline() {
    in_child("a_peak_is_given_back_inline", || {
        is_given_back_after_a_peak(Kind::Inline);
    });
}

#[test]
fn a_peak_is_given_back_custom() {
    in_child("a_peak_is_given_back_custom", || {
        is_given_back_after_a_peak(Kind::Custom);
    });
}

/// A measurement: what stays after peaks, and whose it is. Run it alone, with `--ignored --nocapture`.
#[test]
#[ignore = "measures; no judgement"]
fn what_stays_after_peaks() {
    const PEERS: usize = 2000;
    const ROUNDS: usize = 14;
    for kind in [Kind::Adaptive, Kind::Workers] {
        let case = Case::new(Transport::Tcp, kind);
        let server = case.serve(Script::new().request(|conn| {
            while let Some(head) = conn.try_peek(4)? {
                let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                let Some(message) = conn.try_slice(4 + len)? else {
                    break;
                };
                conn.append(message)?;
                conn.flush()?;
            }
            Ok(())
        }));
        let message = frame(&vec![7; 64 << 10]);
        let (begin, end) = message.split_at(60_000);
        let mut answer = vec![0; message.len()];
        println!("{kind:?}\nround, heap in use, pool, resident, held by malloc, threads (KiB)");
        tell("before");
        for round in 1..=ROUNDS {
            let mut peers: Vec<_> = (0..PEERS).map(|_| server.connect()).collect();
            peers
                .iter_mut()
                .for_each(|peer| peer.write_all(begin).unwrap());
            peers
                .iter_mut()
                .for_each(|peer| peer.write_all(end).unwrap());
            if round == 1 {
                tell("peak");
            }
            for peer in &mut peers {
                peer.read_exact(&mut answer).unwrap();
            }
            drop(peers);
            eventually("all are gone", || server.event_loop.stats().active == 0);
            tell(&round.to_string());
        }
        let_pass(Duration::from_secs(12));
        tell("12 s later");
        server.stop();
        tell("stopped");
        // SAFETY: it takes no memory of the caller's.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0);
        }
        tell("malloc_trim");
    }
}

fn tell(when: &str) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    #[cfg(target_env = "gnu")]
    let free = {
        // SAFETY: it returns figures by value.
        let figures = unsafe { libc::mallinfo2() };
        figures.fordblks >> 10
    };
    #[cfg(not(target_env = "gnu"))]
    let free = 0;
    println!(
        "{when}, {}, {}, {}, {free}, {}",
        counting::live() >> 10,
        ChunkPool::global().stats().retained >> 10,
        rss.unwrap_or("?").trim().trim_end_matches(" kB"),
        threads(),
    );
}
