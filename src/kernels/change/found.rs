//! Results of one launch, as they come back, to a [`Change`].

use super::{SUMS, TALLIES};
use crate::quant::{COUNTS, Change, Steps};

/// Where a count is in the tallies, after the histogram; `change.wgsl` has the same places.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tally {
    Changed,
    CodeChanged,
    ScaleChanged,
    ValueChanged,
    Absorbed,
    ZeroTarget,
    ZeroUnlearned,
    /// The bits of the greatest ratio.
    Greatest,
    /// The bits of the largest magnitude of a weight.
    Largest,
}

impl Tally {
    pub(super) fn place(self) -> usize {
        COUNTS + self as usize
    }
}

const _: () = assert!(COUNTS + Tally::Largest as usize + 1 == TALLIES);

/// Packing promises nothing from here on: 2^120.
const LARGEST: f32 = f32::from_bits((127 + 120) << 23);

/// A sum of squares below this for each weight may have lost terms to underflow: 2^-96, 2^30 times the least normal number.
const LEAST_MEAN: f64 = f64::from_bits((1023 - 96) << 52);

/// What a launch leaves for one scheme.
pub(super) struct Found<'a> {
    /// Pairs.
    pub(super) weights: u64,
    /// `[TALLIES]`.
    pub(super) tallies: &'a [u32],
    /// `[pieces, PARTS, SUMS]`, bits of f32.
    pub(super) sums: &'a [u32],
}

impl Found<'_> {
    /// The change; `None` if f32 products do not hold its figures.
    pub(super) fn change(&self) -> Option<Change> {
        let tally = |tally: Tally| self.tallies[tally.place()];
        let count = |place| u64::from(tally(place));
        let mut sums = [0.0; SUMS];
        for part in self.sums.chunks(SUMS) {
            for (sum, bits) in sums.iter_mut().zip(part) {
                *sum += f64::from(f32::from_bits(*bits));
            }
        }
        let [update, update_from_zero, kept, quantized, ratios, capped] = sums;
        let mut counts: Vec<u64> = self.tallies[..COUNTS].iter().map(|count| u64::from(*count)).collect();
        counts[0] = self.weights - counts[1..].iter().sum::<u64>();
        let greatest = f64::from(f32::from_bits(tally(Tally::Greatest)));
        let change = Change {
            weights: self.weights,
            changed: count(Tally::Changed),
            code_changed: count(Tally::CodeChanged),
            scale_changed: count(Tally::ScaleChanged),
            value_changed: count(Tally::ValueChanged),
            absorbed: count(Tally::Absorbed),
            zero_target: count(Tally::ZeroTarget),
            zero_unlearned: count(Tally::ZeroUnlearned),
            update,
            update_from_zero,
            kept,
            quantized,
            steps: Steps::from_parts(ratios, capped, greatest, counts),
        };
        let least = self.weights as f64 * LEAST_MEAN;
        let held = sums.iter().all(|sum| sum.is_finite())
            && f32::from_bits(tally(Tally::Largest)) < LARGEST
            && (change.changed == 0 || (update >= least && ratios >= least))
            && (change.value_changed == 0 || quantized >= least)
            && (update_from_zero == 0.0 || update_from_zero >= least);
        held.then_some(change)
    }
}
