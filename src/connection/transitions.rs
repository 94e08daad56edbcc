//! Every transition of the state word, and every way out of the outbox, one thread at a time: what
//! each does and what it leaves alone. How threads meet in them is checked by loom (`models.rs`).

use super::{
    output::{Contain, Outbox, Sent, Sink},
    queue::{Bound, Full, Loss},
    state::*,
};
use crate::sync::Mutex;
use bytes::Bytes;
use linkbuffer::LinkBuffer;
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const ALL: [u32; 28] = [
    READABLE,
    WRITABLE,
    ATTEND,
    RUNNING,
    FLUSHING,
    QUEUED,
    CONNECTED,
    PEER_CLOSED,
    BROKEN,
    CLOSE,
    ABORT,
    DRAIN,
    POISONED,
    CLOSED,
    WRITE_SHUT,
    LINGER,
    READ_WAIT,
    WRITE_WAIT,
    WROTE,
    OWNED,
    BUSY,
    GONE,
    BEGIN,
    PIPED,
    HUNG_UP,
    HELD,
    URGENT,
    GATED,
];
/// Facts that no role or news may touch.
const FACTS: u32 = CONNECTED | PEER_CLOSED | DRAIN | OWNED;

#[test]
fn every_bit_is_one_bit_of_its_own_and_has_its_name() {
    let mut seen = 0;
    for bit in ALL {
        assert_eq!(bit.count_ones(), 1);
        assert_eq!(seen & bit, 0);
        seen |= bit;
    }
    assert_eq!(format!("{:?}", Word::new(READABLE)), "{\"READABLE\"}");
    assert_eq!(
        format!("{:?}", Word::new(HELD | HUNG_UP | ABORT)),
        "{\"ABORT\", \"HUNG_UP\", \"HELD\"}"
    );
    assert_eq!(format!("{:?}", Word::new(0)), "{}");
}

#[test]
fn bits_are_set_and_cleared_and_what_was_before_is_told() {
    let word = Word::new(FACTS);
    assert_eq!(word.load(), FACTS);
    assert_eq!(word.set(CLOSE | OWNED), FACTS);
    assert_eq!(word.set(CLOSE), FACTS | CLOSE);
    assert!(word.has(CLOSE | ABORT) && !word.has(ABORT));
    assert_eq!(word.clear(CLOSE | ABORT), FACTS | CLOSE);
    assert_eq!(word.load(), FACTS);
}

#[test]
fn the_owner_s_role_is_taken_with_news_and_left_without() {
    let word = Word::new(FACTS);
    assert!(!word.acquire(), "no news");
    for news in [READABLE, ATTEND] {
        word.set(news);
        assert!(word.acquire());
        assert_eq!(word.load(), FACTS | RUNNING | news);
        assert!(!word.acquire(), "somebody has it");
        assert!(!word.leave(), "there is news");
        assert_eq!(word.load(), FACTS | RUNNING | news);
        word.clear(news);
        assert!(word.leave());
        assert_eq!(word.load(), FACTS);
    }
    word.set(RUNNING | READABLE);
    assert_eq!(word.release(), FACTS | RUNNING | READABLE);
    assert_eq!(word.load(), FACTS | READABLE);
}

#[test]
fn posted_news_takes_a_free_role_only() {
    let word = Word::new(FACTS);
    assert_eq!(
        word.post(PEER_CLOSED | WRITABLE),
        (FACTS, false),
        "not news for the owner"
    );
    word.clear(WRITABLE);
    assert_eq!(word.post(READABLE), (FACTS, true));
    assert_eq!(word.load(), FACTS | READABLE | RUNNING);
    assert_eq!(word.post(ATTEND), (FACTS | READABLE | RUNNING, false));
    assert_eq!(word.load(), FACTS | READABLE | ATTEND | RUNNING);
}

#[test]
fn the_flusher_s_role_is_one_thread_s() {
    let word = Word::new(FACTS);
    assert!(word.try_flush() && !word.try_flush());
    assert!(!word.try_flush_first());
    assert!(word.give_back_flush());
    assert_eq!(word.load(), FACTS);

    word.set(QUEUED);
    assert!(!word.try_flush_first(), "others are before us");
    assert!(word.try_flush());
    assert!(!word.give_back_flush(), "something is queued");
    assert_eq!(word.load(), FACTS | QUEUED | FLUSHING);
    word.set(WRITABLE);
    assert!(!word.park_flush(), "there is room");
    assert_eq!(word.load(), FACTS | QUEUED | FLUSHING | WRITABLE);
    word.clear(WRITABLE);
    assert!(word.park_flush());
    assert_eq!(word.load(), FACTS | QUEUED);
    word.clear(QUEUED);
    assert!(word.try_flush_first());
    assert_eq!(word.load(), FACTS | FLUSHING);
}

