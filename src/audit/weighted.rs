//! Weighted sums of arms' means, and ratios of these, on the same resamples.

use super::statistics::{Estimate, Interval};
use super::verdict::CONFIDENCE;
use crate::metrics::bootstrap::percentile_interval;

/// One arm's mean.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// The mean, x100.
    pub(super) value: f64,
    /// Examples that were asked.
    pub(super) asked: usize,
    /// Of each example, 0..=1.
    pub(super) scores: &'a [f64],
    /// On each resample, x100.
    pub(super) means: &'a [f64],
}

/// A weighted sum of means.
pub(super) fn sum(terms: &[(f64, Known<'_>)]) -> Estimate {
    let resamples = terms.iter().map(|(_, arm)| arm.means.len()).min().unwrap_or(0);
    let on = |resample: usize| weighted(terms, |arm| arm.means[resample]);
    Estimate {
        value: weighted(terms, |arm| arm.value),
        ci95: interval((0..resamples).map(|resample| Some(on(resample)))),
    }
}

/// A ratio of two weighted sums. Where the lower one is not positive nothing was lost that could be back: the ratio is then
/// not defined, and not finite as a value.
pub(super) fn ratio(upper: &[(f64, Known<'_>)], lower: &[(f64, Known<'_>)]) -> Estimate {
    let resamples = upper.iter().chain(lower).map(|(_, arm)| arm.means.len()).min().unwrap_or(0);
    let divide = |upper: f64, lower: f64| (lower > 0.0).then(|| upper / lower);
    let on = |resample: usize| {
        let part = |terms| weighted(terms, |arm| arm.means[resample]);
        divide(part(upper), part(lower))
    };
    let part = |terms| weighted(terms, |arm| arm.value);
    Estimate {
        value: divide(part(upper), part(lower)).unwrap_or(f64::NAN),
        ci95: interval((0..resamples).map(on)),
    }
}

fn weighted(terms: &[(f64, Known<'_>)], value: impl Fn(&Known<'_>) -> f64) -> f64 {
    terms.iter().map(|(weight, arm)| weight * value(arm)).sum()
}

/// The interval of a statistic that is defined on every resample.
pub(super) fn plain(values: &[f64]) -> Interval {
    interval(values.iter().copied().map(Some))
}

/// The interval of a statistic on resamples.
pub(super) fn interval(values: impl IntoIterator<Item = Option<f64>>) -> Interval {
    percentile_interval(values, CONFIDENCE)
}
