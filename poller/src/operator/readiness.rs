//! What happened to a descriptor, and what its owner wants to hear about.

use std::{fmt, ops};

/// A set of things that happened: the argument of [`Operator::on_ready`](crate::Operator::on_ready).
///
/// The flags are hints from an edge-triggered source: a read or a write decides. Several may be
/// set at once, and a flag may come without the one a reader would expect next to it
/// (`WRITE_CLOSED` without `READABLE`, for example).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness(u8);

impl Readiness {
    /// Nothing happened.
    pub const EMPTY: Self = Self(0);
    /// Bytes (or a connection, an expiry count, an end of file) may be read.
    pub const READABLE: Self = Self(1);
    /// There is room to write.
    pub const WRITABLE: Self = Self(1 << 1);
    /// The peer will send nothing more (`EPOLLRDHUP`, or a hang-up of both directions).
    pub const READ_CLOSED: Self = Self(1 << 2);
    /// Nothing more can be sent (`EPOLLHUP`, or the read end of a pipe is gone).
    pub const WRITE_CLOSED: Self = Self(1 << 3);
    /// The descriptor has an error pending (`EPOLLERR`).
    pub const ERROR: Self = Self(1 << 4);
    /// [`Registration::wake`](crate::Registration::wake) was called.
    pub const WAKE: Self = Self(1 << 5);
    /// The operator's timer expired.
    pub const TIMER: Self = Self(1 << 6);
    /// Urgent data is in the way of a stream socket's bytes (`EPOLLPRI`; never on kqueue). A receive ends
    /// before it, however many bytes follow.
    pub const PRIORITY: Self = Self(1 << 7);

    const NAMES: [&'static str; 8] = [
        "READABLE",
        "WRITABLE",
        "READ_CLOSED",
        "WRITE_CLOSED",
        "ERROR",
        "WAKE",
        "TIMER",
        "PRIORITY",
    ];

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether at least one flag of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These flags, or none.
    pub(crate) const fn when(self, set: bool) -> Self {
        // Not a branch.
        Self(self.0 * set as u8)
    }

    /// The flags as a number, for storage in an atomic.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// The inverse of [`Self::bits`].
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl ops::BitOr for Readiness {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl ops::BitOrAssign for Readiness {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_names(f, self.0, &Self::NAMES)
    }
}

/// What a registration listens for, always edge-triggered.
///
/// `READ | WRITE` is registered once and never changed in steady state; it includes the peer's
/// end of stream. `HANGUP` alone asks to be told when the peer is gone without being woken by
/// data; platforms that cannot do so (kqueue) treat it as `READ`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Readable, end of stream and urgent data included.
    pub const READ: Self = Self(1);
    /// Writable.
    pub const WRITE: Self = Self(1 << 1);
    /// The peer closed its sending side, or the connection is gone.
    ///
    /// With `WRITE` and without `READ` an event that reports room may hide that the peer closed its sending
    /// side: ask with [`wait_ready`](crate::wait_ready), as the end is told once.
    pub const HANGUP: Self = Self(1 << 2);

    const NAMES: [&'static str; 3] = ["READ", "WRITE", "HANGUP"];

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl ops::BitOr for Interest {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_names(f, self.0, &Self::NAMES)
    }
}

/// `A | B` for the set bits, `EMPTY` for none.
fn write_names(f: &mut fmt::Formatter<'_>, bits: u8, names: &[&str]) -> fmt::Result {
    let mut first = true;
    for (bit, name) in names.iter().enumerate() {
        if bits & (1 << bit) != 0 {
            if !first {
                f.write_str(" | ")?;
            }
            f.write_str(name)?;
            first = false;
        }
    }
    if first { f.write_str("EMPTY") } else { Ok(()) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sets_behave_as_sets() {
        let set = Readiness::READABLE | Readiness::TIMER;
        assert!(set.contains(Readiness::READABLE));
        assert!(!set.contains(Readiness::READABLE | Readiness::ERROR));
        assert!(set.intersects(Readiness::ERROR | Readiness::TIMER));
        assert!(!set.intersects(Readiness::ERROR | Readiness::WAKE));
        assert!(Readiness::default().is_empty());
        assert!(!set.is_empty());
        assert_eq!(Readiness::from_bits(set.bits()), set);
    }

    #[test]
    fn debug_lists_names() {
        let set = Readiness::READ_CLOSED | Readiness::WAKE | Readiness::PRIORITY;
        assert_eq!(format!("{set:?}"), "READ_CLOSED | WAKE | PRIORITY");
        assert_eq!(format!("{:?}", Readiness::EMPTY), "EMPTY");
        assert_eq!(
            format!("{:?}", Interest::READ | Interest::WRITE),
            "READ | WRITE"
        );
        assert_eq!(format!("{:?}", Interest::HANGUP), "HANGUP");
    }
}
