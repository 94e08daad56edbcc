//! The server's books: which callbacks each connection has had, and counts of everything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use netpoll::Stats;
use parking_lot::Mutex;

use super::figures::Figures;
use crate::sys;

/// How many complaints are worth a line.
const LINES: u64 = 20;

/// Where a connection is in its life, as its callbacks tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Prepared,
    Connected,
    Disconnected,
    Closed,
}

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct Record {
    id: u64,
    phase: AtomicU8,
    inside: AtomicBool,
}

/// The counts, and the records of all connections that have not ended.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: Mutex<HashMap<u64, Arc<Record>>>,
    prepared: AtomicU64,
    connected: AtomicU64,
    disconnected: AtomicU64,
    closed: AtomicU64,
    violations: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) unexpected: AtomicU64,
    misplaced: AtomicU64,
    wrong_bytes: AtomicU64,
    said: AtomicU64,
}

/// A callback that runs; dropping it says that it has returned.
pub(super) struct Turn<'a>(&'a Record);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.inside.store(false, SeqCst);
    }
}

impl Ledger {
    /// `on_prepare` of a connection.
    pub(super) fn prepare(&self, id: u64) -> Arc<Record> {
        self.prepared.fetch_add(1, SeqCst);
        let record = Arc::new(Record {
            id,
            phase: AtomicU8::new(Phase::Prepared as u8),
            inside: AtomicBool::new(false),
        });
        if self
            .records
            .lock()
            .insert(id, Arc::clone(&record))
            .is_some()
        {
            self.complain(id, "was prepared twice");
        }
        record
    }

    /// `on_connect` of a connection begins.
    pub(super) fn connect(&self, id: u64) -> Arc<Record> {
        self.connected.fetch_add(1, SeqCst);
        let known = self.records.lock().get(&id).cloned();
        let record = known.unwrap_or_else(|| {
            self.complain(id, "was connected without having been prepared");
            self.prepare(id)
        });
        self.advance(&record, Phase::Prepared, Phase::Connected);
        record
    }

