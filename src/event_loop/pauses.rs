//! How often it is logged that accepting pauses.

use std::time::{Duration, Instant};

/// At most one line in this time.
const QUIET: Duration = Duration::from_secs(10);

/// The pauses of one listener that were logged, and those that were not.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    logged: Option<Instant>,
    silent: u64,
}

impl Pauses {
    /// One more. If it is to be logged: how many were not since the last that was.
    pub(super) fn one_more(&mut self, now: Instant) -> Option<u64> {
        let recent = |logged| now.saturating_duration_since(logged) < QUIET;
        if self.logged.is_some_and(recent) {
            self.silent += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pause_is_logged_and_then_one_in_a_while() {
        let mut pauses = Pauses::default();
        let begin = Instant::now();
        assert_eq!(pauses.one_more(begin), Some(0));
        for n in 1..100 {
            assert_eq!(
                pauses.one_more(begin + Duration::from_millis(100 * n)),
                None
            );
        }
        assert_eq!(pauses.one_more(begin + QUIET), Some(99));
        assert_eq!(pauses.one_more(begin + QUIET), None);
        assert_eq!(pauses.one_more(begin + 3 * QUIET), Some(1));
        assert_eq!(pauses.one_more(begin + 4 * QUIET), Some(0));
    }
}
