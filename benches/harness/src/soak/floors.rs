//! How memory changes over a run, judged by its low points.
//!
//! Memory goes up and down: caches fill and are given back, and the system's allocator keeps freed pieces, now
//! more and now less. A line through such teeth says more about where it begins and ends than about growth.
//! What is never given back raises the low points. So the record, without its beginning, is cut into windows
//! of equal length, and the lowest value of each is compared with that of the one before.

use std::time::Duration;

use super::sample::Sample;

/// Windows that are compared. As much time as one takes passes before the first.
const WINDOWS: usize = 5;
/// The shortest record that says something: teeth have to fit into a window.
const LEAST: Duration = Duration::from_secs(12 * 60);

/// The lowest values of the windows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Floors {
    /// How long a window is.
    pub(super) window: Duration,
    /// KiB, one of each window.
    pub(super) kib: [f64; WINDOWS],
}

/// What low points say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Stays,
    Grows,
    /// The record is too short.
    Short,
    /// It rose in most windows and came back in one: its teeth are longer than the windows.
    Unsteady,
}

impl Floors {
    /// Of a figure in KiB; `None` if a window has no sample.
    pub(super) fn of(samples: &[Sample], kib: fn(&Sample) -> f64) -> Option<Self> {
        let window = samples.last()?.at / (WINDOWS as u32 + 1);
        let mut floors = [f64::INFINITY; WINDOWS];
        for sample in samples {
            let at = sample.at.as_secs_f64() / window.as_secs_f64();
            // The last sample lies at the end of the last window.
            let nth = (at as usize).min(WINDOWS);
            if let Some(floor) = nth.checked_sub(1).and_then(|nth| floors.get_mut(nth)) {
                *floor = floor.min(kib(sample));
            }
        }
        floors
            .iter()
            .all(|floor| floor.is_finite())
            .then_some(Self {
                window,
                kib: floors,
            })
    }

    /// By how much it grows in the windows, in KiB: as if each step were the usual one. A single step, as
    /// a cache makes that gets its size, is not the usual one.
    pub(super) fn growth(&self) -> f64 {
        let mut steps = self.steps();
        steps.sort_by(f64::total_cmp);
        steps[(steps.len() - 1) / 2] * steps.len() as f64
    }

    /// Whether that is more than `allowed`.
    pub(super) fn verdict(&self, allowed: f64) -> Verdict {
        let steps = self.steps();
        let back = -allowed / steps.len() as f64 / 2.0;
        if self.window * (WINDOWS as u32 + 1) < LEAST {
            Verdict::Short
        } else if self.growth() <= allowed {
            Verdict::Stays
        } else if steps.iter().any(|step| *step < back) {
            Verdict::Unsteady
        } else {
            Verdict::Grows
        }
    }

    pub(super) fn highest(&self) -> f64 {
        self.kib.iter().copied().fold(0.0, f64::max)
    }

    fn steps(&self) -> Vec<f64> {
        self.kib.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::child::Resources;
    use super::*;

    /// Resident memory of a run of ten minutes with 10,000 connections, one value a minute, without the
    /// first: it fills for two minutes and then has teeth.
    const RECORDED: [u64; 10] = [
        38524, 41868, 42056, 40400, 39988, 43476, 41840, 45032, 45388, 44224,
    ];
    const ALLOWED: f64 = 16.0 * 1024.0;

    /// A record of so many minutes, a sample every five seconds.
    fn record(minutes: u64, kib: impl Fn(f64) -> f64) -> Vec<Sample> {
        (0..=minutes * 12)
            .map(|n| Sample {
                at: Duration::from_secs(n * 5),
                resources: Resources {
                    rss_kib: kib(n as f64 / 12.0) as u64,
                    ..Resources::default()
                },
                ..Sample::default()
            })
            .collect()
    }

    fn floors(samples: &[Sample]) -> Floors {
        Floors::of(samples, |one| one.resources.rss_kib as f64).unwrap()
    }

    fn verdict(minutes: u64, kib: impl Fn(f64) -> f64) -> Verdict {
        floors(&record(minutes, kib)).verdict(ALLOWED)
    }

    /// Rises by `height` in `period` minutes and falls.
    fn tooth(at: f64, period: f64, height: f64) -> f64 {
        (at / period).fract() * height
    }

    #[test]
    fn low_points_are_those_of_windows_after_the_first() {
        let floors = floors(&record(60, |at| if at < 10.0 { 1.0 } else { 1000.0 + at }));
        assert_eq!(floors.window, Duration::from_secs(600));
        assert_eq!(floors.kib, [1010.0, 1020.0, 1030.0, 1040.0, 1050.0]);
        assert_eq!(floors.growth(), 40.0);
        assert_eq!(floors.highest(), 1050.0);
    }

    #[test]
    fn a_sawtooth_stays_wherever_the_record_ends() {
        for period in [0.5, 1.0, 3.0, 7.0] {
            for minutes in 56..=64 {
                let teeth = |at| 40_000.0 + tooth(at, period, 40_000.0);
                assert_eq!(
                    verdict(minutes, teeth),
                    Verdict::Stays,
                    "{period} {minutes}"
                );
            }
        }
    }

    #[test]
    fn what_was_recorded_stays_however_often_it_is_repeated() {
        for minutes in [12, 20, 30, 60] {
            let seen = |at: f64| RECORDED[at as usize % RECORDED.len()] as f64;
            assert_eq!(verdict(minutes, seen), Verdict::Stays, "{minutes}");
        }
    }

    #[test]
    fn a_step_stays_whenever_it_comes() {
        for when in 1..60 {
            let step = |at| {
                if at < f64::from(when) {
                    40_000.0
                } else {
                    80_000.0
                }
            };
            assert_eq!(verdict(60, step), Verdict::Stays, "{when}");
        }
    }

    #[test]
    fn a_slow_leak_grows_beneath_teeth_of_any_height() {
        for height in [0.0, 10_000.0, 200_000.0] {
            // 20 MiB in 40 minutes, as far as the low points lie apart.
            let leak = |at| 40_000.0 + at * 520.0 + tooth(at, 1.0, height);
            assert_eq!(verdict(60, leak), Verdict::Grows, "{height}");
            let less = |at| 40_000.0 + at * 380.0 + tooth(at, 1.0, height);
            assert_eq!(verdict(60, less), Verdict::Stays, "{height}");
        }
        // A step does not hide it.
        let both = |at: f64| 40_000.0 + at * 520.0 + if at < 30.0 { 0.0 } else { 40_000.0 };
        assert_eq!(verdict(60, both), Verdict::Grows);
    }

    #[test]
    fn teeth_longer_than_a_window_are_said_to_be_no_evidence() {
        let teeth = |at| 40_000.0 + tooth(at, 33.0, 200_000.0);
        assert_eq!(verdict(60, teeth), Verdict::Unsteady);
    }

    #[test]
    fn a_short_record_says_nothing() {
        for minutes in [1, 5, 11] {
            assert_eq!(verdict(minutes, |at| at * 1e6), Verdict::Short);
        }
        assert_eq!(verdict(12, |at| at * 1e6), Verdict::Grows);
        assert_eq!(Floors::of(&[], |_| 0.0), None);
        let gap = [record(1, |_| 1.0), record(60, |_| 1.0)[700..].to_vec()].concat();
        assert_eq!(Floors::of(&gap, |_| 0.0), None);
    }
}
