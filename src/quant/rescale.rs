//! Other scales than those of nearest rounding, tried group by group.

use std::ops::Range;

use rayon::prelude::*;

use super::codec::{grid, value};
use super::{Grouping, Packed, Scheme, ladder, scale, table};

/// Multiplies the scale of every group by one of `factors`, the first of which is 1: by the one at which the nearest codes of the
/// group's `weights` have the least `cost`, of equals the first. The cost is that of a group, given its place in `weights` and
/// the values that its codes stand for. Where the first is best, and where a scale is 0, scale and codes stay.
pub(super) fn rescale(
    packed: &mut Packed,
    grouping: &Grouping,
    weights: &[f32],
    factors: &[f32],
    cost: impl Fn(Range<usize>, &[f32]) -> f64 + Sync,
) {
    let scheme = packed.scheme;
    let groups: Vec<_> = (0..grouping.count)
        .into_par_iter()
        .filter_map(|index| {
            let range = grouping.range(index);
            let own = ladder::scales(packed, grouping, range.start);
            let (mut best, mut least) = (None, f64::INFINITY);
            for (number, factor) in factors.iter().enumerate().filter(|_| own[0] != 0.0) {
                let mut scales = own.to_vec();
                scales[0] *= factor;
                let codes = weights[range.clone()].iter().map(|&weight| nearest(scheme, weight, &scales));
                let codes: Vec<_> = codes.collect();
                let values: Vec<_> = codes.iter().map(|&code| value(scheme, code, &scales)).collect();
                let found = cost(range.clone(), &values);
                if found < least {
                    least = found;
                    best = (number > 0).then_some((index, range.start, scales[0], codes));
                }
            }
            best
        })
        .collect();
    for (index, first, scale, codes) in groups {
        packed.scales[index * scheme.values_per_group()] = scale;
        for (place, code) in (first..).zip(codes) {
            ladder::put(scheme, &mut packed.words, place, code);
        }
    }
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
