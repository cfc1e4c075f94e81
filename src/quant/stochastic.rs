//! Stochastic rounding: to either neighbour, each with the probability of its nearness.
//!
//! The value is right on average, so that an update survives on average however small it is, without knowing it. What
//! decides is a hash of a seed, the tensor's name and the weight's index: no state, the same on every machine and for any
//! cut into blocks.

use rayon::prelude::*;

use super::codec::{codes, value};
use super::ladder::{neighbour, put, scales};
use super::{Packed, Scheme, decode, encode};

/// Where the numbers of a tensor come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    seed: u64,
    tensor: u64,
}

impl Draw {
    /// For the tensor of this name.
    #[must_use]
    pub fn new(seed: u64, tensor: &str) -> Self {
        // FNV-1a.
        let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self { seed, tensor: tensor.bytes().fold(0xcbf2_9ce4_8422_2325, hash) }
    }

    /// A number in 0..1 for flat weight `index`: 24 bits, in the middle of its interval.
    #[must_use]
    pub fn at(self, index: u64) -> f32 {
        let halves = |number: u64| [(number & 0xffff_ffff), number >> 32];
        let words = [self.seed, self.tensor, index].into_iter().flat_map(halves);
        #[expect(clippy::cast_possible_truncation, reason = "halves have 32 bits")]
        let hash = words.fold(0, |hash: u32, word| mix(hash ^ word as u32));
        #[expect(clippy::cast_precision_loss, reason = "23 bits and a half are exact")]
        let number = ((hash >> 9) as f32 + 0.5) * 2.0_f32.powi(-23);
        number
    }
}

/// A bijection of u32 that spreads every bit over all (the "lowbias32" constants of C. Wellons' hash-prospector, moved off
/// its fixed point 0 by an addition).
fn mix(word: u32) -> u32 {
    let word = word.wrapping_add(0x9e37_79b9);
    let word = (word ^ word >> 16).wrapping_mul(0x7feb_352d);
    let word = (word ^ word >> 15).wrapping_mul(0x846c_a68b);
    word ^ word >> 16
}

/// Packs `weights`, `[rows, cols]`, in stochastic rounding; gives the codes that are not the nearest, too.
///
/// `first` is the index of the first weight in its tensor. The nearest code moves to the neighbour on the weight's other
/// side if `draw * |v' - v| < |w - v|` in f32. Scales are those of nearest rounding; a weight beyond the last value stays there.
///
/// # Panics
///
/// If `weights` is not `rows * cols` long, `cols` is not a multiple of 8, or the scheme does not quantize: bugs in the
/// caller.
#[must_use]
pub fn stochastic(
    scheme: Scheme,
    weights: &[f32],
    rows: usize,
    cols: usize,
    draw: Draw,
    first: u64,
) -> (Packed, u64) {
    let grouping = scheme.grouping(rows, cols);
    assert!(grouping.is_some(), "{scheme} has no codes");
    let mut packed = encode(scheme, weights, rows, cols);
    let Some(grouping) = grouping.filter(|_| !weights.is_empty()) else { return (packed, 0) };
    let (nearest, values) = (packed.clone(), decode(&packed));
    let words = packed.words.par_chunks_mut(cols / scheme.per_word());
    let moved = words.enumerate().map(|(row, words)| {
        let before: Vec<_> = words.iter().flat_map(|&word| codes(scheme, word)).collect();
        let mut moved = 0;
        for (column, code) in before.into_iter().enumerate() {
            let index = row * cols + column;
            let (weight, old) = (weights[index], values[index]);
            let Some(code) = neighbour(scheme, code, weight > old) else { continue };
            let new = value(scheme, code, scales(&nearest, &grouping, index));
            if draw.at(first + index as u64) * (new - old).abs() < (weight - old).abs() {
                put(scheme, words, column, code);
                moved += 1;
            }
        }
        moved
    });
    let moved = moved.sum();
    (packed, moved)
}
