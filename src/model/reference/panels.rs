//! Weights as the CPU reads them: packed, in panels of [`PANEL`] rows that are turned, so that the weights of one
//! column lie side by side and neither unpacking nor multiplying has to turn them.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::quant::{Packed, Scheme, table};

/// Rows of a panel. Three vectors of 16, what `gemm`'s widest kernel takes.
pub(super) const PANEL: usize = 48;

/// Columns that decode unpacks at a time: they stay in the first cache. A multiple of 8.
const PIECE: usize = 64;

/// Vectors of a panel's rows that are summed at a time; see [`accumulate`].
const VECTORS: usize = 3;

/// Rows of `x` that are summed at a time: with [`VECTORS`], as many sums as AVX2 has room for.
const ROWS: usize = 4;

/// The weights of one column of a panel.
pub(super) type Column = [f32; PANEL];

/// A `[n, k]` weight matrix in one scheme; rows past the last are zeros.
#[derive(Clone, Debug)]
pub(super) struct Panels {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    /// `[panels, k]` columns.
    codes: Codes,
    /// Columns that share their scales, a multiple of 8.
    step: usize,
    /// `[panels, k / step, PANEL]`; empty in full precision.
    scales: Vec<f32>,
    /// Zero points in the same places, where the scheme has them.
    zeros: Vec<f32>,
}

/// Codes by their width.
#[derive(Clone, Debug)]
enum Codes {
    Words(Vec<[u32; PANEL]>),
    Halves(Vec<[u16; PANEL]>),
    Bytes(Vec<[u8; PANEL]>),
    /// Two columns each: the first in the low nibbles.
    Nibbles(Vec<[u8; PANEL]>),
}

impl Panels {
    /// Lays packed weights out in panels; the weights are the same.
    pub(super) fn new(packed: &Packed) -> Self {
        let Packed { scheme, rows, cols, .. } = *packed;
        let panels = rows.div_ceil(PANEL);
        let code = |column: usize, lane: usize| {
            let (row, col) = (column / cols * PANEL + lane, column % cols);
            if row < rows { packed.code(row * cols + col) } else { 0 }
        };
        let codes = match scheme.bits() {
            32 => Codes::Words(columns(panels * cols, &code)),
            #[expect(clippy::cast_possible_truncation, reason = "codes have 16 bits")]
            16 => Codes::Halves(columns(panels * cols, &|column, lane| code(column, lane) as u16)),
            #[expect(clippy::cast_possible_truncation, reason = "codes have 8 bits")]
            8 => Codes::Bytes(columns(panels * cols, &|column, lane| code(column, lane) as u8)),
            #[expect(clippy::cast_possible_truncation, reason = "codes have 4 bits")]
            _ => Codes::Nibbles(columns(panels * cols / 2, &|pair, lane| {
                (code(2 * pair, lane) | code(2 * pair + 1, lane) << 4) as u8
            })),
        };
        let (mut step, mut scales, mut zeros) = (cols, Vec::new(), Vec::new());
        if let Some(grouping) = scheme.grouping(rows, cols) {
            // Groups that do not end where rows do may begin at any multiple of 8.
            let aligned = grouping.row_len == cols || cols.is_multiple_of(grouping.group);
            step = if aligned { grouping.group } else { 8 };
            let steps = cols.div_ceil(step);
            let values = scheme.values_per_group();
            let part = |part: usize| {
                let of = |index: usize| {
                    let (row, col) =
                        (index / PANEL / steps * PANEL + index % PANEL, index / PANEL % steps * step);
                    if row < rows {
                        packed.scales[grouping.of(row * cols + col) * values + part]
                    } else {
                        0.0
                    }
                };
                (0..panels * steps * PANEL).map(of).collect()
            };
            scales = part(0);
            if values > 1 {
                zeros = part(1);
            }
        }
        Self { scheme, rows, cols, codes, step, scales, zeros }
    }