#[test]
fn the_flusher_s_role_may_be_held_for_longer() {
    for taken in [FLUSHING, QUEUED] {
        let word = Word::new(FACTS | taken);
        assert!(!word.try_hold_flush());
        assert_eq!(word.load(), FACTS | taken);
    }
    let word = Word::new(FACTS);
    assert!(word.try_hold_flush());
    assert_eq!(word.load(), FACTS | FLUSHING | HELD);
    assert!(!word.try_hold_flush() && !word.try_flush_first() && !word.try_flush());
    word.set(QUEUED);
    assert!(!word.give_back_flush(), "something is queued");
    assert_eq!(word.load(), FACTS | FLUSHING | HELD | QUEUED);
    word.clear(QUEUED);
    assert!(word.give_back_flush());
    assert_eq!(word.load(), FACTS);
}

#[test]
fn who_queues_flushes_unless_somebody_does_or_waits() {
    for (before, taken) in [
        (0, true),
        (FLUSHING, false),
        (QUEUED, false),
        (WRITABLE, true),
    ] {
        let word = Word::new(FACTS | before);
        assert_eq!(word.queue_and_try_flush(), taken, "{before:#x}");
        let role = if taken { FLUSHING } else { 0 };
        assert_eq!(word.load(), FACTS | before | QUEUED | role);
    }
}

#[test]
fn a_callback_under_way_is_left_a_note() {
    let facts = FACTS & !OWNED;
    let word = Word::new(facts | OWNED);
    assert!(word.let_go() && word.may_begin());
    assert_eq!(word.load(), facts);
    // It is in no hands any more.
    assert!(!word.let_go() && !word.take_back() && !word.hand_on());
    word.set(BUSY | OWNED);
    assert!(!word.take_back());
    assert!(!word.let_go());
    assert_eq!(word.load(), facts | OWNED | BUSY | GONE);
    assert!(!word.may_begin());
    assert_eq!(word.load(), facts | OWNED | BUSY | GONE | BEGIN);
    assert!(word.hand_on());
    assert_eq!(word.load(), facts | BUSY | GONE | BEGIN);
}

#[test]
fn a_connection_dropped_in_its_callback_is_nobody_elses() {
    let facts = FACTS & !OWNED;
    for (before, after) in [
        (OWNED | BUSY, OWNED),
        (OWNED | BUSY | GONE, GONE),
        (BUSY | BEGIN, 0),
    ] {
        let word = Word::new(facts | before);
        assert_eq!(word.end_callback(), facts | before);
        assert_eq!(word.load(), facts | after);
        assert_eq!(word.take_back(), after == OWNED);
    }
}

#[test]
fn the_state_follows_from_the_facts() {
    let state = |bits| Word::new(bits).state();
    let rest = !(CONNECTED | CLOSE | ABORT | CLOSED);
    for others in [0, rest] {
        assert_eq!(state(others), ConnectionState::Connecting);
        assert_eq!(state(others | CONNECTED), ConnectionState::Connected);
        assert!(!Word::new(others | CONNECTED).ended());
        for end in [CLOSE, ABORT] {
            assert_eq!(state(others | end), ConnectionState::Disconnecting);
            assert_eq!(
                state(others | CONNECTED | end),
                ConnectionState::Disconnecting
            );
            assert!(Word::new(others | end).ended());
        }
        assert_eq!(
            state(others | CONNECTED | CLOSE | CLOSED),
            ConnectionState::Disconnected
        );
        assert!(Word::new(others | CLOSED).ended());
    }
    assert!(
        ConnectionState::Connecting < ConnectionState::Connected
            && ConnectionState::Disconnecting < ConnectionState::Disconnected
    );
}

/// What the sink answers, one after the other; afterwards it takes everything.
#[derive(Clone, Copy)]
enum Answer {
    Take(usize),
    Full,
    /// As `Full`, and room is reported right after.
    Edge,
    NoMemory,
    Broken,
}

