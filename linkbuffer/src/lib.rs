#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod buffer;
mod chain;
mod chunk;
mod compact;
mod discard;
mod edit;
mod error;
mod forward;
mod io;
#[cfg(netpoll_leaks)]
pub mod leak;
mod node;
mod place;
mod read;
mod receive;
mod slot;
mod text;
mod traits;
mod vectored;
mod write;

pub use buffer::{Chunks, LinkBuffer};
pub use bytes;
pub use chunk::{ChunkPool, ChunkStats};
pub use compact::{compact, pinned};
pub use error::{ShortRead, WriteError};
pub use io::{IoReader, IoWriter};
pub use slot::{LengthSlot, RawLengthSlot};
pub use traits::{Reader, Writer};
