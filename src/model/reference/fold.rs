//! Logits folded as they come, a part of the vocabulary at a time.

use super::math::{exp, max};
use crate::model::Folded;

/// Partial sums of one row: two of the widest vectors of f64.
const LANES: usize = 16;

/// What is kept of the logits of one row seen so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    /// Of exp(logit - max).
    sums: [f64; LANES],
    max: f32,
    argmax: u32,
    finite: bool,
    given: f32,
}

impl Default for Partial {
    fn default() -> Self {
        Self { sums: [0.0; LANES], max: f32::NEG_INFINITY, argmax: 0, finite: true, given: f32::NAN }
    }
}

impl Partial {
    /// Takes in the logits of the tokens from `first` on; `given` is the token that is asked for.
    #[inline(always)]
    pub(super) fn take(&mut self, first: u32, logits: &[f32], given: u32) {
        let top = max(logits);
        if top > self.max {
            self.rescale(top);
            let place = (first..).zip(logits).find(|(_, logit)| **logit == top);
            self.argmax = place.map_or(self.argmax, |(token, _)| token);
        }
        let mut finite = true;
        let mut add = |sum: &mut f64, logit: f32| {
            finite &= logit.is_finite();
            *sum += f64::from(exp(logit - self.max));
        };
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            self.sums.iter_mut().zip(chunk).for_each(|(sum, &logit)| add(sum, logit));
        }
        self.sums.iter_mut().zip(rest).for_each(|(sum, &logit)| add(sum, logit));
        self.finite &= finite;
        if let Some(logit) = given.checked_sub(first).and_then(|place| logits.get(place as usize)) {
            self.given = *logit;
        }
    }

    /// Takes in what another one has seen of later tokens.
    pub(super) fn merge(&mut self, mut later: Self) {
        if later.max > self.max {
            self.rescale(later.max);
            self.argmax = later.argmax;
        } else {
            later.rescale(self.max);
        }
        self.sums.iter_mut().zip(&later.sums).for_each(|(sum, later)| *sum += later);
        self.finite &= later.finite;
        if self.given.is_nan() {
            self.given = later.given;
        }
    }

    /// Makes the sums count from another maximum.
    fn rescale(&mut self, max: f32) {
        let factor = (f64::from(self.max) - f64::from(max)).exp();
        self.sums.iter_mut().for_each(|sum| *sum *= factor);
        self.max = max;
    }

    /// The answer; `log_sum_exp` is NaN if any logit was not finite.
    pub(super) fn folded(&self) -> Folded {
        let sum: f64 = self.sums.iter().sum();
        #[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
        let log_sum_exp = if self.finite { (f64::from(self.max) + sum.ln()) as f32 } else { f32::NAN };
        Folded { log_sum_exp, argmax: self.argmax, max_logit: self.max, given_logit: self.given }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The logits in parts of `part`, each two parts folded apart and then merged.
    fn fold(logits: &[f32], part: usize, given: u32) -> Folded {
        let mut all = Partial::default();
        for (first, logits) in (0..).step_by(2 * part).zip(logits.chunks(2 * part)) {
            let mut two = Partial::default();
            for (first, logits) in (first..).step_by(part).zip(logits.chunks(part)) {
                two.take(first, logits, given);
            }
            all.merge(two);
        }
        all.folded()
    }

    #[test]
    fn folding_takes_the_first_of_equals_and_survives_large_logits() {
        for part in [1, 2, 4] {
            let folded = fold(&[1.0, 300.0, -500.0, 300.0], part, 0);
            assert_eq!((folded.argmax, folded.max_logit, folded.given_logit), (1, 300.0, 1.0));
            assert!((folded.log_sum_exp - (300.0 + 2f32.ln())).abs() < 1e-4);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(fold(&[1.0, bad, 2.0], part, 0).log_sum_exp.is_nan(), "{bad}");
                assert!(fold(&[bad; 4], part, 0).log_sum_exp.is_nan(), "{bad}");
            }
        }
    }

    #[test]
    fn parts_make_the_whole() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009) as f32 / 30.0).collect();
        let want = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        for part in [5, 16, 48] {
            let folded = fold(&logits, part, 998);
            assert_eq!((folded.given_logit, folded.max_logit), (logits[998], logits[folded.argmax as usize]));
            assert!(logits.iter().all(|logit| *logit <= folded.max_logit));
            // exp is good to 2 ulp, its argument (at most 34) to half an ulp of 32, and the result to half an ulp of 32.
            let bound = (2.0 + 16.0 + 16.0) * f64::from(f32::EPSILON);
            assert!((f64::from(folded.log_sum_exp) - want).abs() <= bound, "{folded:?} for {want}");
        }
    }
}
