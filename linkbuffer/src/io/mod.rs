//! The standard traits and those of `bytes`, adapters, conversions.

use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::{Buf, Bytes};

use crate::buffer::LinkBuffer;

mod adapters;
mod convert;

pub use adapters::{IoReader, IoWriter};

impl Read for LinkBuffer {
    /// Reads the readable bytes. `Ok(0)` means that nothing is readable now.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.len);
        self.copy_out(&mut out[..n]);
        Ok(n)
    }

    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.check(out.len())?;
        self.copy_out(out);
        Ok(())
    }

    fn read_to_end(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        let n = self.len;
        out.reserve(n);
        self.chunks().for_each(|chunk| out.extend_from_slice(chunk));
        self.advance_by(n);
        Ok(n)
    }
}

impl BufRead for LinkBuffer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(Buf::chunk(&*self))
    }

    fn consume(&mut self, n: usize) {
        Self::consume(self, n);
    }
}

impl Write for LinkBuffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_slice(data);
        Ok(data.len())
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        data.iter().for_each(|d| self.write_slice(d));
        Ok(data.iter().map(|d| d.len()).sum())
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.write_slice(data);
        Ok(())
    }

    /// Makes everything written readable.
    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self);
        Ok(())
    }
}

impl Buf for LinkBuffer {
    #[inline]
    fn remaining(&self) -> usize {
        self.len
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        let front = &self.front.as_slice()[self.off..];
        let front = &front[..front.len().min(self.len)];
        if front.is_empty() {
            return self.chunks().next().unwrap_or(&[]);
        }
        front
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        self.io_slices(out)
    }

    #[inline]
    fn advance(&mut self, n: usize) {
        self.consume(n);
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.next_bytes(n) {
            Ok(bytes) => bytes,
            Err(e) => panic!("copy_to_bytes: {e}"),
        }
    }
}

impl LinkBuffer {
    /// Copies and consumes; that many bytes must be there.
    fn copy_out(&mut self, out: &mut [u8]) {
        let mut at = 0;
        for chunk in self.chunks() {
            let n = chunk.len().min(out.len() - at);
            out[at..at + n].copy_from_slice(&chunk[..n]);
            at += n;
            if at == out.len() {
                break;
            }
        }
        self.advance_by(at);
    }
}
