//! Allocations that may fail without ending the process.

use std::collections::TryReserveError;
use std::io;

/// Asks the allocator for `n` bytes and gives them back.
pub(crate) fn probe(n: usize) -> io::Result<()> {
    Vec::<u8>::new()
        .try_reserve_exact(n)
        .map_err(|e| out_of_memory(n, &e))
}

#[cold]
pub(crate) fn out_of_memory(n: usize, why: &TryReserveError) -> io::Error {
    let text = format!("no room for {n} bytes: {why}");
    io::Error::new(io::ErrorKind::OutOfMemory, text)
}
