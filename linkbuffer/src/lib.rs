#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod allocation;
mod buffer;
mod chunk;
mod chunk_table;
mod compact;
mod discard;
mod error;
mod forward;
mod insert;
mod io;
#[cfg(netpoll_leaks)]
pub mod leak;
#[cfg(netpoll_leaks)]
mod leak_registry;
#[doc(hidden)]
pub mod netpoll_only;
mod node;
mod node_list;
mod nodes;
mod read;
mod recv_chunk;
mod size_class;
mod slot;
mod socket_io;
mod text;
mod traits;
mod view;
mod write;

pub use buffer::{Chunks, LinkBuffer};
pub use bytes;
pub use chunk::{ChunkPool, ChunkStats};
pub use error::{ShortRead, WriteError};
pub use io::{IoReader, IoWriter};
pub use slot::{LengthSlot, RawLengthSlot};
pub use traits::{Reader, Writer};
pub use view::{compact, pinned};