struct Line {
    word: Word,
    outbox: Outbox,
    script: Mutex<VecDeque<Answer>>,
    taken: Mutex<Vec<u8>>,
    /// Calls of the sink.
    calls: Mutex<usize>,
}

impl Contain for Line {
    fn contain(&self, code: impl FnOnce()) -> bool {
        code();
        true
    }
}

impl Sink for Line {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        *self.calls.lock() += 1;
        let all: usize = slices.iter().map(|s| s.len()).sum();
        assert!(all > 0, "nothing is no message");
        let n = match self.script.lock().pop_front() {
            None => all,
            Some(Answer::Take(n)) => n.min(all),
            Some(Answer::Full) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            Some(Answer::Edge) => {
                self.word.set(WRITABLE);
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            Some(Answer::NoMemory) => return Err(ErrorKind::WouldBlock.into()),
            Some(Answer::Broken) => return Err(ErrorKind::BrokenPipe.into()),
        };
        let flat = slices.iter().flat_map(|s| s.iter().copied());
        self.taken.lock().extend(flat.take(n));
        Ok(n)
    }
}

impl Line {
    fn new(script: &[Answer]) -> Self {
        Self {
            word: Word::new(FACTS),
            outbox: Outbox::default(),
            script: Mutex::new(script.iter().copied().collect()),
            taken: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    fn send_within(&self, text: &str, bytes: usize, messages: usize) -> Result<Sent, Full> {
        let mut chain = LinkBuffer::from(Bytes::copy_from_slice(text.as_bytes()));
        let bound = Bound {
            bytes,
            messages,
            low: 0,
        };
        let sent = self.outbox.send(&self.word, self, &mut chain, bound);
        assert_eq!(chain.is_empty(), sent.is_ok());
        sent.map(|(_, sent)| sent)
    }

    fn send(&self, text: &str) -> Sent {
        self.send_within(text, usize::MAX, usize::MAX).unwrap()
    }

    fn drive(&self) -> Sent {
        self.outbox.drive(&self.word, self)
    }

    fn taken(&self) -> String {
        String::from_utf8(self.taken.lock().clone()).unwrap()
    }

    fn bits(&self) -> u32 {
        self.word.load() & !FACTS
    }
}

#[test]
fn a_free_sink_takes_it_all_at_once() {
    let line = Line::new(&[Answer::Take(1), Answer::Take(2)]);
    assert_eq!(line.send("hello"), Sent::All);
    assert_eq!((line.taken().as_str(), line.bits()), ("hello", 0));
    assert_eq!((line.outbox.bytes_sent(), line.outbox.messages()), (5, 1));
    assert_eq!(line.outbox.queued(), 0);
    let before = line.outbox.mark();
    assert!(line.outbox.passed(before));
    assert_eq!(line.drive(), Sent::All);
    assert_eq!(*line.calls.lock(), 3);
    line.outbox.count(7);
    assert_eq!(line.outbox.bytes_sent(), 12);
}

#[test]
fn what_does_not_fit_waits_in_front_and_goes_out_in_order() {
    let line = Line::new(&[Answer::Take(2), Answer::Full, Answer::Full]);
    let mut first = LinkBuffer::from(Bytes::from_static(b"first"));
    let bound = Bound {
        bytes: 100,
        messages: 100,
        low: 0,
    };
    let (mark, sent) = line
        .outbox
        .send(&line.word, &line, &mut first, bound)
        .unwrap();
    assert_eq!(sent, Sent::Parked);
    assert_eq!((line.outbox.queued(), line.bits()), (3, QUEUED));
    assert!(!line.outbox.passed(mark));
    assert_eq!(line.send("second"), Sent::Parked, "behind the first");
    assert_eq!((line.outbox.queued(), line.outbox.messages()), (9, 2));
    let end = line.outbox.mark();
    line.script
        .lock()
        .extend([Answer::Take(3), Answer::Full, Answer::Full]);
    assert_eq!(line.drive(), Sent::Parked);
    assert!(line.outbox.passed(mark) && !line.outbox.passed(end));
    assert_eq!(line.outbox.queued(), 6);
    assert_eq!(line.drive(), Sent::All);
    assert!(line.outbox.passed(end));
    assert_eq!((line.taken().as_str(), line.bits()), ("firstsecond", 0));
    assert_eq!((line.outbox.queued(), line.outbox.bytes_sent()), (0, 11));
    assert_eq!(line.send("third"), Sent::All);
}

#[test]
fn old_news_of_room_is_used_up_and_new_news_is_not_missed() {
    // An edge from before is worth one more try.
    let line = Line::new(&[Answer::Full]);
    line.word.set(WRITABLE);
    assert_eq!(line.send("a"), Sent::All);
    // One that comes after the last try keeps the role.
    let line = Line::new(&[Answer::Full, Answer::Edge]);
    assert_eq!(line.send("b"), Sent::All);
    assert_eq!((line.taken().as_str(), line.bits()), ("b", 0));
    // None comes: parked, after two tries and not one.
    let line = Line::new(&[Answer::Full, Answer::Full]);
    assert_eq!(line.send("c"), Sent::Parked);
    assert_eq!(*line.calls.lock(), 2);
}

#[test]
fn a_sink_without_memory_is_tried_again_later() {
    let line = Line::new(&[Answer::NoMemory]);
    assert_eq!(line.send("abc"), Sent::Starved);
    assert_eq!((line.outbox.queued(), line.bits()), (3, QUEUED));
    assert_eq!(line.drive(), Sent::All);
    assert_eq!(line.taken(), "abc");
}

#[test]
fn a_broken_sink_loses_what_is_queued_and_says_so() {
    let line = Line::new(&[Answer::Take(1), Answer::Full, Answer::Full]);
    assert_eq!(line.send("abc"), Sent::Parked);
    assert_eq!(line.send("de"), Sent::Parked);
    line.script.lock().push_back(Answer::Broken);
    assert_eq!(line.drive(), Sent::Failed(ErrorKind::BrokenPipe));
    let lost = line.outbox.lost();
    assert_eq!((lost.bytes, lost.messages), (4, 2));
    assert_eq!((line.outbox.queued(), line.bits()), (0, BROKEN));
}

#[test]
fn nothing_is_sent_behind_the_end() {
    for end in [ABORT, BROKEN, POISONED, CLOSED] {
        let line = Line::new(&[Answer::Full, Answer::Full]);
        assert_eq!(line.send("abc"), Sent::Parked);
        line.word.set(end);
        line.outbox.discard(&line.word, &line);
        assert_eq!((line.outbox.lost().bytes, line.outbox.queued()), (3, 0));
        assert_eq!(line.bits(), end);
        assert_eq!(line.send("late"), Sent::Failed(ErrorKind::NotConnected));
        assert_eq!(line.outbox.lost().bytes, 7);
        assert_eq!(line.taken(), "");
    }
}

#[test]
fn the_bounds_hold_except_for_an_empty_queue() {
    let line = Line::new(&[Answer::Full, Answer::Full]);
    assert_eq!(
        line.send_within("four", 2, 2),
        Ok(Sent::Parked),
        "nothing was queued"
    );
    let bound = |bytes, messages| Bound {
        bytes,
        messages,
        low: 0,
    };
    assert!(line.outbox.has_room(4, bound(8, 2)) && !line.outbox.has_room(5, bound(8, 2)));
    assert!(!line.outbox.has_room(1, bound(8, 1)));
    assert_eq!(line.send_within("fives", 8, 2), Err(Full(4)));
    assert_eq!(line.send_within("four", 8, 1), Err(Full(4)));
    assert_eq!(line.send_within("four", 8, 2), Ok(Sent::Parked));
    assert_eq!(line.outbox.messages(), 2, "refused ones do not count");
    assert_eq!(line.drive(), Sent::All);
    assert!(line.outbox.has_room(100, bound(8, 1)));
}

#[test]
fn a_turn_has_a_share() {
    const MIB: usize = 1 << 20;
    let line = Line::new(&[Answer::Full, Answer::Full]);
    line.send(&"x".repeat(MIB));
    line.script
        .lock()
        .extend([Answer::Take(MIB - 1), Answer::Take(1)]);
    assert_eq!(line.drive(), Sent::Share);
    assert_eq!(
        line.bits(),
        QUEUED,
        "the role is free, somebody looks again"
    );
    assert_eq!(line.drive(), Sent::All);
    assert_eq!(line.bits(), 0);

    let line = Line::new(&[Answer::Full, Answer::Full]);
    line.send(&"x".repeat(MIB - 1));
    assert_eq!(line.drive(), Sent::All, "below the share");
}

#[test]
fn slices_go_out_only_past_an_empty_queue() {
    let two = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
    let line = Line::new(&[Answer::Take(3), Answer::Take(1)]);
    let send = |line: &Line| {
        let sent = line.outbox.send_slices(&line.word, line, &two);
        sent.map(|(_, sent)| sent)
    };
    assert_eq!(
        send(&line),
        Some(Sent::All),
        "the rest behind the first part"
    );
    assert_eq!((line.outbox.bytes_sent(), line.bits()), (4, 0));
    assert_eq!(*line.taken.lock(), b"abcd");

    line.script
        .lock()
        .extend([Answer::Take(1), Answer::Full, Answer::Full]);
    assert_eq!(send(&line), Some(Sent::Parked));
    assert_eq!((line.outbox.queued(), line.bits()), (3, QUEUED));
    assert_eq!(send(&line), None, "something is before it");
    assert_eq!(*line.calls.lock(), 5);

    let line = Line::new(&[Answer::Broken]);
    assert_eq!(send(&line), Some(Sent::Failed(ErrorKind::BrokenPipe)));
    assert_eq!(line.bits(), BROKEN, "before the role is free");
    assert_eq!(
        send(&line),
        Some(Sent::Failed(ErrorKind::NotConnected)),
        "nothing follows"
    );
    assert_eq!(*line.calls.lock(), 1);
}

#[test]
fn a_chain_of_many_pieces_goes_out_whole() {
    let mut chain = LinkBuffer::new();
    let mut all = Vec::new();
    for i in 0..200u8 {
        let piece = vec![i; 5000];
        all.extend_from_slice(&piece);
        chain.append(LinkBuffer::from(Bytes::from(piece)));
    }
    chain.flush();
    let line = Line::new(&[Answer::Take(12_345)]);
    let bound = Bound {
        bytes: 1,
        messages: 1,
        low: 0,
    };
    let sent = line.outbox.send(&line.word, &line, &mut chain, bound);
    assert_eq!(sent.map(|(_, sent)| sent), Ok(Sent::All));
    assert!(chain.is_empty() && *line.taken.lock() == all);
}

#[test]
fn slices_for_a_full_sink_wait_like_everything_else() {
    let line = Line::new(&[Answer::Full, Answer::Full, Answer::Full]);
    let (_, sent) = line
        .outbox
        .send_slices(&line.word, &line, &[IoSlice::new(b"abc")])
        .unwrap();
    assert_eq!((sent, line.outbox.queued()), (Sent::Parked, 3));
    assert_eq!(line.drive(), Sent::All);
    assert_eq!(line.taken(), "abc");
}

const NO_BOUND: Bound = Bound {
    bytes: usize::MAX,
    messages: usize::MAX,
    low: 0,
};

/// A line on which others act while something is sent or dropped.
struct Busy<'a> {
    line: &'a Line,
    /// Called once, before the next send.
    sending: Mutex<Option<&'a dyn Fn()>>,
    /// Called once, before the next payload is dropped.
    dropping: Mutex<Option<&'a dyn Fn()>>,
}

impl<'a> Busy<'a> {
    fn new(line: &'a Line, sending: Option<&'a dyn Fn()>, dropping: Option<&'a dyn Fn()>) -> Self {
        Self {
            line,
            sending: Mutex::new(sending),
            dropping: Mutex::new(dropping),
        }
    }

