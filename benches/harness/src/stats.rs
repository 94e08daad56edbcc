//! Medians, and how far they can be trusted.

/// A median and the interval it lies in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    /// The middle value.
    pub(crate) value: f64,
    /// Bounds that hold the true median with a confidence of at least 90 %, as far as the number of
    /// values allows: below six they are the extremes.
    pub(crate) low: f64,
    /// See `low`.
    pub(crate) high: f64,
    /// How many values there are.
    pub(crate) count: usize,
}

/// The median of `values`, `None` when there are none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<Median> {
    let mut sorted: Vec<f64> = values
        .into_iter()
        .filter(|value| value.is_finite())
        .collect();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let last = count.checked_sub(1)?;
    let value = (sorted[last / 2] + sorted[count / 2]) / 2.0;
    let skip = skipped(count);
    Some(Median {
        value,
        low: sorted[skip],
        high: sorted[last - skip],
        count,
    })
}

/// How many of `count` sorted values may be left out at each end, so that the chance of the true
/// median lying outside the rest is at most 10 %.
fn skipped(count: usize) -> usize {
    // The chance that at most `skip` of the values lie on one side of the median, both sides taken.
    let mut outside = 0.0;
    let mut term = 2.0 * 0.5f64.powi(count as i32);
    let mut best = 0;
    for skip in 0..count / 2 {
        outside += term;
        if outside > 0.1 {
            break;
        }
        best = skip;
        term *= (count - skip) as f64 / (skip + 1) as f64;
    }
    best
}

/// How far two measurements of the same thing lie apart: the factor that the middle half of
/// `ratios` stays within, at least 1.
pub(crate) fn band(ratios: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = ratios.into_iter().filter(|value| *value > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let low = sorted[last / 4];
    let high = sorted[last - last / 4];
    Some(high.max(1.0 / low).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([]), None);
        let one = median([4.0]).unwrap();
        assert!(one.value == 4.0 && one.low == 4.0 && one.high == 4.0);
        let even = median([1.0, 10.0, 2.0, 3.0]).unwrap();
        assert!(even.value == 2.5 && even.low == 1.0 && even.high == 10.0 && even.count == 4);
        assert_eq!(median([f64::NAN, 2.0, f64::INFINITY]).unwrap().count, 1);
    }

    #[test]
    fn the_interval_narrows_as_the_binomial_allows() {
        // P(median outside the extremes) is 2^(1-n): 6.25 % for 5 values, so 5 need the extremes.
        // For 9, leaving one out at each end keeps 1 - 2 * (1 + 9) / 512 = 96 %; two, 82 %.
        assert_eq!([3, 5, 8, 9, 10].map(skipped), [0, 0, 1, 1, 1]);
        assert_eq!(skipped(11), 2);
        let nine = median((1..=9).map(f64::from)).unwrap();
        assert!(nine.value == 5.0 && nine.low == 2.0 && nine.high == 8.0);
    }

    #[test]
    fn the_band_is_symmetric_and_at_least_one() {
        assert_eq!(band([]), None);
        assert_eq!(band([1.0, 1.0, 1.0]), Some(1.0));
        assert_eq!(band([0.5, 0.8, 1.0, 1.1, 2.0]), Some(1.25));
    }
}
