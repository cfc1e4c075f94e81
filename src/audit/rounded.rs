//! What roundings other than the nearest keep of an update, from the weights alone.

use std::collections::HashMap;

use super::codes::CodesPlan;
use super::codes::pair::Pair;
use crate::checkpoint::Tensor;
use crate::error::Result;
use crate::quant::{Precision, Rows, decode, encode, round};

/// Weights of each checkpoint that are held at a time (or a few rows, if that is more).
pub(super) const BLOCK: usize = 1 << 21;

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

    pub(super) fn add(&mut self, target: &[f32], unlearned: &[f32], from: &[f32], to: &[f32]) {
        for (((&old, &new), &from), &to) in target.iter().zip(unlearned).zip(from).zip(to) {
            let delta = f64::from(new) - f64::from(old);
            self.update += delta * delta;
            self.kept += (f64::from(to) - f64::from(from)) * delta;
        }
    }
}

/// Streams the plan's checkpoints once and rounds the unlearned one at every precision that quantizes; gives the tallies with
/// the bytes read. The plan's schemes are not looked at.
///
/// `watch` is told how many of how many weights are done.
///
/// # Errors
///
/// If a weight cannot be read, or the two have other layers or shapes.
pub(super) fn tally(
    plan: &CodesPlan,
    precisions: &[Precision],
    watch: &mut dyn FnMut(u64, u64),
) -> Result<(Vec<Tally>, u64)> {
    let pair = Pair::open(plan)?;
    let blocks: Vec<_> = pair.blocks(BLOCK).into_iter().filter(|block| block.matrix.is_some()).collect();
    let total = blocks.iter().map(|block| block.weights()).sum();
    let mut tallies = vec![Tally::default(); precisions.len()];
    let mut done = 0;
    for block in &blocks {
        let [rows, cols] = block.shape();
        let [old, new] = pair.read(block)?.each_ref().map(Tensor::to_f32);
        // Several roundings of one scheme have one Q(t).
        let mut targets = HashMap::new();
        for (tally, precision) in tallies.iter_mut().zip(precisions) {
            let Precision::Quantized(scheme, rounding) = *precision else { continue };
            let from = targets.entry(scheme).or_insert_with(|| decode(&encode(scheme, &old, rows, cols)));
            let (target, tensor, first) = (Some(&old[..]), block.name(), block.first());
            let rounded = round(scheme, rounding, Rows { weights: &new, target, rows, cols, tensor, first });
            tally.weights += new.len() as u64;
            tally.moved += rounded.moved;
            tally.add(&old, &new, from, &decode(&rounded.packed));
        }
        done += block.weights();
        watch(done, total);
    }
    Ok((tallies, pair.disk_bytes()))
}
