//! What the current thread is to a poller: nothing, the holder of its role, or the runner of a
//! callback whose role lies deposited.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use crate::poller::Poller;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not inside a callback that matters here.
    Free,
    /// Holds a role.
    Holding,
    /// Runs a callback; the role lies in its slot under this number.
    Running(u64),
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Free) };
    static POLLER: RefCell<Option<Arc<Poller>>> = const { RefCell::new(None) };
}

/// Tells the poller that the calling thread is about to wait.
///
/// Inside [`Operator::run`](crate::Operator::run) (or a scheduled closure) the poller's role is
/// given to another thread right away, so that nobody has to find out first that this one waits.
/// Everywhere else, and on every call of a run but the first, this does nothing and costs a few
/// nanoseconds.
pub fn before_blocking() {
    let Ok(State::Running(deposit)) = STATE.try_with(Cell::get) else {
        return;
    };
    STATE.set(State::Free);
    POLLER.with_borrow(|poller| {
        if let Some(poller) = poller {
            poller.hand_over(deposit);
        }
    });
}

/// Whether the calling thread holds a poller's role: inside
/// [`Operator::on_ready`](crate::Operator::on_ready) and
/// [`Operator::on_detached`](crate::Operator::on_detached), where waiting would stall everybody.
pub fn must_not_block() -> bool {
    STATE
        .try_with(Cell::get)
        .is_ok_and(|state| state == State::Holding)
}

/// The current thread leads `poller` until the returned value is dropped.
pub(crate) fn lead(poller: Arc<Poller>) -> Leading {
    POLLER.set(Some(poller));
    STATE.set(State::Holding);
    Leading(())
}

/// See [`lead`].
pub(crate) struct Leading(());

impl Leading {
    /// The role lies in its slot while a callback runs.
    pub(crate) fn running(&self, deposit: u64) {
        STATE.set(State::Running(deposit));
    }

    /// The callback returned; the role is back, or it is not.
    pub(crate) fn returned(&self, holding: bool) {
        STATE.set(if holding { State::Holding } else { State::Free });
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        STATE.set(State::Free);
        drop(POLLER.take());
    }
}
