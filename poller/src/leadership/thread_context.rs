//! What the current thread is to a poller: nothing, the holder of its leadership, or the runner of a
//! callback whose leadership lies released.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

/// A poller, as a thread that released its leadership knows it.
pub(crate) trait Handoff: Send + Sync {
    /// The run of this release is about to wait: sends a thread that takes over.
    fn begin_handoff(self: Arc<Self>, release: u64);
}

/// Not inside a callback that matters here.
const FREE: u64 = 0;
/// Holds a leadership.
const HOLDING: u64 = 1;
// Any other state is the number of the release under which the leadership lies in its slot while a callback
// runs. One word, because it is set twice for each run; releases are numbered from 2 on.

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(FREE) };
    static POLLER: RefCell<Option<Arc<dyn Handoff>>> = const { RefCell::new(None) };
}

/// Tells the poller that the calling thread is about to wait.
///
/// Inside [`Operator::run`](crate::Operator::run) (or a scheduled closure) the poller's leadership is
/// given to another thread right away, so that the monitor need not find this thread blocked first.
/// Everywhere else, and on every call of a run but the first, this does nothing and costs a few
/// nanoseconds.
pub fn before_blocking() {
    let release = match STATE.try_with(Cell::get) {
        Ok(FREE | HOLDING) | Err(_) => return,
        Ok(release) => release,
    };
    be(FREE);
    let _ = POLLER.try_with(|poller| {
        if let Some(poller) = &*poller.borrow() {
            Arc::clone(poller).begin_handoff(release);
        }
    });
}

/// Notes what the calling thread is, unless it ends: it is nothing then.
#[inline]
fn be(state: u64) {
    let _ = STATE.try_with(|cell| cell.set(state));
}

/// Whether the calling thread holds a poller's leadership: inside
/// [`Operator::on_ready`](crate::Operator::on_ready) and
/// [`Operator::on_detached`](crate::Operator::on_detached), where a wait would stall all operators of the poller.
pub fn is_polling_thread() -> bool {
    STATE
        .try_with(Cell::get)
        .is_ok_and(|state| state == HOLDING)
}

/// The current thread leads `poller` until the returned value is dropped.
pub(crate) fn lead(poller: Arc<dyn Handoff>) -> LeaderGuard {
    let before = POLLER.try_with(|cell| cell.replace(Some(poller)));
    drop(before);
    be(HOLDING);
    LeaderGuard(())
}

/// See [`lead`].
pub(crate) struct LeaderGuard(());

impl LeaderGuard {
    /// The leadership lies in its slot while a callback runs.
    #[inline]
    pub(crate) fn running(&self, release: u64) {
        debug_assert!(release > HOLDING);
        be(release);
    }

    /// The callback returned; the leadership is back, or it is not.
    #[inline]
    pub(crate) fn returned(&self, holding: bool) {
        be(if holding { HOLDING } else { FREE });
    }
}

impl Drop for LeaderGuard {
    fn drop(&mut self) {
        be(FREE);
        let poller = POLLER.try_with(RefCell::take);
        drop(poller);
    }
}
