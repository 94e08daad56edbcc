//! What codecs are written against.

mod reader;
mod writer;

pub use reader::Reader;
pub use writer::Writer;
