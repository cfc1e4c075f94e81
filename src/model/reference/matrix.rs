//! A weight matrix, packed, and its products.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use pulp::Arch;
use rayon::prelude::*;

use super::fold::Partial;
use super::math::{FLOATS_PER_TASK, Product, floats, spare, vectorized};
use super::panels::{Column, FewRows, PANEL, Panels};
use crate::model::{Folded, Phase};

/// Rows of `x` in one product of a prefill. Few, as a prompt's last block is filled up with zeros; enough for two of
/// the widest tiles that `gemm` works in.
const BLOCK: usize = 16;

/// Panels of the head that one task folds: large enough that merging is nothing, small enough that there are many.
const PANELS_PER_FOLD: usize = 16;

thread_local! {
    /// A panel, unpacked.
    static UNPACKED: RefCell<Vec<Column>> = const { RefCell::new(Vec::new()) };
}

/// A weight matrix as it is stored, and a bias.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// `[n, k]`.
    pub(super) weights: Arc<Panels>,
    /// `[n]`.
    pub(super) bias: Option<Vec<f32>>,
}

impl Matrix {
    /// `n`.
    pub(super) fn rows(&self) -> usize {
        self.weights.rows()
    }

    /// `x W^T + bias`, `[t, n]`, for `x` of shape `[t, k]`.
    pub(super) fn apply(&self, x: &[f32], phase: Phase) -> Vec<f32> {
        let [y] = Self::apply_all([self], x, phase);
        y
    }

    /// [`Matrix::apply`] of several matrices to the same `x`.
    ///
    /// A task unpacks one panel of weights, once, and multiplies all of `x` with it. A row's bits depend neither on
    /// the other rows nor on the threads: in prefill every product has the same shape, whatever `x` has; in decode
    /// every element is a sum of its own.
    pub(super) fn apply_all<const N: usize>(matrices: [&Self; N], x: &[f32], phase: Phase) -> [Vec<f32>; N] {
        let Some(k) = matrices.first().map(|matrix| matrix.weights.cols()) else {
            return [const { Vec::new() }; N];
        };
        let input = Input::new(x, k, phase);
        let tile = input.padded * PANEL;
        let panels = matrices.map(|matrix| matrix.rows().div_ceil(PANEL));
        let each = matrices
            .iter()
            .zip(panels)
            .flat_map(|(matrix, panels)| (0..panels).map(|panel| (&*matrix.weights, panel)));
        let each: Vec<_> = each.collect();
        let mut tiles = floats(each.len() * tile);
        tiles
            .par_chunks_mut(tile.max(1))
            .zip(each)
            .for_each(|(tile, (weights, panel))| input.multiply(weights, panel, tile));
        let mut rest = &tiles[..];
        let mut index = 0;
        let outputs = matrices.map(|matrix| {
            let (own, after) = rest.split_at(panels[index] * tile);
            (rest, index) = (after, index + 1);
            untile(own, &input, matrix.rows(), matrix.bias.as_deref())
        });
        spare([tiles, input.last]);
        outputs
    }

    /// Columns `rows` of [`Matrix::apply`], `[t, rows]`, bit for bit.
    pub(super) fn apply_rows(&self, x: &[f32], rows: Range<usize>, phase: Phase) -> Vec<f32> {
        let input = Input::new(x, self.weights.cols(), phase);
        let panels = rows.start / PANEL..rows.end.div_ceil(PANEL);
        let whole = panels.start * PANEL..self.rows().min(panels.end * PANEL);
        let tile = input.padded * PANEL;
        let mut tiles = floats(panels.len() * tile);
        let each = tiles.par_chunks_mut(tile.max(1)).zip(panels);
        each.for_each(|(tile, panel)| input.multiply(&self.weights, panel, tile));
        let y = untile(&tiles, &input, whole.len(), self.bias.as_ref().map(|bias| &bias[whole.clone()]));
        spare([tiles, input.last]);
        let inside = rows.start - whole.start..rows.end - whole.start;
        y.chunks_exact(whole.len()).flat_map(|row| &row[inside.clone()]).copied().collect()
    }