    /// `n`.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `k`.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Unpacks a panel's columns from `first` on, a multiple of 8, bit for bit as [`crate::quant::decode`] has the
    /// weights. To be called within [`super::math::vectorized`].
    #[inline(always)]
    pub(super) fn unpack(&self, panel: usize, first: usize, out: &mut [Column]) {
        let start = panel * self.cols + first;
        match &self.codes {
            Codes::Words(codes) => each(&codes[start..], out, |bits, _| f32::from_bits(bits)),
            Codes::Halves(codes) if self.scheme == Scheme::F16 => {
                each(&codes[start..], out, |bits, _| half(bits));
            }
            Codes::Halves(codes) => {
                each(&codes[start..], out, |bits, _| f32::from_bits(u32::from(bits) << 16));
            }
            Codes::Bytes(codes) => self.scaled(
                panel,
                first,
                out,
                #[inline(always)]
                |done, out, scales, _| {
                    each(&codes[start + done..], out, |code, lane| {
                        f32::from(code.cast_signed()) * scales[lane]
                    });
                },
            ),
            Codes::Nibbles(codes) => self.scaled(
                panel,
                first,
                out,
                #[inline(always)]
                |done, out, scales, zeros| {
                    let codes = &codes[(start + done) / 2..];
                    match self.scheme {
                        Scheme::Fp4B64 => {
                            pairs(codes, out, |code, lane| table::FP4[usize::from(code & 15)] * scales[lane]);
                        }
                        Scheme::Nf4B64 => {
                            pairs(codes, out, |code, lane| table::NF4[usize::from(code & 15)] * scales[lane]);
                        }
                        Scheme::Int4Asym { .. } => {
                            pairs(codes, out, |code, lane| (f32::from(code) - zeros[lane]) * scales[lane]);
                        }
                        // Two's complement: the sign bit counts -8.
                        _ => pairs(codes, out, |code, lane| {
                            f32::from((code ^ 8).cast_signed() - 8) * scales[lane]
                        }),
                    }
                },
            ),
        }
    }

    /// Hands over the columns that share their scales, with how many came before them, and the scales (and zero points).
    #[inline(always)]
    fn scaled(
        &self,
        panel: usize,
        first: usize,
        out: &mut [Column],
        unpack: impl Fn(usize, &mut [Column], Column, Column),
    ) {
        let scales = self.scales.as_chunks::<PANEL>().0;
        let zeros = self.zeros.as_chunks::<PANEL>().0;
        let steps = self.cols.div_ceil(self.step);
        let mut done = 0;
        while done < out.len() {
            let col = first + done;
            let end = (done + self.step - col % self.step).min(out.len());
            let index = panel * steps + col / self.step;
            // Copies: the compiler knows that writing weights does not change them.
            let zeros = zeros.get(index).copied().unwrap_or([0.0; PANEL]);
            unpack(done, &mut out[done..end], scales[index], zeros);
            done = end;
        }
    }

    /// One row of the matrix.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let mut columns = [[0.0; PANEL]; PIECE];
        for (piece, out) in out.chunks_mut(PIECE).enumerate() {
            let columns = &mut columns[..out.len()];
            self.unpack(row / PANEL, piece * PIECE, columns);
            out.iter_mut().zip(columns).for_each(|(out, column)| *out = column[row % PANEL]);
        }
    }
}

/// The columns of a matrix, or pairs of them, from their elements.
fn columns<C: Copy + Default + Send>(
    count: usize,
    code: &(impl Fn(usize, usize) -> C + Sync),
) -> Vec<[C; PANEL]> {
    let column = |column| std::array::from_fn(|lane| code(column, lane));
    (0..count).into_par_iter().map(column).collect()
}

/// Makes weights of codes and their place in the column.
#[inline(always)]
fn each<C: Copy>(codes: &[[C; PANEL]], out: &mut [Column], weight: impl Fn(C, usize) -> f32) {
    for (out, codes) in out.iter_mut().zip(codes) {
        for lane in 0..PANEL {
            out[lane] = weight(codes[lane], lane);
        }
    }
}

