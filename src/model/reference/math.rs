//! The arithmetic of the CPU pass. Everything is f32; each function's result for a row depends on
//! that row alone.

use std::cell::RefCell;

use gemm::Parallelism;
use pulp::Arch;
use rayon::prelude::*;

/// Partial sums of a reduction: two vectors of 16, so that one addition does not wait for the other.
const LANES: usize = 32;

/// Floats that one task of an operation on single elements is worth starting for.
pub(super) const FLOATS_PER_TASK: usize = 1 << 14;

/// Runs `work` compiled for the widest vectors that this CPU has. What it calls must be inlined.
///
/// Lanes do not change the result: no operation is reordered or fused, here or by the compiler.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

thread_local! {
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A vector of `len` floats of any value: one that was given back with [`spare`], if there is any. A batch's activations
/// are megabytes; asking the system for them, page by page, costs a tenth of the pass.
pub(super) fn floats(len: usize) -> Vec<f32> {
    let found = SPARE.with_borrow_mut(|spare| {
        // The smallest that is large enough, or else the largest.
        let fit = spare.iter().enumerate().min_by_key(|(_, floats)| match floats.capacity() {
            capacity if capacity >= len => capacity,
            capacity => usize::MAX - capacity,
        });
        let index = fit.map(|(index, _)| index)?;
        Some(spare.swap_remove(index))
    });
    let mut floats = found.unwrap_or_default();
    floats.resize(len, 0.0);
    floats
}

/// Gives vectors back to [`floats`].
pub(super) fn spare<const N: usize>(floats: [Vec<f32>; N]) {
    /// More than a layer uses at a time.
    const MOST: usize = 12;
    SPARE.with_borrow_mut(|spare| {
        spare.extend(floats);
        spare.truncate(MOST);
    });
}

/// What a product is taken of.
pub(super) struct Product<'a> {
    /// `[m, k]`, its rows `x_step` apart.
    pub(super) x: &'a [f32],
    /// At least `k`.
    pub(super) x_step: usize,
    /// `[k, n]`.
    pub(super) w: &'a [f32],
    /// `m`, `n` and `k`.
    pub(super) shape: [usize; 3],
    /// A factor of every element.
    pub(super) scale: f32,
}

impl Product<'_> {
    /// `y = scale x w`, or `y += scale x w`, for `y` of shape `[m, n]`, its rows `y_step` apart.
    ///
    /// `gemm` picks its kernel and its cut of `k` by the shape: a row's bits are the same for as long as the shape is,
    /// so callers keep to one shape and fill up with zeros. `w` lies as `gemm` would pack it, so that nothing is copied.
    pub(super) fn run(&self, y: &mut [f32], y_step: usize, add: bool) {
        let Self { x, x_step, w, shape: [m, n, k], scale } = *self;
        let fits = |len, rows: usize, step, cols| step >= cols && len >= (rows - 1) * step + cols;
        assert!(m > 0 && n > 0 && k > 0, "shape of a product");
        assert!(
            fits(y.len(), m, y_step, n) && fits(x.len(), m, x_step, k) && w.len() >= k * n,
            "operands of a product"
        );
        // Lengths of slices fit isize.
        let [y_step, x_step, w_step] = [y_step, x_step, n].map(usize::cast_signed);
        #[expect(unsafe_code, reason = "gemm takes pointers")]
        // SAFETY: by the assertions, row i < m or k, column j < n or k at the strides given stays inside each slice;
        // `y` is borrowed mutably, so it overlaps neither input.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                y.as_mut_ptr(),
                1,
                y_step,
                add,
                x.as_ptr(),
                1,
                x_step,
                w.as_ptr(),
                1,
                w_step,
                1.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// Sum of products: [`LANES`] partial sums, added as a tree, then the rest.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    total(&sums) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The lanes' sum, as a tree.
///
/// Not inlined, so that the lanes are stored: the tree's pairs would otherwise make the compiler keep the lanes two by
/// two in the loop that fills them.
#[inline(never)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        width /= 2;
    }
    lanes[0]
}

/// e^x to 2 ulp, without a branch; 0 below -87, where f32 has no normal number left, and no more above 88 than there.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// ln 2 in two parts, the first short enough that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, from Cephes' `expf`; the highest power first.
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    /// An f32 of this size has no fraction: adding it rounds, and leaves the integer in the low bits.
    const ROUND: f32 = 12_582_912.0;

    // Comparisons, not min and max: NaN stays NaN.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2[0] - n * LN_2[1];
    let mut sum = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        sum = sum * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = (sum * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { y }
}

/// `x / sqrt(mean(x^2) + eps) * weight` of each row, for `x` of shape `[t, d]`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = floats(x.len());
    out.copy_from_slice(x);
    let rows = out.par_chunks_exact_mut(weight.len()).with_min_len(FLOATS_PER_TASK / weight.len());
    rows.for_each(|row| {
        vectorized(
            #[inline(always)]
            || {
                let mean_square = dot(row, row) / row.len() as f32;
                let scale = 1.0 / (mean_square + eps).sqrt();
                row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
            },
        );
    });
    out
}

/// Turns each head of a token by its angles: `x` `[heads, e]`, `turns` `[e / 2]` of cosine and sine.
///
/// The pairs are a half apart (transformers' `rotate_half`).
pub(super) fn rotate(x: &mut [f32], turns: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(2 * turns.len()) {
        let (low, high) = head.split_at_mut(turns.len());
        for ((low, high), [cos, sin]) in low.iter_mut().zip(high).zip(turns) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

/// `silu(gate) * up`, element by element, into `gate`.
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    gate.par_chunks_mut(FLOATS_PER_TASK).zip(up.par_chunks(FLOATS_PER_TASK)).for_each(|(gate, up)| {
        vectorized(
            #[inline(always)]
            || gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + exp(-*gate)) * up),
        );
    });
}

/// Adds `y` to `x`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(FLOATS_PER_TASK)
        .zip(y.par_chunks(FLOATS_PER_TASK))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

/// The greatest, ignoring NaN; minus infinity if there is none.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], chunk[lane]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

/// Turns scores into weights that sum to one.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32]) {
    let max = max(scores);
    let mut sums = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - max);
            sums[lane] += chunk[lane];
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - max);
        *sum += *score;
    }
    let scale = 1.0 / total(&sums);
    scores.iter_mut().for_each(|score| *score *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_ulp() {
        for step in 0..=1_750_000_u32 {
            let x = (step as f32).mul_add(1e-4, -87.0);
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "e^{x}: off by {error:e} of it");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(1e9) > 1e38);
    }

    #[test]
    fn weights_of_scores_sum_to_one() {
        for count in [1, 5, 31, 32, 33, 100] {
            let mut scores: Vec<f32> = (0..count).map(|i| ((i * 37) % 101) as f32 - 300.0).collect();
            let want: Vec<f64> = scores.iter().map(|score| f64::from(*score).exp()).collect();
            let sum: f64 = want.iter().sum();
            softmax(&mut scores);
            for (got, want) in scores.iter().zip(&want) {
                // Each term has 2 ulp, the sum a tree's 6 roundings and the scale 2; below e^-87 a weight is 0.
                let bound = 12.0 * f64::from(f32::EPSILON) * want / sum + (-87f64).exp();
                assert!((f64::from(*got) - want / sum).abs() <= bound, "{got} for {}", want / sum);
            }
        }
        let mut broken = [1.0, f32::NAN, 2.0];
        softmax(&mut broken);
        assert!(broken.iter().all(|weight| weight.is_nan()));
    }
}
