//! A chain of byte chunks: cheap to append to, to consume and to cut zero-copy views from.

#![forbid(unsafe_code)]

mod buffer;
mod chunk;
mod error;
mod io;
mod node;
mod read;
mod slot;
mod traits;
mod vectored;
mod write;

pub use buffer::{Chunks, LinkBuffer};
pub use bytes;
pub use chunk::{ChunkPool, ChunkStats};
pub use error::{ShortRead, WriteError};
pub use io::{IoReader, IoWriter};
pub use slot::{RawSlot, Slot};
pub use traits::{Reader, Writer};
