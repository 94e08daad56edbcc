//! A safe face for the part of io_uring the raw io_uring server uses: multishot accept, multishot
//! receive into provided buffers, and send.
//!
//! Invariants, beside those of the parent module:
//! * the pool's memory and the entry ring are never freed, so the kernel may write to them at any
//!   time, also while the process ends;
//! * a [`Lease`] exists exactly while its buffer is out of the kernel's hands: one is made per buffer
//!   the kernel reports as filled, it cannot be cloned, and giving it back consumes it;
//! * bytes being sent are kept in `sending`, untouched, until the kernel has reported that send.

use std::alloc::Layout;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;

use super::raw;

const GROUP: u16 = 0;
const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const CANCEL: u64 = 4 << 56;
const OPERATION: u64 = 0xff << 56;

/// A filled buffer of the pool, on loan until [`Ring::recycle`].
#[derive(Debug)]
pub(crate) struct Lease {
    id: u16,
    filled: usize,
}

/// Bytes on their way out.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A received buffer, sent back from where it lies.
    Leased(Lease),
    /// Bytes of our own.
    Owned(Vec<u8>),
}

/// What the kernel has finished.
pub(crate) enum Completion {
    /// A connection was accepted; `again` says that accepting has ended and is to be started anew.
    Accepted {
        stream: io::Result<TcpStream>,
        again: bool,
    },
    /// Data, end of stream (`None`) or an error; `again` as above.
    Received {
        key: usize,
        data: io::Result<Option<Lease>>,
        again: bool,
    },
    /// So many bytes of `piece`, counted from where the send began, are sent.
    Sent {
        key: usize,
        piece: Piece,
        from: usize,
        sent: io::Result<usize>,
    },
}

/// An io_uring with a pool of provided buffers.
pub(crate) struct Ring {
    ring: IoUring,
    pool: Pool,
    sending: Slab<(usize, Piece, usize)>,
}

impl Ring {
    /// Sets up a ring whose pool has `buffers` (a power of two) of `size` bytes.
    pub(crate) fn new(buffers: u16, size: usize) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(16384)
            .build(4096)?;
        let pool = Pool::new(buffers, size);
        let entries = pool.entries as u64;
        // SAFETY: the entries are page-aligned, `buffers` long and never freed.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(entries, buffers, GROUP, 0)
        }?;
        Ok(Self {
            ring,
            pool,
            sending: Slab::new(),
        })
    }

    /// Accepts connections until told otherwise.
    pub(crate) fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(raw(listener)))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(ACCEPT);
        self.push(&entry)
    }

    /// Receives from `stream` until told otherwise; reports carry `key`.
    pub(crate) fn receive(&mut self, stream: &TcpStream, key: usize) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(raw(stream)), GROUP)
            .build()
            .user_data(RECEIVE | key as u64);
        self.push(&entry)
    }

    /// Ends receiving for `key`; a report with `again` follows.
    pub(crate) fn pause(&mut self, key: usize) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(RECEIVE | key as u64)
            .build()
            .user_data(CANCEL);
        self.push(&entry)
    }

    /// Sends `piece`, but for its first `from` bytes.
    pub(crate) fn send(
        &mut self,
        stream: &TcpStream,
        key: usize,
        piece: Piece,
        from: usize,
    ) -> io::Result<()> {
        let (start, length) = {
            let bytes = &self.bytes(&piece)[from..];
            (bytes.as_ptr(), bytes.len() as u32)
        };
        let slot = self.sending.insert((key, piece, from));
        let entry = opcode::Send::new(Fd(raw(stream)), start, length)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND | slot as u64);
        self.push(&entry)
    }

    /// The bytes of `piece`.
    pub(crate) fn bytes<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Leased(lease) => self.leased(lease),
            Piece::Owned(bytes) => bytes,
        }
    }

    /// The bytes received into `lease`.
    pub(crate) fn leased<'a>(&'a self, lease: &'a Lease) -> &'a [u8] {
        self.pool.bytes(lease)
    }

    /// Gives a buffer back to the kernel.
    pub(crate) fn recycle(&mut self, lease: Lease) {
        self.pool.provide(lease.id);
    }

    /// Submits what was asked for, waits for at least one report and appends all there are.
    pub(crate) fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        let Self { ring, sending, .. } = self;
        for entry in ring.completion() {
            let (token, flags) = (entry.user_data(), entry.flags());
            let (key, again) = ((token & !OPERATION) as usize, !cqueue::more(flags));
            let result = match entry.result() {
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                count => Ok(count),
            };
            completions.push(match token & OPERATION {
                ACCEPT => Completion::Accepted {
                    stream: result.map(accepted),
                    again,
                },
                RECEIVE => {
                    let lease = |filled: i32| {
                        cqueue::buffer_select(flags)
                            .filter(|_| filled > 0)
                            .map(|id| Lease {
                                id,
                                filled: filled as usize,
                            })
                    };
                    Completion::Received {
                        key,
                        data: result.map(lease),
                        again,
                    }
                }
                SEND => {
                    let (key, piece, from) = sending.remove(key);
                    Completion::Sent {
                        key,
                        piece,
                        from,
                        sent: result.map(|count| count as usize),
                    }
                }
                _ => continue,
            });
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to is the pool or a piece in `sending`, and both stay
            // until the kernel has reported; see the invariants above.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

fn accepted(fd: i32) -> TcpStream {
    // SAFETY: the kernel has just opened `fd` for us; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

/// Buffers the kernel chooses from when data arrives.
struct Pool {
    memory: *mut u8,
    size: usize,
    entries: *mut BufRingEntry,
    mask: u16,
    tail: u16,
}

impl Pool {
    fn new(buffers: u16, size: usize) -> Self {
        assert!(buffers.is_power_of_two() && size > 0);
        let memory = allocate(usize::from(buffers) * size);
        let entries = allocate(usize::from(buffers) * size_of::<BufRingEntry>()).cast();
        let mut pool = Self {
            memory,
            size,
            entries,
            mask: buffers - 1,
            tail: 0,
        };
        for id in 0..buffers {
            pool.provide(id);
        }
        pool
    }

    fn start(&self, id: u16) -> *mut u8 {
        assert!(id <= self.mask, "buffer {id} is not of this pool");
        // SAFETY: `id` is below the number of buffers, so the offset stays in the allocation.
        unsafe { self.memory.add(usize::from(id) * self.size) }
    }

    fn bytes(&self, lease: &Lease) -> &[u8] {
        assert!(lease.filled <= self.size);
        // SAFETY: by the lease the buffer is ours alone; it was zeroed when allocated, so all of it
        // is initialised, and it is never freed.
        unsafe { std::slice::from_raw_parts(self.start(lease.id), lease.filled) }
    }

    /// Hands buffer `id` to the kernel.
    fn provide(&mut self, id: u16) {
        let start = self.start(id) as u64;
        // SAFETY: the masked index is below the number of entries.
        let entry = unsafe { self.entries.add(usize::from(self.tail & self.mask)) };
        // SAFETY: the entry was zeroed when allocated, which is a value of it, and the kernel does
        // not look at it before the tail has moved past it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(start);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the base of the ring, aligned to a page.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is an aligned u16 that is never freed; the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed, page-aligned memory that is never freed.
fn allocate(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4096).expect("a size the address space can hold");
    // SAFETY: the size is not zero: both callers ask for at least one buffer or entry.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    assert!(!memory.is_null(), "no memory for a pool of {bytes} bytes");
    memory
}
