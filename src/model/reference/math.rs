//! The arithmetic of the CPU pass. Everything is f32; each function's result for a row depends on
//! that row alone.

use std::sync::Arc;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::model::Folded;

/// Accumulators of a dot product: enough for the compiler to use vectors of 8.
const LANES: usize = 8;

/// A weight matrix, decoded.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// `[n, k]`.
    pub(super) values: Arc<Vec<f32>>,
    /// `n`.
    pub(super) rows: usize,
    /// `k`.
    pub(super) cols: usize,
    /// `[n]`.
    pub(super) bias: Option<Vec<f32>>,
}

impl Matrix {
    /// `x W^T + bias`, `[t, n]`, for `x` of shape `[t, k]`.
    ///
    /// The product is always taken of `block` rows, the last ones filled up with zeros: `gemm` picks its
    /// kernel and its cut of `k` by the number of rows, so that a row's bits would otherwise depend on
    /// how many others there are.
    pub(super) fn apply(&self, x: &[f32], block: usize) -> Vec<f32> {
        let (n, k) = (self.rows, self.cols);
        let rows = x.len() / k;
        let mut y = vec![0.0; rows.next_multiple_of(block) * n];
        // One block takes all threads, several take one each. The threads share out rows and columns,
        // never a sum, so the bits are the same.
        let parallelism = if rows > block { Parallelism::None } else { Parallelism::Rayon(0) };
        y.par_chunks_mut(block * n).zip(x.par_chunks(block * k)).for_each(|(y, x)| {
            if x.len() == block * k {
                product(y, x, &self.values, [block, n, k], parallelism);
            } else {
                let mut padded = vec![0.0; block * k];
                padded[..x.len()].copy_from_slice(x);
                product(y, &padded, &self.values, [block, n, k], parallelism);
            }
        });
        y.truncate(rows * n);
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(n) {
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        y
    }
}

/// `y = x w^T` for row-major `x` `[m, k]`, `w` `[n, k]`, `y` `[m, n]`.
fn product(y: &mut [f32], x: &[f32], w: &[f32], [m, n, k]: [usize; 3], parallelism: Parallelism) {
    assert!(y.len() == m * n && x.len() == m * k && w.len() == n * k, "shapes of a product");
    // Lengths of slices fit isize.
    let [n_step, k_step] = [n, k].map(usize::cast_signed);
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: by the assertion, row i < m or n, column j < n or k at the strides given stays inside the
    // slice; `y` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n_step,
            false,
            x.as_ptr(),
            1,
            k_step,
            w.as_ptr(),
            k_step,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Sum of products, `LANES` partial sums added in order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `x / sqrt(mean(x^2) + eps) * weight` of each row, for `x` of shape `[t, d]`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    out.par_chunks_exact_mut(weight.len()).for_each(|row| {
        let mean_square = dot(row, row) / row.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
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
    gate.par_iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
}

/// Turns scores into weights that sum to one.
pub(super) fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

/// Folds one row of logits; `log_sum_exp` is NaN if any logit is not finite.
pub(super) fn fold(logits: &[f32], given: usize) -> Folded {
    let (mut argmax, mut max_logit, mut finite) = (0, f32::NEG_INFINITY, true);
    for (token, &logit) in (0u32..).zip(logits) {
        finite &= logit.is_finite();
        if logit > max_logit {
            (argmax, max_logit) = (token, logit);
        }
    }
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max_logit).exp())).sum();
    #[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
    let log_sum_exp = if finite { (f64::from(max_logit) + sum.ln()) as f32 } else { f32::NAN };
    Folded { log_sum_exp, argmax, max_logit, given_logit: logits[given] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            f32::from((state >> 16) as u16) / 32768.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// The claim that the whole CPU pass rests on: a row's bits depend neither on the other rows, nor
    /// on its place among them, nor on the threads.
    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        // Inner lengths on both sides of gemm's cuts at 512 and 1024; outputs ragged.
        for (n, k) in [(1, 8), (33, 64), (130, 576), (67, 1536), (300, 1032)] {
            let matrix =
                Matrix { values: Arc::new(noise(1, n * k)), rows: n, cols: k, bias: Some(noise(2, n)) };
            let row = noise(3, k);
            for block in [8, 32] {
                let alone = matrix.apply(&row, block);
                for (seed, rows) in (5..).zip([2, 3, 7, 8, 9, 31, 32, 33, 70]) {
                    let mut x = noise(seed, rows * k);
                    for place in [0, rows / 2, rows - 1] {
                        x[place * k..][..k].copy_from_slice(&row);
                    }
                    let y = matrix.apply(&x, block);
                    for place in [0, rows / 2, rows - 1] {
                        let same =
                            y[place * n..][..n].iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "[{n}, {k}]: row {place} of {rows} in blocks of {block}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_right() {
        let (n, k, rows) = (19, 88, 11);
        let (values, bias, x) = (noise(1, n * k), noise(2, n), noise(3, rows * k));
        let matrix = Matrix { values: Arc::new(values.clone()), rows: n, cols: k, bias: Some(bias.clone()) };
        let y = matrix.apply(&x, 8);
        assert_eq!(y.len(), rows * n);
        for (i, y) in y.iter().enumerate() {
            let terms = x[i / n * k..][..k].iter().zip(&values[i % n * k..][..k]);
            let terms: Vec<_> = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
            let want = terms.iter().sum::<f64>() + f64::from(bias[i % n]);
            // At most k + 1 roundings on the way of any term (Higham, 3.1), each of half an ulp.
            let size = terms.iter().map(|term| term.abs()).sum::<f64>() + f64::from(bias[i % n].abs());
            let bound = (k + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size * 1.001;
            assert!((f64::from(*y) - want).abs() <= bound, "{y} for {want}, bound {bound:e}");
        }
    }

    #[test]
    fn folding_takes_the_first_of_equals_and_survives_large_logits() {
        let folded = fold(&[1.0, 300.0, -500.0, 300.0], 0);
        assert_eq!((folded.argmax, folded.max_logit, folded.given_logit), (1, 300.0, 1.0));
        assert!((folded.log_sum_exp - (300.0 + 2f32.ln())).abs() < 1e-4);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(fold(&[1.0, bad, 2.0], 0).log_sum_exp.is_nan(), "{bad}");
        }
    }
}
