//! Weights out of their packed form, bit for bit as [`crate::quant::decode`] has them.
//!
//! Everything here is inlined into its caller, and its loops have no branches: within [`super::math::vectorized`]
//! they become vector code.

use super::math::vectorized;
use crate::quant::{Packed, Scheme, table};

/// Rows of a matrix that are multiplied together: one panel. Three vectors of 16, what `gemm`'s widest kernel takes.
pub(super) const PANEL: usize = 48;

/// Columns that are unpacked before they are turned: [`PANEL`] such pieces stay in the first cache.
const PIECE: usize = 64;

// A 16-bit weight, or a byte, is taken from a word by its place in memory.
const _: () = assert!(cfg!(target_endian = "little"), "packed words are read as bytes");

/// Fills `out` with the weights of `row` from column `first` on. `first` and the length are multiples of 8, so that
/// both ends stand at a word.
#[inline(always)]
pub(super) fn unpack(packed: &Packed, row: usize, first: usize, out: &mut [f32]) {
    let start = row * packed.cols + first;
    let per_word = packed.scheme.per_word();
    let words = &packed.words[start / per_word..(start + out.len()) / per_word];
    match packed.scheme {
        Scheme::F32 => each(words, out, f32::from_bits),
        Scheme::F16 => each(bytemuck::cast_slice(words), out, half),
        Scheme::Bf16 => {
            each(bytemuck::cast_slice(words), out, |bits: u16| f32::from_bits(u32::from(bits) << 16))
        }
        Scheme::Int8 => groups(packed, start, out, words, |words, out, [scale]| {
            each(bytemuck::cast_slice(words), out, |code: i8| f32::from(code) * scale);
        }),
        Scheme::Int4 { .. } | Scheme::Int4Row => groups(packed, start, out, words, |words, out, [scale]| {
            // The nibble goes to the top, where the shift back takes its sign along.
            nibbles(
                words,
                out,
                |word, shift| (word << (28 - shift)).cast_signed() >> 28,
                |code| code as f32 * scale,
            );
        }),
        Scheme::Int4Asym { .. } => groups(packed, start, out, words, |words, out, [scale, zero]| {
            let code = |word: u32, shift: u32| (word >> shift & 15).cast_signed();
            nibbles(words, out, code, |code| (code as f32 - zero) * scale);
        }),
        Scheme::Fp4B64 => groups(packed, start, out, words, |words, out, [scale]| {
            nibbles(words, out, |word, shift| word >> shift & 15, |code| table::FP4[code as usize] * scale);
        }),
        Scheme::Nf4B64 => groups(packed, start, out, words, |words, out, [scale]| {
            nibbles(words, out, |word, shift| word >> shift & 15, |code| table::NF4[code as usize] * scale);
        }),
    }
}

/// Unpacks the [`PANEL`] rows from `first_row` on and turns them: `out` is `[k, PANEL]`. Rows past the matrix's last are
/// zeros.
pub(super) fn panel(packed: &Packed, first_row: usize, out: &mut [f32]) {
    let rows = PANEL.min(packed.rows - first_row);
    vectorized(
        #[inline(always)]
        || {
            let mut pieces = [[0.0; PIECE]; PANEL];
            for (index, out) in out.chunks_mut(PIECE * PANEL).enumerate() {
                let width = out.len() / PANEL;
                for (row, piece) in pieces[..rows].iter_mut().enumerate() {
                    unpack(packed, first_row + row, index * PIECE, &mut piece[..width]);
                }
                for (col, out) in out.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                    for (out, piece) in out.iter_mut().zip(&pieces) {
                        *out = piece[col];
                    }
                }
            }
        },
    );
}

/// `out[i] = value(codes[i])`.
#[inline(always)]
fn each<C: Copy>(codes: &[C], out: &mut [f32], value: impl Fn(C) -> f32) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = value(code);
    }
}