    fn send(&self, text: &'static str) -> Sent {
        let mut chain = LinkBuffer::from(Bytes::from_static(text.as_bytes()));
        let Line { word, outbox, .. } = self.line;
        outbox.send(word, self, &mut chain, NO_BOUND).unwrap().1
    }
}

impl Contain for Busy<'_> {
    fn contain(&self, code: impl FnOnce()) -> bool {
        let others = self.dropping.lock().take();
        others.into_iter().for_each(|others| others());
        catch_unwind(AssertUnwindSafe(code)).is_ok()
    }
}

impl Sink for Busy<'_> {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let others = self.sending.lock().take();
        others.into_iter().for_each(|others| others());
        Sink::send(self.line, slices)
    }
}

#[test]
fn what_is_queued_while_the_flusher_sends_goes_behind_what_it_has_left() {
    let line = Line::new(&[Answer::Full, Answer::Full]);
    assert_eq!(line.send("first"), Sent::Parked);
    line.script
        .lock()
        .extend([Answer::Take(2), Answer::Full, Answer::Full]);
    let other = || assert_eq!(line.send("second"), Sent::Parked);
    let busy = Busy::new(&line, Some(&other), None);
    assert_eq!(line.outbox.drive(&line.word, &busy), Sent::Parked);
    assert_eq!((line.outbox.queued(), line.bits()), (9, QUEUED));
    assert_eq!(line.drive(), Sent::All);
    assert_eq!((line.taken().as_str(), line.bits()), ("firstsecond", 0));
    assert_eq!(line.outbox.queued(), 0);
}