/// [`each`] for two columns at a time.
#[inline(always)]
fn pairs(codes: &[[u8; PANEL]], out: &mut [Column], weight: impl Fn(u8, usize) -> f32) {
    for ([even, odd], codes) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        // Apart from `out`, where each weight written could be a code not yet read, for all the compiler knows.
        let (mut low, mut high) = ([0.0; PANEL], [0.0; PANEL]);
        for lane in 0..PANEL {
            low[lane] = weight(codes[lane] & 15, lane);
        }
        for lane in 0..PANEL {
            high[lane] = weight(codes[lane] >> 4, lane);
        }
        (*even, *odd) = (low, high);
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

/// A panel's product with few rows, straight from the codes: `tile` `[t, PANEL]` of `x` `[t, k]`.
///
/// Every element is one sum over `k` in order, so a row's bits do not depend on the rows it is taken with.
pub(super) struct FewRows<'a> {
    pub(super) panels: &'a Panels,
    pub(super) panel: usize,
    pub(super) x: &'a [f32],
    pub(super) tile: &'a mut [f32],
}

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panels, panel, x, tile } = self;
        let k = panels.cols;
        let mut weights = [[0.0; PANEL]; PIECE];
        tile.fill(0.0);
        for first in (0..k).step_by(PIECE) {
            let weights = &mut weights[..PIECE.min(k - first)];
            panels.unpack(panel, first, weights);
            let (many, rest) = tile.as_chunks_mut::<PANEL>().0.as_chunks_mut::<ROWS>();
            let x_of = |row: usize| &x[row * k + first..][..weights.len()];
            let done = many.len() * ROWS;
            for (index, sums) in many.iter_mut().enumerate() {
                accumulate(simd, weights, std::array::from_fn(|row| x_of(index * ROWS + row)), sums);
            }
            for (index, sums) in rest.iter_mut().enumerate() {
                accumulate(simd, weights, [x_of(done + index)], std::array::from_mut(sums));
            }
        }
    }
}

/// `sums[r] += sum over columns of x[r][column] * weights[column]`.
#[inline(always)]
fn accumulate<S: Simd, const R: usize>(simd: S, weights: &[Column], x: [&[f32]; R], sums: &mut [Column; R]) {
    for first in (0..PANEL / S::F32_LANES).step_by(VECTORS) {
        let mut acc = [[simd.splat_f32s(0.0); VECTORS]; R];
        for (acc, sums) in acc.iter_mut().zip(&*sums) {
            acc.copy_from_slice(&S::as_simd_f32s(sums).0[first..][..VECTORS]);
        }
        for (col, weights) in weights.iter().enumerate() {
            let weights = &S::as_simd_f32s(weights).0[first..][..VECTORS];
            for row in 0..R {
                let x = simd.splat_f32s(x[row][col]);
                for vector in 0..VECTORS {
                    acc[row][vector] = simd.mul_add_e_f32s(x, weights[vector], acc[row][vector]);
                }
            }
        }
        for row in 0..R {
            S::as_mut_simd_f32s(&mut sums[row]).0[first..][..VECTORS].copy_from_slice(&acc[row]);
        }
    }
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
    fn weights_are_as_the_codec_decodes_them() {
        for scheme in Scheme::ALL {
            for [rows, cols] in [[1, 8], [7, 40], [50, 72], [47, 64], [97, 200], [5, 1032]] {
                let packed = quant::encode(scheme, &noise(rows * cols), rows, cols);
                let (want, panels) = (quant::decode(&packed), Panels::new(&packed));
                for (row, want) in want.chunks_exact(cols).enumerate() {
                    let mut got = vec![f32::NAN; cols];
                    panels.row(row, &mut got);
                    let bits =
                        |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(want), "{scheme} [{rows}, {cols}], row {row}");
                }
                let mut columns = vec![[f32::NAN; PANEL]; cols];
                panels.unpack(rows / PANEL, 0, &mut columns);
                let mut beyond = columns.iter().flat_map(|column| &column[rows % PANEL..]);
                assert!(beyond.all(|weight| *weight == 0.0), "{scheme} [{rows}, {cols}]");
            }
        }
    }
}