/// The eight nibbles of each word, lowest first: `code` takes one out by its shift, `value` makes it a weight.
#[inline(always)]
fn nibbles<C: Copy + Default>(
    words: &[u32],
    out: &mut [f32],
    code: impl Fn(u32, u32) -> C,
    value: impl Fn(C) -> f32,
) {
    for (out, &word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        let mut codes = [C::default(); 8];
        for (code_out, shift) in codes.iter_mut().zip([0, 4, 8, 12, 16, 20, 24, 28]) {
            *code_out = code(word, shift);
        }
        for (out, &code) in out.iter_mut().zip(&codes) {
            *out = value(code);
        }
    }
}

/// Cuts the weights from the flat index `start` on where the scale changes, and hands each part over with its scale
/// (and zero point). Groups are multiples of 8 weights, like rows.
#[inline(always)]
fn groups<const N: usize>(
    packed: &Packed,
    start: usize,
    out: &mut [f32],
    words: &[u32],
    unpack: impl Fn(&[u32], &mut [f32], [f32; N]),
) {
    let Some(grouping) = packed.scheme.grouping(packed.rows, packed.cols) else { return };
    let per_word = packed.scheme.per_word();
    let scales = packed.scales.as_chunks::<N>().0;
    let mut done = 0;
    while done < out.len() {
        let in_row = (start + done) % grouping.row_len;
        let left = (grouping.group - in_row % grouping.group).min(grouping.row_len - in_row);
        let end = (done + left).min(out.len());
        let scales = scales[grouping.of(start + done)];
        unpack(&words[done / per_word..end / per_word], &mut out[done..end], scales);
        done = end;
    }
}

/// A finite f16, widened. Both of its cases are computed, on normal numbers only, and one is taken: no branch, and
/// no subnormal operand, which some processors take long over.
#[inline(always)]
fn half(bits: u16) -> f32 {
    /// What the exponent of an f32 is above that of an f16.
    const REBIAS: u32 = 112 << 23;
    /// The least exponent of an f16, as an f32: what a subnormal's mantissa is counted from.
    const LEAST: u32 = 113 << 23;
    let shifted = u32::from(bits & 0x7fff) << 13;
    let normal = f32::from_bits(shifted + REBIAS);
    let subnormal = f32::from_bits(shifted + LEAST) - f32::from_bits(LEAST);
    let magnitude = if shifted < 1 << 23 { subnormal } else { normal };
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;

    fn noise(count: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn halves_are_widened_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            assert_eq!(half(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:#x}");
        }
    }

    /// Rows shorter than a group, ragged groups, groups across rows; ragged panels and pieces.
    #[test]
    fn rows_and_panels_are_as_the_codec_decodes_them() {
        for scheme in Scheme::ALL {
            for [rows, cols] in [[1, 8], [7, 40], [50, 72], [48, 64], [97, 200], [5, 1032]] {
                let packed = quant::encode(scheme, &noise(rows * cols), rows, cols);
                let want = quant::decode(&packed);
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                for row in 0..rows {
                    for first in [0, cols / 16 * 8] {
                        let mut got = vec![f32::NAN; cols - first];
                        unpack(&packed, row, first, &mut got);
                        assert_eq!(
                            bits(&got),
                            bits(&want[row * cols + first..(row + 1) * cols]),
                            "{scheme} [{rows}, {cols}], row {row} from {first}"
                        );
                    }
                }
                for first_row in (0..rows).step_by(PANEL) {
                    let mut got = vec![f32::NAN; cols * PANEL];
                    panel(&packed, first_row, &mut got);
                    for (index, got) in got.iter().enumerate() {
                        let (col, row) = (index / PANEL, first_row + index % PANEL);
                        let want = if row < rows { want[row * cols + col] } else { 0.0 };
                        assert_eq!(got.to_bits(), want.to_bits(), "{scheme} [{rows}, {cols}], {row}, {col}");
                    }
                }
            }
        }
    }
}
