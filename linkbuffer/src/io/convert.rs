//! Conversions and comparisons.

use bytes::{Bytes, BytesMut};

use crate::buffer::LinkBuffer;
use crate::node::Node;

/// Readable at once, shared, not copied.
impl From<Bytes> for LinkBuffer {
    fn from(data: Bytes) -> Self {
        Self::of(Node::Shared(data))
    }
}

/// Readable at once, not copied.
impl From<BytesMut> for LinkBuffer {
    fn from(data: BytesMut) -> Self {
        Self::of(Node::Exclusive(data))
    }
}

/// Readable at once, not copied.
impl From<Vec<u8>> for LinkBuffer {
    fn from(data: Vec<u8>) -> Self {
        Self::from(Bytes::from(data))
    }
}

/// Readable at once, not copied.
impl From<String> for LinkBuffer {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

/// Readable at once, a copy.
impl From<&[u8]> for LinkBuffer {
    fn from(data: &[u8]) -> Self {
        let mut buf = Self::new();
        buf.write_slice(data);
        buf.flush();
        buf
    }
}

/// Readable at once, a copy.
impl From<&str> for LinkBuffer {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

/// Appends unflushed bytes.
impl Extend<u8> for LinkBuffer {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        let bytes = bytes.into_iter();
        self.write_with(bytes.size_hint().0, |out| out.extend(bytes));
    }
}

/// Appends unflushed bytes.
impl<'a> Extend<&'a u8> for LinkBuffer {
    fn extend<I: IntoIterator<Item = &'a u8>>(&mut self, bytes: I) {
        self.extend(bytes.into_iter().copied());
    }
}

/// Appends unflushed bytes as [`LinkBuffer::write_bytes`] does.
impl Extend<Bytes> for LinkBuffer {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, parts: I) {
        parts.into_iter().for_each(|part| self.write_bytes(part));
    }
}

/// Compares the readable bytes.
impl PartialEq<[u8]> for LinkBuffer {
    fn eq(&self, other: &[u8]) -> bool {
        let mut rest = other;
        self.len == other.len()
            && self.chunks().all(|chunk| {
                let (head, tail) = rest.split_at(chunk.len());
                rest = tail;
                chunk == head
            })
    }
}

macro_rules! equal_to_bytes {
    ($($ty:ty $(, $param:ident)?;)*) => {$(
        /// Compares the readable bytes.
        impl$(<const $param: usize>)? PartialEq<$ty> for LinkBuffer {
            fn eq(&self, other: &$ty) -> bool {
                let bytes: &[u8] = other.as_ref();
                *self == *bytes
            }
        }
    )*};
}

equal_to_bytes! {
    &[u8];
    [u8; N], N;
    &[u8; N], N;
    Vec<u8>;
    Bytes;
    BytesMut;
    str;
    &str;
}

/// Compares the readable bytes; how they are divided into chunks does not matter.
impl PartialEq for LinkBuffer {
    fn eq(&self, other: &Self) -> bool {
        let (mut a, mut b) = (&[][..], &[][..]);
        let (mut left, mut right) = (self.chunks(), other.chunks());
        if self.len != other.len {
            return false;
        }
        loop {
            if a.is_empty() {
                a = left.next().unwrap_or(&[]);
            }
            if b.is_empty() {
                b = right.next().unwrap_or(&[]);
            }
            let n = a.len().min(b.len());
            if n == 0 || a[..n] != b[..n] {
                return n == 0;
            }
            (a, b) = (&a[n..], &b[n..]);
        }
    }
}

impl Eq for LinkBuffer {}

impl LinkBuffer {
    fn of(node: Node) -> Self {
        let mut buf = Self::new();
        buf.len = node.len();
        buf.written = buf.len as u64;
        buf.front = node;
        buf
    }
}
