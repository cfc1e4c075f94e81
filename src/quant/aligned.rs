//! Scales that keep an update's direction: the rival that [kept rounding](mod@super::keep) is measured against.
//!
//! After the idea of DAQ (arXiv 2603.22324), which chooses FP8 scales by how well the sign and the cosine of a post-training
//! delta survive. Here, for every group of any scheme, a few scales around that of nearest rounding are tried; codes are the
//! nearest at each; the scale is taken whose values `Q` have the greatest cosine of `Q - t` with `u - t`. Unlike kept rounding
//! it cannot say how much of the update is to survive.

use rayon::prelude::*;

use super::codec::{grid, value};
use super::{Packed, Scheme, encode, ladder, scale, table};

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
    let groups: Vec<_> = (0..grouping.count)
        .into_par_iter()
        .map(|index| {
            let row = index / grouping.per_row * grouping.row_len;
            let first = row + index % grouping.per_row * grouping.group;
            let range = first..(first + grouping.group).min(row + grouping.row_len);
            let scales = ladder::scales(&packed, &grouping, first);
            let best = best(scheme, &target[range.clone()], &unlearned[range.clone()], scales);
            best.map(|(scale, codes)| (index, range, scale, codes))
        })
        .collect();
    for (index, range, scale, codes) in groups.into_iter().flatten() {
        packed.scales[index * scheme.values_per_group()] = scale;
        for (place, code) in range.zip(codes) {
            ladder::put(scheme, &mut packed.words, place, code);
        }
    }
    packed
}

/// Another scale than the nearest, and its codes, if one is better.
fn best(scheme: Scheme, target: &[f32], unlearned: &[f32], scales: &[f32]) -> Option<(f32, Vec<u32>)> {
    if scales[0] == 0.0 {
        return None;
    }
    let mut best = None;
    let mut greatest = f64::NEG_INFINITY;
    for factor in FACTORS {
        let mut tried = scales.to_vec();
        tried[0] *= factor;
        let codes: Vec<_> = unlearned.iter().map(|&weight| nearest(scheme, weight, &tried)).collect();
        let (mut product, mut norm) = (0.0, 0.0);
        for ((&code, &old), &new) in codes.iter().zip(target).zip(unlearned) {
            let moved = f64::from(value(scheme, code, &tried)) - f64::from(old);
            product += moved * (f64::from(new) - f64::from(old));
            norm += moved * moved;
        }
        // The length of u - t is the same for all.
        let cosine = if norm > 0.0 { product / norm.sqrt() } else { 0.0 };
        if cosine > greatest {
            greatest = cosine;
            best = (factor != FACTORS[0]).then_some((tried[0], codes));
        }
    }
    best
}

/// The nearest code at these scales, as an unsigned bit pattern.
pub(super) fn nearest(scheme: Scheme, weight: f32, scales: &[f32]) -> u32 {
    let step = scales[0];
    let mask = u32::MAX >> (32 - scheme.bits());
    match scheme {
        Scheme::Fp4B64 => table::fp4_code(table::round_to_bf16(weight), step),
        Scheme::Nf4B64 => table::nf4_code(table::round_to_bf16(weight), step),
        _ => {
            let grid = grid(scheme);
            #[expect(clippy::cast_possible_truncation, reason = "a zero point has 4 bits")]
            let zero = scales.get(1).map_or(0, |zero| *zero as i32);
            let code = scale::signed_code(weight, step, 1.0 / step) + zero;
            code.clamp(grid.min, grid.max).cast_unsigned() & mask
        }
    }
}
