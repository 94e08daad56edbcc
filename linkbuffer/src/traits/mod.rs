//! The traits that codecs use: sources and sinks of bytes.

mod reader;
mod writer;

pub use reader::Reader;
pub use writer::Writer;
