//! What roundings other than the nearest keep of an update, from the weights alone.

use std::collections::HashMap;

use super::codes::CodesPlan;
use super::codes::pair::Pair;
use super::fate::{Fate, MatrixFate};
use crate::checkpoint::Tensor;
use crate::error::Result;
use crate::quant::{Precision, Rows, decode, encode, round};

/// Weights of each checkpoint that are held at a time (or a few rows, if that is more).
pub(super) const BLOCK: usize = 1 << 21;

/// What one rounding did to one matrix, or to several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) weights: u64,
    /// Codes that are not the nearest.
    pub(super) moved: u64,
    /// With nearest rounding of the target.
    pub(super) fate: Fate,
}

impl Tally {
    pub(super) fn add(&mut self, target: &[f32], unlearned: &[f32], from: &[f32], to: &[f32]) {
        for (((&old, &new), &from), &to) in target.iter().zip(unlearned).zip(from).zip(to) {
            let delta = f64::from(new) - f64::from(old);
            let quantized = f64::from(to) - f64::from(from);
            self.fate.update += delta * delta;
            self.fate.kept += quantized * delta;
            self.fate.changed += u64::from(delta != 0.0);
            self.fate.absorbed += u64::from(delta != 0.0 && quantized == 0.0);
        }
    }
}

/// What several roundings did.
pub(super) struct Tallies {
    /// The matrices' layers and modules.
    pub(super) places: Vec<(Option<usize>, &'static str)>,
    /// By precision, then by matrix.
    pub(super) tallies: Vec<Vec<Tally>>,
    /// Bytes read.
    pub(super) bytes: u64,
}

impl Tallies {
    /// Codes that are not the nearest, of how many, at the precision of this number.
    pub(super) fn moved(&self, precision: usize) -> (u64, u64) {
        let tallies = self.tallies[precision].iter();
        tallies.fold((0, 0), |(moved, all), tally| (moved + tally.moved, all + tally.weights))
    }

    /// What became of every matrix's update at the precision of this number.
    pub(super) fn fates(&self, precision: usize) -> Vec<MatrixFate> {
        let both = self.places.iter().zip(&self.tallies[precision]);
        both.map(|(&(layer, module), tally)| MatrixFate { layer, module, fate: tally.fate }).collect()
    }
}

/// Streams the plan's checkpoints once and rounds the unlearned one at every precision that quantizes. The plan's schemes are
/// not looked at.
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
) -> Result<Tallies> {
    let pair = Pair::open(plan)?;
    let blocks: Vec<_> = pair.blocks(BLOCK).into_iter().filter(|block| block.matrix.is_some()).collect();
    let total = blocks.iter().map(|block| block.weights()).sum();
    let places: Vec<_> = pair.places().collect();
    let mut tallies = vec![vec![Tally::default(); places.len()]; precisions.len()];
    let mut done = 0;
    for block in &blocks {
        let [rows, cols] = block.shape();
        let [old, new] = pair.read(block)?.each_ref().map(Tensor::to_f32);
        // Several roundings of one scheme have one Q(t).
        let mut targets = HashMap::new();
        for (tallies, precision) in tallies.iter_mut().zip(precisions) {
            let Precision::Quantized(scheme, rounding) = *precision else { continue };
            let Some(tally) = block.matrix.map(|matrix| &mut tallies[matrix]) else { continue };
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
    Ok(Tallies { places, tallies, bytes: pair.disk_bytes() })
}
