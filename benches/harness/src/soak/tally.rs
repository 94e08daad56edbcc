//! What the peers have done and seen.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

/// How long an answer may take. What takes longer counts as lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How many faults are kept in words.
const NOTES: usize = 30;

/// What a peer does with a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Churn,
    Reset,
    HalfClose,
    Partial,
    Fragments,
    Stall,
    Large,
    Sleep,
    Late,
    Close,
    Abort,
    Fail,
    Panic,
    Pooled,
    PooledEnd,
    PooledPanic,
    Dialled,
}

impl Act {
    pub(super) const ALL: [Self; 17] = [
        Self::Churn,
        Self::Reset,
        Self::HalfClose,
        Self::Partial,
        Self::Fragments,
        Self::Stall,
        Self::Large,
        Self::Sleep,
        Self::Late,
        Self::Close,
        Self::Abort,
        Self::Fail,
        Self::Panic,
        Self::Pooled,
        Self::PooledEnd,
        Self::PooledPanic,
        Self::Dialled,
    ];

    /// What is done, for the report.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Churn => "connect, a few requests, some at once, close",
            Self::Reset => "reset with nothing, with requests or with answers under way",
            Self::HalfClose => "requests, then the end of the stream, then all answers",
            Self::Partial => "leave in the middle of a frame, by FIN or reset",
            Self::Fragments => "frames in small pieces",
            Self::Stall => "up to 2 MiB of requests before the first answer is read",
            Self::Large => "frames of up to 1 MiB",
            Self::Sleep => "handler sleeps",
            Self::Late => "another thread answers",
            Self::Close => "handler answers and closes",
            Self::Abort => "handler aborts the connection",
            Self::Fail => "handler returns an error",
            Self::Panic => "handler panics",
            Self::Pooled => "call on a connection of a netpoll pool",
            Self::PooledEnd => "pooled connection that the server closes after its answer",
            Self::PooledPanic => "pooled call whose handler panics",
            Self::Dialled => "netpoll client whose answers a poller reads",
        }
    }
}

/// What must not have happened.
#[derive(Debug)]
pub(super) enum Fault {
    /// An answer or an end that was owed has not come.
    Lost(String),
    /// So many bytes are not what was asked for.
    Wrong(u64, String),
}

/// Counts, shared by all threads of the load.
#[derive(Debug, Default)]
pub(super) struct Tally {
    acts: [AtomicU64; Act::ALL.len()],
    tags: AtomicU32,
    /// Connections opened.
    pub(super) connects: AtomicU64,
    /// Answers that were compared and right.
    pub(super) answers: AtomicU64,
    /// Of these, answers on held connections.
    pub(super) held_answers: AtomicU64,
    /// Bytes of all answers.
    pub(super) bytes: AtomicU64,
    pub(super) wrong_bytes: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Pooled connections that were handed out before the end that was asked for had arrived.
    pub(super) stale: AtomicU64,
    /// Connects that had to wait for a free port.
    pub(super) port_waits: AtomicU64,
    notes: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Tally {
    /// A tag that no other connection has.
    pub(super) fn tag(&self) -> u32 {
        self.tags.fetch_add(1, Relaxed) + 1
    }

    /// Counts an act that ended as it should, or else its fault.
    pub(super) fn done(&self, act: Act, result: Result<(), Fault>) {
        match result {
            Ok(()) => {
                self.acts[act as usize].fetch_add(1, Relaxed);
            }
            Err(fault) => self.fault(&format!("{act:?}"), &fault),
        }
    }

    /// Counts a fault and says so.
    pub(super) fn fault(&self, whose: &str, fault: &Fault) {
        let text = match fault {
            Fault::Lost(what) => {
                self.lost.fetch_add(1, Relaxed);
                format!("{whose}: lost: {what}")
            }
            Fault::Wrong(bytes, what) => {
                self.wrong_bytes.fetch_add(*bytes, Relaxed);
                format!("{whose}: {bytes} wrong bytes: {what}")
            }
        };
        let mut notes = self.notes.lock();
        if notes.len() < NOTES {
            eprintln!("soak: {text}");
            notes.push(text);
        }
    }

    /// Counts an answer that was right.
    pub(super) fn answer(&self, bytes: usize) {
        self.answers.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// How often each act has ended as it should.
    pub(super) fn acts(&self) -> Vec<(Act, u64)> {
        let count = |act: Act| (act, self.acts[act as usize].load(Relaxed));
        Act::ALL.into_iter().map(count).collect()
    }

    /// How often one act has ended as it should.
    pub(super) fn count(&self, act: Act) -> u64 {
        self.acts[act as usize].load(Relaxed)
    }

    /// The faults in words, as far as they were kept.
    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }

    /// Asks all threads to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether threads are to end.
    pub(super) fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }
}
