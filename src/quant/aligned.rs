//! Scales that keep an update's direction: the rival that [kept rounding](mod@super::keep) is measured against.
//!
//! After the idea of DAQ (arXiv 2603.22324), which chooses FP8 scales by how well the sign and the cosine of a post-training
//! delta survive. Here, for every group of any scheme, a few scales around that of nearest rounding are tried; codes are the
//! nearest at each; the scale is taken whose values `Q` have the greatest cosine of `Q - t` with `u - t`. Unlike kept rounding
//! it cannot say how much of the update is to survive.

use super::rescale::rescale;
use super::{Packed, Scheme, encode};

/// What the nearest scale is multiplied by, the nearest itself first.
const FACTORS: [f32; 17] =
    [1.0, 0.975, 1.025, 0.95, 1.05, 0.925, 1.075, 0.9, 1.1, 0.875, 1.125, 0.85, 1.15, 0.825, 1.175, 0.8, 1.2];

/// Packs `unlearned`, `[rows, cols]`, at the scales that keep the direction of its update from `target`. Groups without an
/// update keep the nearest scale.
///
/// # Panics
///
/// If a slice is not `rows * cols` long, `cols` is not a multiple of 8, or the scheme does not quantize: bugs in the caller.
#[must_use]
pub fn aligned(scheme: Scheme, target: &[f32], unlearned: &[f32], rows: usize, cols: usize) -> Packed {
    assert_eq!(target.len(), unlearned.len(), "weights of one matrix");
    let mut packed = encode(scheme, unlearned, rows, cols);
    let Some(grouping) = scheme.grouping(rows, cols).filter(|_| !unlearned.is_empty()) else {
        assert!(!scheme.is_full(), "{scheme} has no codes");
        return packed;
    };
    rescale(&mut packed, &grouping, unlearned, &FACTORS, |range, values| {
        let (mut product, mut norm) = (0.0, 0.0);
        let pairs = target[range.clone()].iter().zip(&unlearned[range]);
        for (&value, (&old, &new)) in values.iter().zip(pairs) {
            let moved = f64::from(value) - f64::from(old);
            product += moved * (f64::from(new) - f64::from(old));
            norm += moved * moved;
        }
        // The greatest cosine; the length of u - t is the same for all.
        if norm > 0.0 { -product / norm.sqrt() } else { 0.0 }
    });
    packed
}