    /// The rows of [`Matrix::apply`], folded; `given` is a token for each row of `x`. Logits are never held for more
    /// than one panel a thread.
    pub(super) fn fold(&self, x: &[f32], given: &[u32], phase: Phase) -> Vec<Folded> {
        let input = Input::new(x, self.weights.cols(), phase);
        let tasks = (0..self.rows()).step_by(PANELS_PER_FOLD * PANEL).collect::<Vec<_>>();
        let parts = tasks.into_par_iter().map(|start| {
            let mut partials = vec![Partial::default(); given.len()];
            let mut tile = vec![0.0; input.padded * PANEL];
            let end = self.rows().min(start + PANELS_PER_FOLD * PANEL);
            for first_row in (start..end).step_by(PANEL) {
                input.multiply(&self.weights, first_row / PANEL, &mut tile);
                self.take(&mut partials, first_row, &mut tile, given);
            }
            partials
        });
        let parts: Vec<_> = parts.collect();
        let rows = (0..given.len()).into_par_iter().map(|row| {
            let mut all = Partial::default();
            parts.iter().for_each(|part| all.merge(part[row]));
            all.folded()
        });
        rows.collect()
    }

    /// Folds the outputs of one panel, `[padded, PANEL]`.
    fn take(&self, partials: &mut [Partial], first_row: usize, tile: &mut [f32], given: &[u32]) {
        let width = PANEL.min(self.rows() - first_row);
        #[expect(clippy::cast_possible_truncation, reason = "token ids have 32 bits")]
        let first = first_row as u32;
        let rows = partials.iter_mut().zip(tile.as_chunks_mut::<PANEL>().0).zip(given);
        for ((partial, logits), &given) in rows {
            if let Some(bias) = &self.bias {
                logits.iter_mut().zip(&bias[first_row..]).for_each(|(logit, bias)| *logit += bias);
            }
            vectorized(
                #[inline(always)]
                || match width {
                    PANEL => partial.take(first, logits, given),
                    _ => partial.take(first, &logits[..width], given),
                },
            );
        }
    }
}

/// Brings the panels' outputs, `[panels, padded, PANEL]`, into rows `[t, n]`, and adds the bias.
fn untile(tiles: &[f32], input: &Input<'_>, n: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = floats(input.rows * n);
    let rows = y.par_chunks_exact_mut(n).with_min_len(FLOATS_PER_TASK / n);
    rows.enumerate().for_each(|(row, y)| {
        for (y, tile) in y.chunks_mut(PANEL).zip(tiles.chunks_exact(input.padded * PANEL)) {
            y.copy_from_slice(&tile[row * PANEL..][..y.len()]);
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    });
    y
}

/// What matrices are applied to.
struct Input<'a> {
    /// `[t, k]`.
    x: &'a [f32],
    /// The last rows of `x`, filled up to a block; empty if there are none left over.
    last: Vec<f32>,
    k: usize,
    phase: Phase,
    /// `t`.
    rows: usize,
    /// Rows of a panel's output.
    padded: usize,
}

impl<'a> Input<'a> {
    fn new(x: &'a [f32], k: usize, phase: Phase) -> Self {
        let rows = x.len() / k;
        let (last, padded) = match phase {
            Phase::Prefill => {
                let mut last = x[rows / BLOCK * BLOCK * k..].to_vec();
                last.resize(last.len().next_multiple_of(BLOCK * k), 0.0);
                (last, rows.next_multiple_of(BLOCK))
            }
            Phase::Decode => (Vec::new(), rows),
        };
        Self { x, last, k, phase, rows, padded }
    }

