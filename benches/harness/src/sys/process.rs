//! A process that looks at its own memory, and limits its own descriptors while they are in use.

use std::io;

use super::check;

/// Sets this process's soft limit of open descriptors; those above it stay open. The hard limit
/// stays, so that the soft one can be raised again.
pub(crate) fn set_fd_limit(descriptors: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit the call may write to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = descriptors.min(limit.rlim_max);
    // SAFETY: `limit` is a live, initialised rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Bytes that this process has allocated and not freed, below 8 GiB; 0 where the allocator does not
/// tell.
pub(crate) fn heap_in_use() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes nothing and returns a structure of integers.
        let info = unsafe { libc::mallinfo() };
        // Both are counted in 32 bits, however large they are.
        u64::from(info.uordblks as u32) + u64::from(info.hblkhd as u32)
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_allocated_is_in_use_until_it_is_freed() {
        const SIZE: u64 = 300 << 20;
        let before = super::heap_in_use();
        let block = std::hint::black_box(Vec::<u8>::with_capacity(SIZE as usize));
        let during = super::heap_in_use();
        drop(block);
        let after = super::heap_in_use();
        // Other tests allocate as well, but not as much.
        assert!(during > before + SIZE / 2, "{before} {during}");
        assert!(after + SIZE / 2 < during, "{during} {after}");
    }
}