    /// A callback of a connected connection begins.
    pub(super) fn enter<'a>(&self, record: &'a Record) -> Turn<'a> {
        if record.inside.swap(true, SeqCst) {
            self.complain(record.id, "has two callbacks at once");
        }
        if record.phase.load(SeqCst) != Phase::Connected as u8 {
            self.complain(record.id, "has a callback before or after its time");
        }
        Turn(record)
    }

    /// `on_disconnect` of a connection.
    pub(super) fn disconnect(&self, record: &Record) {
        self.disconnected.fetch_add(1, SeqCst);
        if record.inside.load(SeqCst) {
            self.complain(record.id, "was disconnected during a callback");
        }
        self.advance(record, Phase::Connected, Phase::Disconnected);
    }

    /// The close callback of a connection.
    pub(super) fn close(&self, record: &Record) {
        self.closed.fetch_add(1, SeqCst);
        if record.inside.load(SeqCst) {
            self.complain(record.id, "was closed during a callback");
        }
        let before = record.phase.swap(Phase::Closed as u8, SeqCst);
        // One that was never connected is not disconnected either.
        if before != Phase::Disconnected as u8 && before != Phase::Prepared as u8 {
            self.complain(record.id, "was closed without having been disconnected");
        }
        if self.records.lock().remove(&record.id).is_none() {
            self.complain(record.id, "was closed twice");
        }
    }

    /// Counts a callback that must not have come, and says so.
    pub(super) fn complain(&self, id: u64, what: &str) {
        self.violations.fetch_add(1, SeqCst);
        self.say(&format!("connection {id} {what}"));
    }

    /// Counts a frame that is not the next one of its connection, and says so.
    pub(super) fn misplace(&self, text: &str) {
        self.misplaced.fetch_add(1, SeqCst);
        self.say(text);
    }

    /// Counts bytes that nobody sent, and says so.
    pub(super) fn wrong(&self, bytes: u64, text: &str) {
        self.wrong_bytes.fetch_add(bytes, SeqCst);
        self.say(text);
    }

    fn say(&self, text: &str) {
        if self.said.fetch_add(1, SeqCst) < LINES {
            eprintln!("soak server: {text}");
        }
    }

    /// Everything, together with what the event loop says.
    pub(super) fn figures(&self, stats: &Stats) -> Figures {
        let get = |counter: &AtomicU64| counter.load(SeqCst);
        let errors = |wanted: bool| {
            let those = stats.accept_errors.iter();
            let those = those.filter(|(errno, _)| (*errno == libc::EMFILE) == wanted);
            those.map(|(_, count)| count).sum()
        };
        Figures {
            prepared: get(&self.prepared),
            connected: get(&self.connected),
            disconnected: get(&self.disconnected),
            closed: get(&self.closed),
            requests: get(&self.requests),
            bytes: get(&self.bytes),
            panics_ordered: get(&self.panics),
            order_violations: get(&self.violations),
            misplaced: get(&self.misplaced),
            wrong_bytes: get(&self.wrong_bytes),
            panics_unexpected: get(&self.unexpected),
            heap: sys::heap_in_use(),
            active: stats.active as u64,
            accepted: stats.accepted,
            loop_connected: stats.connected,
            loop_disconnected: stats.disconnected,
            loop_closed: stats.closed,
            loop_panics: stats.panics,
            emfile: errors(true),
            accept_errors: errors(false),
        }
    }

    fn advance(&self, record: &Record, from: Phase, to: Phase) {
        let before = record.phase.swap(to as u8, SeqCst);
        if before != from as u8 {
            self.complain(record.id, &format!("became {to:?} and was not {from:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(ledger: &Ledger) -> u64 {
        ledger.violations.load(SeqCst)
    }

    #[test]
    fn a_life_in_order_is_no_violation() {
        let ledger = Ledger::default();
        let prepared = ledger.prepare(1);
        let record = ledger.connect(1);
        drop(ledger.enter(&record));
        drop(ledger.enter(&record));
        ledger.disconnect(&record);
        ledger.close(&prepared);
        // Reset before it was connected.
        let short = ledger.prepare(2);
        ledger.close(&short);
        let figures = ledger.figures(&Stats::default());
        assert_eq!((figures.prepared, figures.closed), (2, 2));
        assert_eq!((figures.connected, figures.disconnected), (1, 1));
        assert_eq!(figures.order_violations, 0);
        assert!(ledger.records.lock().is_empty());
    }

    #[test]
    fn every_breach_of_the_order_is_one() {
        type Breach = (&'static str, fn(&Ledger));
        let breaches: [Breach; 8] = [
            ("two at once", |ledger| {
                ledger.prepare(1);
                let record = ledger.connect(1);
                let _first = ledger.enter(&record);
                drop(ledger.enter(&record));
            }),
            ("request before connect", |ledger| {
                let record = ledger.prepare(1);
                drop(ledger.enter(&record));
            }),
            ("request after disconnect", |ledger| {
                ledger.prepare(1);
                let record = ledger.connect(1);
                ledger.disconnect(&record);
                drop(ledger.enter(&record));
            }),
            ("disconnected twice", |ledger| {
                ledger.prepare(1);
                let record = ledger.connect(1);
                ledger.disconnect(&record);
                ledger.disconnect(&record);
            }),
            ("disconnected inside", |ledger| {
                ledger.prepare(1);
                let record = ledger.connect(1);
                let _turn = ledger.enter(&record);
                ledger.disconnect(&record);
            }),
            ("closed before disconnect", |ledger| {
                ledger.prepare(1);
                let record = ledger.connect(1);
                ledger.close(&record);
            }),
            ("closed twice", |ledger| {
                let record = ledger.prepare(1);
                ledger.close(&record);
                ledger.close(&record);
            }),
            ("connected unprepared", |ledger| {
                ledger.connect(1);
            }),
        ];
        for (what, breach) in breaches {
            let ledger = Ledger::default();
            breach(&ledger);
            assert!(violations(&ledger) > 0, "{what}");
        }
    }

    #[test]
    fn failed_accepts_are_told_apart() {
        let mut stats = Stats::default();
        stats.accept_errors = vec![(libc::EMFILE, 5), (libc::ECONNABORTED, 2)];
        let figures = Ledger::default().figures(&stats);
        assert_eq!((figures.emfile, figures.accept_errors), (5, 2));
    }
}
