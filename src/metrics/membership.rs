//! Membership inference: Min-K %, AUC, PrivLeak.

use super::bootstrap::Resamples;
use super::{Measured, mean};

/// The K of the Min-K % that PrivLeak is defined on.
pub const PRIVLEAK_PERCENT: usize = 40;

/// A corpus of MUSE, whose retrained model's AUC is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// BBC news.
    News,
    /// Harry Potter books.
    Books,
}

impl Corpus {
    /// AUC of MUSE's retrained model, forget against holdout, by Min-40 % (`constants.py` of MUSE).
    #[must_use]
    pub fn reference_auc(self) -> f64 {
        match self {
            Self::News => 0.4772,
            Self::Books => 0.5393,
        }
    }
}

/// Min-K %: minus the mean of the `floor(n K / 100)` least of a text's `n` per-token log-probabilities.
///
/// In nats, `log_probs` are of all tokens after the first. Higher means less likely, so more like a text
/// the model has not seen. Missing if the text is too short for one token, or a log-probability is NaN or
/// infinite.
#[must_use]
pub fn min_k(log_probs: &[f32], percent: usize) -> Measured {
    let count = log_probs.len() * percent / 100;
    if count == 0 {
        let tokens = log_probs.len();
        return Measured::Missing(format!("{tokens} scored tokens are too few for Min-{percent} %"));
    }
    let mut sorted: Vec<f64> = log_probs.iter().copied().map(f64::from).collect();
    sorted.sort_by(f64::total_cmp);
    // A NaN sorts to an end, which the mean of the least need not see.
    if !sorted.iter().all(|log_prob| log_prob.is_finite()) {
        return Measured::Missing("a log-probability is not finite".to_owned());
    }
    Measured::Value(-mean(&sorted[..count]))
}

/// P(value of holdout < value of forget), ties counted half: MUSE's AUC of `forget_holdout`.
///
/// The values are [`min_k`]'s. 0: the forget texts look seen and the holdout texts do not; 0.5: no
/// difference; 1: the forget texts look less seen than texts that never were. Missing if either set is
/// empty or a value is NaN.
///
/// Pairs are counted as integers, so the result is exact but for the last division.
#[must_use]
pub fn auc(forget: &[f64], holdout: &[f64]) -> Measured {
    for (values, name) in [(forget, "forget"), (holdout, "holdout")] {
        if values.is_empty() {
            return Measured::Missing(format!("the {name} set has no values"));
        }
        if values.iter().any(|value| value.is_nan()) {
            return Measured::Missing(format!("a value of the {name} set is not a number"));
        }
    }
    let mut holdout = holdout.to_vec();
    holdout.sort_by(f64::total_cmp);
    // A holdout value below counts two halves, an equal one counts one.
    let halves = |value: f64| {
        let below = holdout.partition_point(|&other| other < value);
        let not_above = holdout.partition_point(|&other| other <= value);
        below + not_above
    };
    let halves: usize = forget.iter().copied().map(halves).sum();
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 pairs")]
    let auc = halves as f64 / (2 * forget.len() * holdout.len()) as f64;
    Measured::Value(auc)
}

/// The curve whose area is [`auc`]: from `[0, 0]` to `[1, 1]`, for every threshold the share of the forget texts and the share
/// of the holdout texts whose value is not above it.
///
/// The points are those of scikit-learn's `roc_curve` with label 1 for holdout and minus the value as score; it leaves out the
/// middle ones of equal steps. Empty where there is no [`auc`].
#[must_use]
pub fn roc(forget: &[f64], holdout: &[f64]) -> Vec<[f64; 2]> {
    if auc(forget, holdout).value().is_none() {
        return Vec::new();
    }
    let of = |values: &[f64], set: usize| values.iter().map(|&value| (value, set)).collect::<Vec<_>>();
    let mut values = [of(forget, 0), of(holdout, 1)].concat();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut counts = [0_usize; 2];
    // Where the curve stands after each distinct value.
    let mut steps: Vec<[usize; 2]> = Vec::new();
    for equal in values.chunk_by(|a, b| a.0 == b.0) {
        equal.iter().for_each(|(_, set)| counts[*set] += 1);
        steps.push(counts);
    }
    let turns = |at: usize| {
        let by = |from: usize| [0, 1].map(|set: usize| steps[from + 1][set] - steps[from][set]);
        at == 0 || at + 1 == steps.len() || by(at - 1) != by(at)
    };
    let kept = (0..steps.len()).filter(|&at| turns(at)).map(|at| steps[at]);
    let share = |[forget_below, holdout_below]: [usize; 2]| {
        [forget_below as f64 / forget.len() as f64, holdout_below as f64 / holdout.len() as f64]
    };
    std::iter::once([0.0; 2]).chain(kept.map(share)).collect()
}

/// [`auc`] of each pair of a resample of the forget texts and one of the holdout texts, which are drawn separately: they
/// are two sets, not pairs.
///
/// None if a set is empty, of another size than its resamples, or has a value that is not a number.
#[must_use]
pub fn resampled_aucs(
    forget: &[f64],
    holdout: &[f64],
    of_forget: &Resamples,
    of_holdout: &Resamples,
) -> Vec<f64> {
    let sizes_fit = forget.len() == of_forget.examples() && holdout.len() == of_holdout.examples();
    if !sizes_fit || auc(forget, holdout).value().is_none() {
        return Vec::new();
    }
    // A resample draws each holdout text so many times. Running sums of these counts in ascending order of the texts'
    // values say for each forget text how many lie below it, without sorting anew.
    let mut order: Vec<_> = (0..holdout.len()).collect();
    order.sort_by(|&a, &b| holdout[a].total_cmp(&holdout[b]));
    let mut rank = vec![0; holdout.len()];
    order.iter().enumerate().for_each(|(place, &index)| rank[index] = place);
    let bounds: Vec<(usize, usize)> = forget
        .iter()
        .map(|&value| {
            let below = order.partition_point(|&other| holdout[other] < value);
            (below, order.partition_point(|&other| holdout[other] <= value))
        })
        .collect();
    let pairs = (2 * forget.len() * holdout.len()) as f64;
    let mut sums = vec![0_usize; holdout.len() + 1];
    let mut one = |(of_forget, of_holdout): (&[u32], &[u32])| {
        sums.fill(0);
        of_holdout.iter().for_each(|&draw| sums[rank[draw as usize] + 1] += 1);
        for place in 1..sums.len() {
            sums[place] += sums[place - 1];
        }
        let halves = |&draw: &u32| {
            let (below, not_above) = bounds[draw as usize];
            sums[below] + sums[not_above]
        };
        of_forget.iter().map(halves).sum::<usize>() as f64 / pairs
    };
    of_forget.iter().zip(of_holdout.iter()).map(&mut one).collect()
}

/// PrivLeak: `100 (auc - reference) / reference`, signed and not clamped.
///
/// 0 is as private as the reference (a retrained model); negative is under-unlearned (-100 at AUC 0),
/// positive over-unlearned. Missing if the reference is 0 or either is not finite.
#[must_use]
pub fn priv_leak(auc: f64, reference: f64) -> Measured {
    if reference == 0.0 {
        return Measured::Missing("the reference AUC is 0".to_owned());
    }
    Measured::finite(100.0 * (auc - reference) / reference, "PrivLeak")
}