#[test]
fn a_message_queued_behind_the_end_fails_unless_it_was_sent_before() {
    // Another thread has the flusher's role, and the end comes while it sends.
    let line = Line::new(&[]);
    let late = || {
        line.word.set(ABORT);
        assert_eq!(line.send("late"), Sent::Failed(ErrorKind::NotConnected));
    };
    assert_eq!(Busy::new(&line, Some(&late), None).send("sent"), Sent::All);
    assert_eq!(
        (line.taken().as_str(), line.outbox.lost().bytes),
        ("sent", 4)
    );

    // It sends what was just queued, then comes the end: that is no failure of this message.
    let line = Line::new(&[]);
    line.word.set(FLUSHING);
    let flusher = || {
        line.word.clear(FLUSHING);
        assert_eq!(line.drive(), Sent::All);
        line.word.set(CLOSED);
    };
    let busy = Busy::new(&line, None, Some(&flusher));
    assert_eq!(busy.send("in time"), Sent::Parked);
    assert_eq!(
        (line.taken().as_str(), line.outbox.lost().bytes),
        ("in time", 0)
    );
}

#[test]
fn what_a_flusher_sends_is_lost_only_if_it_cannot_send_it() {
    for (sent, lost) in [(None, (6, 1)), (Some(Answer::Broken), (9, 2))] {
        let line = Line::new(&[Answer::Full, Answer::Full]);
        assert_eq!(line.send("one"), Sent::Parked);
        line.script.lock().extend(sent);
        let end = || {
            assert_eq!(line.send("queued"), Sent::Parked);
            line.word.set(CLOSED);
            line.outbox.discard(&line.word, &line);
            let so_far = line.outbox.lost();
            assert_eq!((so_far.bytes, so_far.messages), (6, 1));
            assert_eq!(line.outbox.queued(), 3, "in the flusher's hands");
        };
        let busy = Busy::new(&line, Some(&end), None);
        line.outbox.drive(&line.word, &busy);
        let Loss { bytes, messages } = line.outbox.lost();
        assert_eq!((bytes, messages), lost);
        assert_eq!(line.outbox.queued(), 0);
        // One that comes too late is lost by itself, whatever was lost before.
        assert_eq!(line.send("late"), Sent::Failed(ErrorKind::NotConnected));
        let Loss { bytes, messages } = line.outbox.lost();
        assert_eq!((bytes, messages), (lost.0 + 4, lost.1 + 1));
    }
}

/// A payload whose drop is counted, and fails.
struct Fragile(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Fragile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        panic!("dropped on purpose");
    }
}

#[test]
fn what_is_discarded_is_dropped_payload_by_payload_whatever_their_drops_do() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let line = Line::new(&[Answer::Full, Answer::Full]);
    let busy = Busy::new(&line, None, None);
    let mut chain = LinkBuffer::new();
    for _ in 0..3 {
        let payload = Fragile(vec![1; 5000], Arc::clone(&dropped));
        chain.write_bytes(Bytes::from_owner(payload));
    }
    chain.flush();
    let sent = line.outbox.send(&line.word, &busy, &mut chain, NO_BOUND);
    assert_eq!(sent.map(|(_, sent)| sent), Ok(Sent::Parked));
    line.word.set(ABORT);
    line.outbox.discard(&line.word, &busy);
    assert_eq!(dropped.load(Ordering::Relaxed), 3);
    assert_eq!(
        (line.outbox.lost().bytes, line.outbox.queued()),
        (15_000, 0)
    );
}
