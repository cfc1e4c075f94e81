//! How much forgotten knowledge a quantized unlearned arm has back.
//!
//! For metrics where higher means that more is known. Each ratio names its denominator; none is clamped:
//! below 0 quantization took more away, above 1 the arm knows more than what it is compared with.

use super::Measured;

/// One metric of the four arms that a recovery is made of; any common scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arms {
    /// The target at full precision.
    pub target: f64,
    /// The target at the precision in question.
    pub target_same_precision: f64,
    /// The unlearned model at full precision.
    pub unlearned: f64,
    /// The unlearned model at the precision in question.
    pub quantized: f64,
}

/// Recovery by three denominators.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// `(quantized - unlearned) / (target - unlearned)`.
    pub of_gap_to_target: Measured,
    /// `(quantized - unlearned) / (target_same_precision - unlearned)`.
    pub of_gap_to_target_same_precision: Measured,
    /// `quantized / target_same_precision`.
    pub share_of_target_same_precision: Measured,
}

impl Recovery {
    /// Computes the three ratios. One is missing, with its reason, if a value in it is not finite, if the
    /// target does not lie above the unlearned model (then nothing was forgotten that could come back),
    /// or if the target scores 0.
    #[must_use]
    pub fn new(arms: Arms) -> Self {
        let Arms { target, target_same_precision, unlearned, quantized } = arms;
        let of_gap = |target: f64, name: &str| {
            if ![target, unlearned, quantized].iter().all(|value| value.is_finite()) {
                Measured::Missing("a score is not finite".to_owned())
            } else if target <= unlearned {
                Measured::Missing(format!("the {name} does not score above the unlearned model"))
            } else {
                Measured::finite((quantized - unlearned) / (target - unlearned), "the ratio")
            }
        };
        Self {
            of_gap_to_target: of_gap(target, "target"),
            of_gap_to_target_same_precision: of_gap(target_same_precision, "target at the same precision"),
            share_of_target_same_precision: share_of_target(&[(quantized, target_same_precision)]),
        }
    }
}

/// Pooled share of the target: the sum of the scores over the sum of the targets' scores.
///
/// `pairs` holds a score and the target's score of the same metric and corpus at the same precision. Over
/// two metrics, four methods and two corpora this is the "21 % to 83 %" of arXiv 2410.16454. Missing if a
/// score is not finite or the targets' sum is not above 0.
#[must_use]
pub fn share_of_target(pairs: &[(f64, f64)]) -> Measured {
    let (scores, targets) = pairs.iter().fold((0.0, 0.0), |(a, b), (score, target)| (a + score, b + target));
    if !(scores.is_finite() && targets.is_finite()) {
        Measured::Missing("a score is not finite".to_owned())
    } else if targets <= 0.0 {
        Measured::Missing("the target at the same precision scores 0".to_owned())
    } else {
        Measured::finite(scores / targets, "the ratio")
    }
}
