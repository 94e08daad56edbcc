//! Memory: what is allocated, what is held, what is given back. Allocations are counted.

#[global_allocator]
static ALLOCATOR: support::counting::Counting = support::counting::Counting;

#[cfg(not(netpoll_leaks))]
mod allocations;
mod failures;
#[cfg(not(netpoll_leaks))]
mod held;
#[cfg(not(netpoll_leaks))]
mod idle;
mod idle_cost;
#[cfg(not(netpoll_leaks))]
mod limit;
#[path = "../support/mod.rs"]
mod support;
#[cfg(netpoll_faults)]
mod vectored;
