//! `quickstart` runs to its end and shows what it measured; its multiplexed client gives each call its own
//! answer, whenever calls are given up.

use crate::multiplex::Multiplex;
use crate::support::{LIMIT, eventually, run, text};
use netpoll::{
    Address, Bytes, CloseReason, ConnectionHandle, Dialer, Error, EventLoop, LinkBuffer, Listener,
    Reader, handler_fn,
};
use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

#[test]
fn quickstart_ends_well_and_prints_its_table() {
    let output = run("quickstart", &[]);
    let printed = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{printed} {}",
        text(&output.stderr)
    );
    for transport in ["tcp ", "unix "] {
        for client in ["pooled, blocking", "multiplexed"] {
            let row = printed
                .lines()
                .find(|line| line.starts_with(transport) && line.contains(client))
                .unwrap_or_else(|| panic!("no row {transport}{client} in {printed}"));
            let numbers: Vec<f64> = row
                .rsplit_once(client)
                .expect("it is there")
                .1
                .split_whitespace()
                .map(|number| number.parse().expect("a number"))
                .collect();
            let [calls, p50, p99, megabytes, allocations] = numbers[..] else {
                panic!("five numbers: {row}");
            };
            assert!(
                calls > 0.0 && p50 > 0.0 && p99 >= p50 && megabytes > 0.0,
                "{row}"
            );
            assert!(allocations >= 0.0, "{row}");
        }
    }
    assert!(
        printed.contains("18 connections served, 0 left, 0 panics"),
        "{printed}"
    );
    assert!(printed.contains("[4/4]"), "{printed}");
}

/// A request that the server keeps.
struct Kept {
    id: u32,
    body: Bytes,
    conn: ConnectionHandle,
}

impl Kept {
    fn answer_as(self, id: u32) {
        let mut answer = LinkBuffer::new();
        crate::codec::encode(&mut answer, id, &self.body).unwrap();
        self.conn.send(answer).unwrap();
    }

    fn answer(self) {
        let id = self.id;
        self.answer_as(id);
    }
}

fn all(buffer: &mut LinkBuffer) -> Bytes {
    buffer.next_bytes(buffer.available()).unwrap()
}

/// A server that keeps requests which begin with `keep` and echoes all others, and a client of it.
struct Pair {
    server: EventLoop,
    client: Multiplex,
    kept: Arc<Mutex<Vec<Kept>>>,
}

impl Pair {
    fn new() -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kept);
        let server = EventLoop::new(handler_fn(move |conn| {
            while let Some(len) = crate::codec::frame_len(conn)? {
                let Some(mut frame) = conn.try_slice(len)? else {
                    break;
                };
                let (_, id) = crate::codec::head(frame.next(crate::codec::HEAD)?);
                let body = all(&mut frame);
                let request = Kept {
                    id,
                    conn: conn.handle(),
                    body,
                };
                if request.body.starts_with(b"keep") {
                    keep.lock().unwrap().push(request);
                } else {
                    request.answer();
                }
            }
            Ok(())
        }))
        .unwrap();
        let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let address: Address = listener.local_addr().unwrap();
        server.serve_in_background(listener).unwrap();
        let client = Multiplex::dial(&Dialer::new(), &address).unwrap();
        Self {
            server,
            client,
            kept,
        }
    }

    fn call(&self, body: &'static str, timeout: Duration) -> io::Result<String> {
        let body = Bytes::from_static(body.as_bytes());
        let mut answer = self.client.call(&body, timeout)?;
        Ok(text(&all(&mut answer)))
    }

    fn wait_kept(&self, count: usize) {
        eventually("the server has the request", || {
            self.kept.lock().unwrap().len() == count
        });
    }

    fn stop(self) {
        self.client.close().unwrap();
        self.server.shutdown(LIMIT).unwrap();
    }
}

#[test]
fn a_late_answer_is_dropped_and_counted() {
    let pair = Pair::new();
    for n in 1..=20 {
        let error = pair.call("keep it", Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        pair.wait_kept(1);
        // Sent before the next call's answer, on the same connection.
        pair.kept.lock().unwrap().remove(0).answer();
        assert_eq!(pair.call("echo", LIMIT).unwrap(), "echo");
        assert_eq!(pair.client.late(), n);
    }
    pair.stop();
}

#[test]
fn an_id_is_not_used_again_while_its_answer_can_come() {
    let pair = Pair::new();
    pair.client.set_next_id(u32::MAX);
    assert!(pair.call("keep the last", Duration::ZERO).is_err());
    assert!(pair.call("keep the first", Duration::ZERO).is_err());
    pair.wait_kept(2);
    // The numbers come round; both are still owed.
    pair.client.set_next_id(u32::MAX);
    let waiting = {
        let client = pair.client.clone();
        thread::spawn(move || client.call(&Bytes::from_static(b"keep the third"), LIMIT))
    };
    pair.wait_kept(3);
    let kept = std::mem::take(&mut *pair.kept.lock().unwrap());
    let ids: Vec<u32> = kept.iter().map(|request| request.id).collect();
    assert_eq!(ids, [u32::MAX, 0, 1]);
    kept.into_iter().for_each(Kept::answer);
    let mut answer = waiting.join().unwrap().unwrap();
    assert_eq!(all(&mut answer), "keep the third");
    assert_eq!(pair.client.late(), 2);
    // What was answered is free again.
    pair.client.set_next_id(u32::MAX);
    assert!(pair.call("keep one more", Duration::ZERO).is_err());
    pair.wait_kept(1);
    assert_eq!(pair.kept.lock().unwrap()[0].id, u32::MAX);
    pair.stop();
}

#[test]
fn calls_given_up_as_their_answers_come_mix_nothing_up() {
    let pair = Pair::new();
    let (mut answered, mut calls) = (0, 0_u64);
    // Until both outcomes have been seen often. Times go up and down around what an answer takes.
    let mut time = Duration::from_micros(100);
    while answered < 1000 || calls - answered < 1000 {
        calls += 1;
        let body = Bytes::from(calls.to_be_bytes().to_vec());
        match pair.client.call(&body, time) {
            Ok(mut answer) => {
                assert_eq!(all(&mut answer), body, "the answer to another call");
                answered += 1;
                time = time * 15 / 16;
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                time = (time * 17 / 16).max(Duration::from_micros(1));
            }
        }
    }
    let given_up = calls - answered;
    eventually("every late answer is counted", || {
        pair.client.late() == given_up
    });
    pair.stop();
}

#[test]
fn an_answer_to_no_call_ends_the_connection_for_its_callers() {
    let pair = Pair::new();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let client = pair.client.clone();
            thread::spawn(move || client.call(&Bytes::from_static(b"keep"), LIMIT))
        })
        .collect();
    pair.wait_kept(3);
    pair.kept.lock().unwrap().remove(0).answer_as(77);
    for caller in callers {
        let error = caller.join().unwrap().unwrap_err();
        let reason = Error::Closed(CloseReason::HandlerError);
        assert_eq!(Error::from_io(&error), Some(reason));
    }
    assert!(pair.call("more", LIMIT).is_err());
    pair.server.shutdown_forced(LIMIT).unwrap();
}
