//! What codecs are written against.

mod reader;
mod writer;

pub use reader::Reader;
pub use writer::Writer;
pub(crate) use writer::{out_of_memory, probe};
