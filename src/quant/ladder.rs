//! A code's neighbours by value: what a rounding that is not to the nearest moves along.

use super::codec::grid;
use super::{Packed, Scheme};

/// The FP4 codes by ascending value. -0 stands where 0 does.
const FP4: [u32; 15] = [11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3];
/// The place of 0 in [`FP4`].
const FP4_ZERO: usize = 7;

/// The code of the next value above `code` or below it; `None` at the end of the scheme's range.
///
/// Codes are bit patterns, as [`Packed::code`] gives them. A scheme that does not quantize has no neighbours.
#[must_use]
pub fn neighbour(scheme: Scheme, code: u32, up: bool) -> Option<u32> {
    let step = |code: i32| if up { code + 1 } else { code - 1 };
    match scheme {
        Scheme::F32 | Scheme::F16 | Scheme::Bf16 => None,
        Scheme::Int8 | Scheme::Int4 { .. } | Scheme::Int4Row => {
            let unused = 32 - scheme.bits();
            let next = step((code << unused).cast_signed() >> unused);
            let grid = grid(scheme);
            (grid.min..=grid.max).contains(&next).then_some(next.cast_unsigned() << unused >> unused)
        }
        Scheme::Int4Asym { .. } | Scheme::Nf4B64 => {
            u32::try_from(step(code.cast_signed())).ok().filter(|next| *next < 16)
        }
        Scheme::Fp4B64 => {
            let place = FP4.iter().position(|&other| other == code).unwrap_or(FP4_ZERO);
            let next = if up { place.checked_add(1) } else { place.checked_sub(1) };
            next.and_then(|next| FP4.get(next).copied())
        }
    }
}

/// Replaces the code number `index` among those of `words`.
pub(super) fn put(scheme: Scheme, words: &mut [u32], index: usize, code: u32) {
    let (per_word, bits) = (scheme.per_word(), scheme.bits());
    #[expect(clippy::cast_possible_truncation, reason = "a word holds at most 8 codes")]
    let position = (index % per_word) as u32 * bits;
    let word = &mut words[index / per_word];
    *word = *word & !(u32::MAX >> (32 - bits) << position) | code << position;
}

/// The scale (and zero point) of flat weight `index`.
pub(super) fn scales<'a>(packed: &'a Packed, grouping: &super::Grouping, index: usize) -> &'a [f32] {
    let each = packed.scheme.values_per_group();
    let group = grouping.of(index);
    &packed.scales[group * each..(group + 1) * each]
}
