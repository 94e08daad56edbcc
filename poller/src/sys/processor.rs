//! On which processor a thread runs.
//!
//! Invariant for the `unsafe` block: `sched_getcpu(3)` takes nothing and writes to no memory of ours.

/// The processor that the calling thread runs on at this moment, if the system tells: where its data
/// is in the caches.
///
/// `sched_getcpu(3)` with the GNU library on Linux; elsewhere, and in the checkers' models, which must be
/// the same each time, unknown.
#[cfg(all(target_os = "linux", target_env = "gnu", not(any(loom, shuttle))))]
#[allow(unsafe_code)]
pub(crate) fn processor() -> Option<usize> {
    // SAFETY: there are no arguments. An error is a negative number.
    let number = unsafe { libc::sched_getcpu() };
    usize::try_from(number).ok()
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", not(any(loom, shuttle)))))]
pub(crate) fn processor() -> Option<usize> {
    None
}

#[cfg(all(test, not(any(loom, shuttle)), target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::processor;

    #[test]
    fn a_processor_is_one_of_those_there_are() {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let list = text
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .unwrap();
        // "0-3,7": the thread may be moved meanwhile, but only among these.
        let here = processor().unwrap();
        let allowed = list.trim().split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&here)
        });
        assert!(allowed, "{here} is not in {list}");
    }
}
