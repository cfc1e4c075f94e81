//! Rank correlation.

use super::{Measured, mean};

/// Fewest points that a rank correlation says anything about: with three, one order in six is perfect by chance.
pub const LEAST_POINTS: usize = 4;

/// Spearman's rank correlation of pairs, -1..=1; ties have the mean of their ranks. As `scipy.stats.spearmanr`.
///
/// Missing with fewer than [`LEAST_POINTS`] pairs, or if one side is all the same.
#[must_use]
pub fn spearman(pairs: &[(f64, f64)]) -> Measured {
    if pairs.len() < LEAST_POINTS {
        return Measured::Missing(format!("{} points are fewer than {LEAST_POINTS}", pairs.len()));
    }
    let (left, right): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let [left, right] = [left, right].map(|values| centred(&ranks(&values)));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (product(&left, &left) * product(&right, &right)).sqrt();
    if scale == 0.0 {
        return Measured::Missing("one side is the same in all points".to_owned());
    }
    Measured::finite(product(&left, &right) / scale, "the correlation")
}

/// Ranks from 1, ties with the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = |&value: &f64| {
        let below = sorted.partition_point(|&other| other < value);
        let not_above = sorted.partition_point(|&other| other <= value);
        (below + 1 + not_above) as f64 / 2.0
    };
    values.iter().map(rank).collect()
}

fn centred(values: &[f64]) -> Vec<f64> {
    let mean = mean(values);
    values.iter().map(|value| value - mean).collect()
}
