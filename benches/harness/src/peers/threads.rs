//! A thread per connection, on the blocking sockets of the standard library.

use std::io;
use std::net::TcpListener;

use super::blocking;
use crate::work;

/// Serves `listener` for ever.
pub(crate) fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let serve = move || blocking::echo(stream, work::block_for);
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(serve)?;
    }
}
