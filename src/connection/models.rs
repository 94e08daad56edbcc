//! Loom models of the real state word and outbox.

use super::{
    output::{Contain, Gate, Outbox, Sent, Sink, Straight},
    queue::Bound,
    state::{ATTEND, GATED, QUEUED, READABLE, RUNNING, WRITABLE, Word},
};
use crate::sync::{AtomicU32, Mutex, Ordering, thread};
use linkbuffer::LinkBuffer;
use std::{
    io::{self, IoSlice},
    sync::Arc,
};

const BOUND: Bound = Bound {
    bytes: usize::MAX,
    messages: usize::MAX,
    low: 0,
};

/// Takes its news and looks at what it was about, as a turn does.
struct Turns {
    word: Word,
    posted: AtomicU32,
    seen: AtomicU32,
    inside: AtomicU32,
}

impl Turns {
    fn run(&self) {
        loop {
            assert_eq!(
                self.inside.fetch_add(1, Ordering::AcqRel),
                0,
                "two owners at once"
            );
            self.word.clear(READABLE | ATTEND);
            self.seen
                .store(self.posted.load(Ordering::Acquire), Ordering::Release);
            self.inside.fetch_sub(1, Ordering::AcqRel);
            if self.word.leave() {
                return;
            }
        }
    }

    fn post(&self, news: u32) {
        self.posted.fetch_add(1, Ordering::AcqRel);
        // As the poller does it, and for other news than input as everybody else.
        let at_rest = news == READABLE && self.word.begin_turn(self.word.load(), news);
        if at_rest || self.word.post(news).1 {
            self.run();
        }
    }
}

#[test]
fn loom_every_news_is_seen_by_exactly_one_owner() {
    loom::model(|| {
        let turns = Arc::new(Turns {
            word: Word::new(0),
            posted: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            inside: AtomicU32::new(0),
        });
        let other = Arc::clone(&turns);
        let poster = thread::spawn(move || other.post(READABLE));
        turns.post(ATTEND);
        poster.join().unwrap();
        assert_eq!(turns.seen.load(Ordering::Acquire), 2);
        assert_eq!(turns.word.load() & (RUNNING | READABLE | ATTEND), 0);
    });
}

/// Takes `room` bytes, then is full until somebody makes room.
struct Script {
    room: Mutex<usize>,
    taken: Mutex<Vec<u8>>,
}

impl Contain for Script {
    fn contain(&self, code: impl FnOnce()) -> bool {
        code();
        true
    }
}

impl Sink for Script {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut room = self.room.lock();
        if *room == 0 {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let mut n = 0;
        let mut taken = self.taken.lock();
        for slice in slices {
            let k = slice.len().min(*room);
            taken.extend_from_slice(&slice[..k]);
            *room -= k;
            n += k;
        }
        Ok(n)
    }
}

struct Link {
    word: Word,
    outbox: Outbox,
    sink: Script,
}

/// Output in one piece of its own.
fn message(bytes: &[u8]) -> LinkBuffer {
    let mut chain = LinkBuffer::new();
    chain.write_slice(bytes);
    chain.flush();
    chain
}

impl Link {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            word: Word::new(0),
            outbox: Outbox::default(),
            sink: Script {
                room: Mutex::new(room),
                taken: Mutex::new(Vec::new()),
            },
        })
    }

    fn send(&self, bytes: &[u8]) -> Sent {
        let mut chain = message(bytes);
        // As a connection's flush does it.
        let straight = match self.word.calm() {
            Some(calm) => self
                .outbox
                .send_whole(&self.word, calm, &self.sink, &mut chain),
            None => Straight::No,
        };
        let sent = match straight {
            Straight::Sent => Sent::All,
            Straight::Turn(_, sent) => sent,
            Straight::No => {
                let turn = self
                    .outbox
                    .send(&self.word, &self.sink, &mut chain, BOUND)
                    .unwrap();
                turn.1
            }
        };
        assert!(chain.is_empty());
        sent
    }

    /// What the poller does for a writable edge.
    fn edge(&self, room: usize) {
        *self.sink.room.lock() += room;
        if self.word.set(WRITABLE) & QUEUED != 0 {
            self.outbox.drive(&self.word, &self.sink);
        }
    }

    fn check(&self, messages: &[&[u8]]) {
        let taken = self.sink.taken.lock();
        let total: usize = messages.iter().map(|m| m.len()).sum();
        assert_eq!(taken.len(), total, "{:?} {:?}", self.word, self.outbox);
        for message in messages {
            assert!(
                taken.windows(message.len()).any(|w| w == *message),
                "{taken:?}"
            );
        }
        assert_eq!(self.outbox.queued(), 0);
    }
}

#[test]
fn loom_two_senders_neither_mix_nor_forget() {
    loom::model(|| {
        let link = Link::new(100);
        let other = Arc::clone(&link);
        let sender = thread::spawn(move || other.send(b"aaa"));
        link.send(b"bbb");
        sender.join().unwrap();
        link.check(&[b"aaa", b"bbb"]);
    });
}

#[test]
fn loom_no_edge_is_lost_between_a_full_sink_and_parking() {
    loom::model(|| {
        let link = Link::new(1);
        let other = Arc::clone(&link);
        let poller = thread::spawn(move || other.edge(100));
        link.send(b"abc");
        poller.join().unwrap();
        link.check(&[b"abc"]);
    });
}

#[test]
fn loom_a_sender_behind_a_full_sink_is_sent_by_the_poller() {
    loom::model(|| {
        let link = Link::new(1);
        let (second, poller) = (Arc::clone(&link), Arc::clone(&link));
        let second = thread::spawn(move || second.send(b"xyz"));
        let poller = thread::spawn(move || poller.edge(100));
        link.send(b"abc");
        second.join().unwrap();
        poller.join().unwrap();
        link.check(&[b"abc", b"xyz"]);
    });
}

#[test]
fn loom_an_owner_at_the_gate_is_woken_when_the_queue_is_low() {
    loom::model(|| {
        let link = Link::new(1);
        // The sink is full: more than the low mark of one byte is queued.
        link.send(b"abc");
        let woken = Arc::new(AtomicU32::new(0));
        let (other, wakes) = (Arc::clone(&link), Arc::clone(&woken));
        let poller = thread::spawn(move || {
            for _ in 0..2 {
                other.edge(1);
                if other.outbox.open_gate(&other.word, 1) {
                    wakes.fetch_add(1, Ordering::AcqRel);
                }
            }
        });
        let waits = link.outbox.gate(&link.word, 1) != Gate::Open;
        poller.join().unwrap();
        // A wake-up that comes while the gate is looked at is one turn too many, and does no harm.
        let woken = woken.load(Ordering::Acquire);
        assert!(woken == 1 || (woken == 0 && !waits), "{woken} {waits}");
        assert!(!link.word.has(GATED));
        link.check(&[b"abc"]);
    });
}

#[test]
fn loom_discard_counts_everything_that_is_not_sent() {
    loom::model(|| {
        let link = Link::new(1);
        let other = Arc::clone(&link);
        let closer = thread::spawn(move || {
            other.word.set(super::state::ABORT);
            other.outbox.discard(&other.word, &other.sink);
        });
        let sent = link.send(b"abc");
        closer.join().unwrap();
        let taken = link.sink.taken.lock().len() as u64;
        assert_eq!(
            taken + link.outbox.lost().bytes,
            3,
            "{sent:?} {:?}",
            link.outbox
        );
        assert_eq!(link.outbox.queued(), 0);
    });
}
