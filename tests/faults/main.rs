//! What needs `--cfg netpoll_faults` or `--cfg netpoll_leaks`.

#![cfg(any(netpoll_faults, netpoll_leaks))]

use parking_lot::Mutex;

#[cfg(netpoll_faults)]
mod accept;
#[cfg(netpoll_faults)]
mod close;
#[cfg(netpoll_faults)]
mod ends;
#[cfg(netpoll_faults)]
mod environment;
#[cfg(netpoll_faults)]
mod exchange;
#[cfg(netpoll_faults)]
mod injected;
#[cfg(netpoll_leaks)]
mod leaks;
#[cfg(netpoll_faults)]
mod read;
#[path = "../support/mod.rs"]
mod support;
#[cfg(netpoll_faults)]
mod write;

/// A plan of faults, and the list of what is alive, are for the whole process: the tests take turns.
static TURN: Mutex<()> = Mutex::new(());
