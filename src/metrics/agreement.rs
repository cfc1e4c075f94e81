//! How far an arm's distributions are from a reference's over many positions, as llama.cpp's
//! `llama-perplexity --kl-divergence` reports it.
//!
//! Standard errors take positions as independent, as llama.cpp does: neighbours in a text are not quite.

use super::divergence::Divergence;
use super::mean;

/// What two arms said at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// log p of the given token under the reference, in nats.
    pub reference_log_prob: f64,
    /// log p of the given token under the arm, in nats.
    pub log_prob: f64,
    /// What sets the distributions apart.
    pub apart: Divergence,
    /// Whether both find the same token most likely.
    pub same_top: bool,
    /// Tokens among the five likeliest of both.
    pub top5: usize,
    /// Tokens among the ten likeliest of both.
    pub top10: usize,
}

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uncertain {
    /// The figure.
    pub value: f64,
    /// Its standard error; 0 of a single position.
    pub error: f64,
}

/// A distribution over positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Mean.
    pub mean: Uncertain,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// Fraction in 0..=1 and its quantile, in the order asked for.
    pub quantiles: Vec<(f64, Uncertain)>,
}

/// An arm against a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// How many.
    pub positions: usize,
    /// KL(reference || arm), nats.
    pub kl: Distribution,
    /// KL(arm || reference), nats.
    pub reverse_kl: Uncertain,
    /// Nats.
    pub jensen_shannon: Uncertain,
    /// In 0..=1.
    pub total_variation: Uncertain,
    /// Change of the given token's probability, arm less reference.
    pub dp: Distribution,
    /// Root mean square of that.
    pub rms_dp: Uncertain,
    /// Share of positions with the same likeliest token.
    pub same_top: Uncertain,
    /// Mean share of the five likeliest tokens that are the same.
    pub top5: Uncertain,
    /// Mean share of the ten likeliest tokens that are the same.
    pub top10: Uncertain,
    /// exp of the mean negative log-probability of the given tokens, under the reference.
    pub reference_ppl: Uncertain,
    /// The same under the arm.
    pub ppl: Uncertain,
    /// Their ratio; the error knows how the two go together.
    pub ppl_ratio: Uncertain,
    /// Its natural logarithm: the difference of the mean negative log-probabilities.
    pub log_ppl_ratio: Uncertain,
    /// Their difference.
    pub ppl_difference: Uncertain,
    /// Pearson correlation of the negative log-probabilities; `None` if one of them does not vary.
    pub nll_correlation: Option<f64>,
}

/// Quantiles of KL that llama.cpp reports.
const KL_QUANTILES: [f64; 9] = [0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001];

/// Quantiles of dp that llama.cpp reports.
const DP_QUANTILES: [f64; 11] = [0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001];

impl Agreement {
    /// Sums the positions up; `None` if there are none.
    #[must_use]
    pub fn new(positions: &[Position]) -> Option<Self> {
        if positions.is_empty() {
            return None;
        }
        let of = |value: fn(&Position) -> f64| positions.iter().map(value).collect::<Vec<f64>>();
        let dp = of(|position| position.log_prob.exp() - position.reference_log_prob.exp());
        let squares: Vec<f64> = dp.iter().map(|dp| dp * dp).collect();
        let square = uncertain(&squares);
        let rms = square.value.sqrt();
        let rms_dp = Uncertain { value: rms, error: if rms > 0.0 { 0.5 * square.error / rms } else { 0.0 } };

        let (reference, arm) =
            (of(|position| -position.reference_log_prob), of(|position| -position.log_prob));
        let difference: Vec<f64> =
            arm.iter().zip(&reference).map(|(arm, reference)| arm - reference).collect();
        let log_ppl_ratio = uncertain(&difference);
        let ratio = log_ppl_ratio.value.exp();
        let (reference_nll, nll) = (uncertain(&reference), uncertain(&arm));
        let ppl = |nll: Uncertain| {
            let value = nll.value.exp();
            Uncertain { value, error: value * nll.error }
        };
        let (reference_ppl, ppl) = (ppl(reference_nll), ppl(nll));
        // Of the means; twice the covariance is what the variance of the difference lacks.
        let covariance =
            0.5 * (reference_nll.error.powi(2) + nll.error.powi(2) - log_ppl_ratio.error.powi(2));
        let variance = ppl.error.powi(2) + reference_ppl.error.powi(2)
            - 2.0 * ppl.value * reference_ppl.value * covariance;
        let deviations = reference_nll.error * nll.error;
        Some(Self {
            positions: positions.len(),
            kl: distribution(of(|position| position.apart.kl), &KL_QUANTILES),
            reverse_kl: uncertain(&of(|position| position.apart.reverse_kl)),
            jensen_shannon: uncertain(&of(|position| position.apart.jensen_shannon)),
            total_variation: uncertain(&of(|position| position.apart.total_variation)),
            dp: distribution(dp, &DP_QUANTILES),
            rms_dp,
            same_top: uncertain(&of(|position| f64::from(u8::from(position.same_top)))),
            top5: uncertain(&of(|position| position.top5 as f64 / 5.0)),
            top10: uncertain(&of(|position| position.top10 as f64 / 10.0)),
            ppl_ratio: Uncertain { value: ratio, error: ratio * log_ppl_ratio.error },
            ppl_difference: Uncertain {
                value: ppl.value - reference_ppl.value,
                error: variance.max(0.0).sqrt(),
            },
            reference_ppl,
            ppl,
            log_ppl_ratio,
            nll_correlation: (deviations > 0.0).then(|| (covariance / deviations).clamp(-1.0, 1.0)),
        })
    }
}

/// Mean and its standard error: the deviation over the square root of n - 1.
#[must_use]
pub fn uncertain(values: &[f64]) -> Uncertain {
    let value = mean(values);
    let variance = mean(&values.iter().map(|other| (other - value).powi(2)).collect::<Vec<_>>());
    let error = if values.len() > 1 { (variance / (values.len() - 1) as f64).sqrt() } else { 0.0 };
    Uncertain { value, error }
}

fn distribution(mut values: Vec<f64>, fractions: &[f64]) -> Distribution {
    let mean = uncertain(&values);
    values.sort_by(f64::total_cmp);
    let quantiles = fractions.iter().map(|&fraction| {
        // Woodruff (1952): the quantiles one standard error of the fraction to both sides.
        let error = (fraction * (1.0 - fraction) / values.len() as f64).sqrt();
        let [low, high] = [fraction - error, fraction + error].map(|at| quantile(&values, at));
        (fraction, Uncertain { value: quantile(&values, fraction), error: 0.5 * (high - low) })
    });
    let (min, max) = (quantile(&values, 0.0), quantile(&values, 1.0));
    Distribution { mean, min, max, quantiles: quantiles.collect() }
}

/// A quantile of ascending values, interpolated between neighbours; NaN without values.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the length")]
fn quantile(ascending: &[f64], fraction: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return f64::NAN };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let part = at - at.floor();
    if part == 0.0 {
        return ascending[below];
    }
    (1.0 - part) * ascending[below] + part * ascending[(below + 1).min(last)]
}
