//! What roundings other than the nearest keep of an update, from the weights alone.

use super::codes::pair::{Matrix, matrices};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::check_tensors;
use crate::quant::{Precision, Rows, decode, encode, round};

/// Weights of each checkpoint that are held at a time (or 8 rows, if that is more).
const BLOCK: usize = 1 << 21;

/// Rows come in multiples of this, so that no block of a table scheme is cut: columns are multiples of 8.
const ROWS: usize = 8;

/// What one rounding did to all quantized matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) weights: u64,
    /// Codes that are not the nearest.
    pub(super) moved: u64,
    /// `<u - t, u - t>`.
    update: f64,
    /// `<Q(u) - Q(t), u - t>`, with nearest rounding of `t`.
    kept: f64,
}

impl Tally {
    /// What is left of the update; `None` without one, or if a value is beyond f32.
    pub(super) fn survival(&self) -> Option<f64> {
        (self.update > 0.0).then_some(self.kept / self.update).filter(|share| share.is_finite())
    }

    fn add(&mut self, target: &[f32], unlearned: &[f32], from: &[f32], to: &[f32]) {
        for (((&old, &new), &from), &to) in target.iter().zip(unlearned).zip(from).zip(to) {
            let delta = f64::from(new) - f64::from(old);
            self.update += delta * delta;
            self.kept += (f64::from(to) - f64::from(from)) * delta;
        }
    }
}

/// Streams both checkpoints once and rounds the unlearned one at every precision; gives the tallies with the bytes read.
///
/// `watch` is told how many of how many weights are done.
///
/// # Errors
///
/// If a weight cannot be read, or the two have other layers or shapes.
pub(super) fn tally(
    [target, unlearned]: [&std::path::Path; 2],
    precisions: &[Precision],
    quantize_head: bool,
    watch: &mut dyn FnMut(u64, u64),
) -> Result<(Vec<Tally>, u64)> {
    let (target, unlearned) = (Checkpoint::open(target)?, Checkpoint::open(unlearned)?);
    check_tensors(&target)?;
    check_tensors(&unlearned)?;
    let matrices = matrices(&target, &unlearned, quantize_head)?;
    let total = matrices.iter().map(|matrix| matrix.shape.iter().product::<usize>() as u64).sum();
    let mut tallies = vec![Tally::default(); precisions.len()];
    let mut done = 0;
    for Matrix { name, shape, .. } in &matrices {
        let [rows, cols] = *shape;
        let step = ROWS * (BLOCK / (ROWS * cols)).max(1);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            let read = |checkpoint: &Checkpoint| {
                checkpoint.tensors().read_rows(name, shape, range.clone()).map(|tensor| tensor.to_f32())
            };
            let (old, new) = (read(&target)?, read(&unlearned)?);
            for (tally, precision) in tallies.iter_mut().zip(precisions) {
                let Precision::Quantized(scheme, rounding) = *precision else { continue };
                let what = Rows {
                    weights: &new,
                    target: Some(&old),
                    rows: range.len(),
                    cols,
                    tensor: name,
                    first: (start * cols) as u64,
                };
                let rounded = round(scheme, rounding, what);
                tally.weights += new.len() as u64;
                tally.moved += rounded.moved;
                let from = decode(&encode(scheme, &old, range.len(), cols));
                tally.add(&old, &new, &from, &decode(&rounded.packed));
            }
            done += new.len() as u64;
            watch(done, total);
        }
    }
    Ok((tallies, target.tensors().bytes_read() + unlearned.tensors().bytes_read()))
}