    /// `x W^T` for one panel of the weights: `tile` is `[padded, PANEL]`.
    fn multiply(&self, weights: &Panels, panel: usize, tile: &mut [f32]) {
        let k = self.k;
        match self.phase {
            Phase::Prefill => UNPACKED.with_borrow_mut(|columns| {
                // Grows only; a smaller matrix uses its beginning.
                columns.resize(columns.len().max(k), [0.0; PANEL]);
                let columns = &mut columns[..k];
                vectorized(
                    #[inline(always)]
                    || weights.unpack(panel, 0, columns),
                );
                let w = columns.as_flattened();
                let blocks = self.x.chunks_exact(BLOCK * k).chain(self.last.chunks_exact(BLOCK * k));
                for (tile, x) in tile.chunks_exact_mut(BLOCK * PANEL).zip(blocks) {
                    Product { x, x_step: k, w, shape: [BLOCK, PANEL, k], scale: 1.0 }.run(tile, PANEL, false);
                }
            }),
            Phase::Decode => Arch::new().dispatch(FewRows { panels: weights, panel, x: self.x, tile }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{self, Scheme};

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

    fn matrix(scheme: Scheme, n: usize, k: usize) -> Matrix {
        let weights = Arc::new(Panels::new(&quant::encode(scheme, &noise(1, n * k), n, k)));
        Matrix { weights, bias: Some(noise(2, n)) }
    }

    fn same(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
    }

    /// The claim that the whole CPU pass rests on: a row's bits depend neither on the other rows, nor
    /// on its place among them, nor on the threads.
    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let pools =
            [1, 3].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
        // Inner lengths on both sides of gemm's cuts at 512 and 1024; outputs ragged.
        for (n, k) in [(1, 8), (33, 64), (130, 576), (67, 1536), (300, 1032)] {
            let matrix = matrix(Scheme::F32, n, k);
            let row = noise(3, k);
            for phase in [Phase::Prefill, Phase::Decode] {
                let alone = matrix.apply(&row, phase);
                let folded = matrix.fold(&row, &[0], phase)[0];
                for (seed, rows) in (5..).zip([2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70]) {
                    let mut x = noise(seed, rows * k);
                    for place in [0, rows / 2, rows - 1] {
                        x[place * k..][..k].copy_from_slice(&row);
                    }
                    for pool in &pools {
                        let y = pool.install(|| matrix.apply(&x, phase));
                        let folds = pool.install(|| matrix.fold(&x, &vec![0; rows], phase));
                        for place in [0, rows / 2, rows - 1] {
                            let case = format!("[{n}, {k}]: row {place} of {rows} in {phase:?}");
                            assert!(same(&y[place * n..][..n], &alone), "{case}");
                            assert_eq!(folds[place], folded, "{case}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_right() {
        for scheme in [Scheme::F32, Scheme::F16, Scheme::Int8, Scheme::Int4 { group: 32 }, Scheme::Nf4B64] {
            for (n, k, rows) in [(19, 88, 11), (100, 1064, 18), (48, 64, 16)] {
                let (matrix, x) = (matrix(scheme, n, k), noise(3, rows * k));
                let (values, bias) =
                    (quant::decode(&quant::encode(scheme, &noise(1, n * k), n, k)), noise(2, n));
                for phase in [Phase::Prefill, Phase::Decode] {
                    let y = matrix.apply(&x, phase);
                    assert_eq!(y.len(), rows * n);
                    for (i, y) in y.iter().enumerate() {
                        let terms = x[i / n * k..][..k].iter().zip(&values[i % n * k..][..k]);
                        let terms: Vec<_> = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
                        let want = terms.iter().sum::<f64>() + f64::from(bias[i % n]);
                        // At most k + 1 roundings on the way of any term (Higham, 3.1), each of half an ulp.
                        let size =
                            terms.iter().map(|term| term.abs()).sum::<f64>() + f64::from(bias[i % n].abs());
                        let bound = (k + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size * 1.001;
                        assert!((f64::from(*y) - want).abs() <= bound, "{y} for {want}, bound {bound:e}");
                    }
                }
            }
        }
    }

    /// What is folded are the outputs, bit for bit, whatever the ends of panels and tasks.
    #[test]
    fn folds_are_those_of_the_outputs() {
        let (n, k, rows) = (1613, 40, 19);
        assert!(n > 2 * PANELS_PER_FOLD * PANEL && !n.is_multiple_of(PANEL));
        let (matrix, x) = (matrix(Scheme::Int8, n, k), noise(3, rows * k));
        let given: Vec<u32> = (0..19).map(|row| row * 7919 % 1613).collect();
        for phase in [Phase::Prefill, Phase::Decode] {
            let y = matrix.apply(&x, phase);
            for rows in [0..1024, 1024..1613] {
                let part = matrix.apply_rows(&x, rows.clone(), phase);
                for (y, part) in y.chunks_exact(n).zip(part.chunks_exact(rows.len())) {
                    assert!(same(&y[rows.clone()], part), "{rows:?}");
                }
            }
            for ((y, folded), &given) in y.chunks_exact(n).zip(matrix.fold(&x, &given, phase)).zip(&given) {
                assert_eq!(folded.given_logit, y[given as usize]);
                assert_eq!(folded.max_logit, y[folded.argmax as usize]);
                assert!(y.iter().all(|logit| *logit <= folded.max_logit));
                let want = y.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
                // Logits are below 32: exp's 2 ulp, its argument's half and the result's half ulp of 16.
                assert!((f64::from(folded.log_sum_exp) - want).abs() <= 18.0 * f64::from(f32::EPSILON));
            }
        }
    }
}
