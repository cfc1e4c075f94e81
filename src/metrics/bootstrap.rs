//! Percentile bootstrap, paired between arms.
//!
//! Examples are drawn with replacement; every arm that answered the same questions is resampled with the same draws, so
//! that differences and ratios between arms keep what their answers have in common. Draws come from ChaCha8 with a seed:
//! the same on every platform.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A generator for one purpose: streams of one seed are independent, and none depends on how much of another was used.
pub(super) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

/// Which examples each resample of a question set draws.
#[derive(Clone, Debug)]
pub struct Resamples {
    /// Examples in the set.
    examples: usize,
    /// [`Self::examples`] draws a resample, one resample after the other.
    draws: Vec<u32>,
}

impl Resamples {
    /// `count` resamples of a set of `examples`, by the generator that `seed` and `stream` name.
    ///
    /// # Panics
    ///
    /// If there are more than 2^32 examples.
    #[must_use]
    pub fn new(seed: u64, stream: u64, examples: usize, count: usize) -> Self {
        let bound = u32::try_from(examples).unwrap_or_else(|_| unreachable!("{examples} examples"));
        let mut generator = generator(seed, stream);
        // u32 and not usize: the draws are then the same on 32-bit machines.
        let draws = match bound {
            0 => Vec::new(),
            _ => (0..count * examples).map(|_| generator.random_range(0..bound)).collect(),
        };
        Self { examples, draws }
    }

    /// Examples in the set.
    #[must_use]
    pub fn examples(&self) -> usize {
        self.examples
    }

    /// Each resample, as indices of examples.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        // Chunks of nothing are not allowed; without examples there are no draws either.
        self.draws.chunks_exact(self.examples.max(1))
    }

    /// The mean of the scores in each resample; none if the scores are of another set.
    #[must_use]
    pub fn means(&self, scores: &[f64]) -> Vec<f64> {
        if scores.len() != self.examples {
            return Vec::new();
        }
        self.iter()
            .map(|draws| draws.iter().map(|&draw| scores[draw as usize]).sum::<f64>() / draws.len() as f64)
            .collect()
    }
}

/// The percentile interval of a statistic's values on resamples: from the `(1 - confidence) / 2` quantile to its
/// counterpart, interpolated linearly, as `scipy.stats.bootstrap(method="percentile")` has it.
///
/// A resample on which the statistic is not defined (a ratio whose denominator is not positive) is `None`. Nobody knows
/// on which side it lies, so it counts on both: as below all others for the lower end and as above all others for the
/// upper end. The interval can only grow by it; where an end falls among such resamples, there is none.
#[must_use]
pub fn percentile_interval(
    values: impl IntoIterator<Item = Option<f64>>,
    confidence: f64,
) -> Option<[f64; 2]> {
    let mut undefined = 0;
    let mut sorted = Vec::new();
    for value in values {
        match value {
            Some(value) if value.is_finite() => sorted.push(value),
            _ => undefined += 1,
        }
    }
    sorted.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    let low = quantile(undefined, &sorted, tail)?;
    // The upper end is the lower one seen from above.
    sorted.reverse();
    let high = quantile(undefined, &sorted, tail)?;
    Some([low, high])
}

/// The `share` quantile (below 0.5) of `unknown` values before `known` ones; none if it is not all known.
fn quantile(unknown: usize, known: &[f64], share: f64) -> Option<f64> {
    let last = (unknown + known.len()).checked_sub(1)?;
    let place = last as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a length")]
    let below = place.floor() as usize;
    let low = *known.get(below.checked_sub(unknown)?)?;
    let high = *known.get((below + 1).min(last) - unknown)?;
    Some(low + (high - low) * (place - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_resamples_widen_and_then_take_the_interval() {
        let values = |undefined: usize| {
            (0..1000)
                .map(move |value| (value >= undefined).then_some(f64::from(u32::try_from(value).unwrap())))
        };
        let [low, high] = percentile_interval(values(0), 0.95).unwrap();
        assert!((low - 24.975).abs() < 1e-9 && (high - 974.025).abs() < 1e-9, "{low} {high}");
        // The lower end is the same quantile of all 1000, the upper one moves up by as many.
        let [low, high] = percentile_interval(values(10), 0.95).unwrap();
        assert!((low - 24.975).abs() < 1e-9 && (high - 984.025).abs() < 1e-9, "{low} {high}");
        assert_eq!(percentile_interval(values(30), 0.95), None);
        assert_eq!(percentile_interval([], 0.95), None);
        assert_eq!(percentile_interval([Some(3.0)], 0.95), Some([3.0, 3.0]));
    }

    #[test]
    fn draws_depend_on_seed_and_stream_alone() {
        let draws = |seed, stream, count| Resamples::new(seed, stream, 7, count).draws;
        assert_eq!(draws(1, 2, 20)[..70], draws(1, 2, 10)[..]);
        assert_ne!(draws(1, 2, 10), draws(1, 3, 10));
        assert_ne!(draws(1, 2, 10), draws(2, 2, 10));
        assert!(draws(1, 2, 100).iter().all(|&draw| draw < 7));
        // Written down once: reports of all platforms and versions must agree.
        assert_eq!(draws(1, 2, 1), [3, 6, 6, 4, 1, 2, 0]);
        assert!(Resamples::new(1, 2, 0, 10).means(&[]).is_empty());
    }
}
