//! What roundings other than the nearest, and released files, keep of an update, from the weights alone.

use std::collections::HashMap;

use super::codes::CodesPlan;
use super::codes::pair::Pair;
use super::fate::{Fate, MatrixFate};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Result;
use crate::quant::{Rounding, Rows, Scheme, decode, encode, round};

/// Weights of each checkpoint that are held at a time (or a few rows, if that is more).
const BLOCK: usize = 1 << 21;

/// Where an unlearned model's quantized values come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values<'a> {
    /// From its weights, rounded so.
    Rounded(Scheme, Rounding),
    /// From a file that is in this scheme.
    Released(Scheme, &'a Checkpoint),
}

impl Values<'_> {
    fn scheme(self) -> Scheme {
        match self {
            Self::Rounded(scheme, _) | Self::Released(scheme, _) => scheme,
        }
    }
}

/// What became of one matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    weights: u64,
    /// Codes that are not the nearest; a released file does not tell its codes.
    moved: Option<u64>,
    /// With nearest rounding of the target.
    fate: Fate,
}

impl Tally {
    fn add(&mut self, target: &[f32], unlearned: &[f32], from: &[f32], to: &[f32]) {
        for (((&old, &new), &from), &to) in target.iter().zip(unlearned).zip(from).zip(to) {
            let delta = f64::from(new) - f64::from(old);
            let quantized = f64::from(to) - f64::from(from);
            self.fate.update += delta * delta;
            self.fate.kept += quantized * delta;
            self.fate.changed += u64::from(delta != 0.0);
            if let Some(absorbed) = &mut self.fate.absorbed {
                *absorbed += u64::from(delta != 0.0 && quantized == 0.0);
            }
        }
    }
}

/// What became of all matrices in several ways.
pub(super) struct Tallies {
    /// The matrices' layers and modules.
    places: Vec<(Option<usize>, &'static str)>,
    /// By way, then by matrix.
    tallies: Vec<Vec<Tally>>,
    /// Bytes read.
    pub(super) bytes: u64,
}

impl Tallies {
    /// Codes that are not the nearest, of how many, in the way of this number; `None` of a released file.
    pub(super) fn moved(&self, way: usize) -> Option<(u64, u64)> {
        let mut tallies = self.tallies[way].iter();
        tallies.try_fold((0, 0), |(moved, all), tally| Some((moved + tally.moved?, all + tally.weights)))
    }

    /// What became of every matrix's update in the way of this number.
    pub(super) fn fates(&self, way: usize) -> Vec<MatrixFate> {
        let both = self.places.iter().zip(&self.tallies[way]);
        both.map(|(&(layer, module), tally)| MatrixFate { layer, module, fate: tally.fate }).collect()
    }
}

/// Streams the plan's checkpoints once, and holds the unlearned one in each way against the target in nearest rounding. The
/// plan's schemes are not looked at.
///
/// `watch` is told how many of how many weights are done.
///
/// # Errors
///
/// If a weight cannot be read, or the two have other layers or shapes.
pub(super) fn tally(
    plan: &CodesPlan,
    ways: &[Values<'_>],
    watch: &mut dyn FnMut(u64, u64),
) -> Result<Tallies> {
    let pair = Pair::open(plan)?;
    let blocks: Vec<_> =
        pair.blocks(BLOCK).into_iter().filter_map(|block| Some((block.matrix?, block))).collect();
    let total = blocks.iter().map(|(_, block)| block.weights()).sum();
    let places: Vec<_> = pair.places().collect();
    let empty = |way: &Values<'_>| {
        let known = matches!(way, Values::Rounded(..)).then_some(0);
        Tally { moved: known, fate: Fate { absorbed: known, ..Fate::default() }, ..Tally::default() }
    };
    let mut tallies: Vec<_> = ways.iter().map(|way| vec![empty(way); places.len()]).collect();
    let mut done = 0;
    for (matrix, block) in &blocks {
        let [rows, cols] = block.shape();
        let [old, new] = pair.read(block)?.each_ref().map(Tensor::to_f32);
        // Several ways of one scheme have one Q(t).
        let mut targets = HashMap::new();
        for (tallies, &way) in tallies.iter_mut().zip(ways) {
            let (tally, scheme) = (&mut tallies[*matrix], way.scheme());
            let from = targets.entry(scheme).or_insert_with(|| decode(&encode(scheme, &old, rows, cols)));
            let to = match way {
                Values::Rounded(_, rounding) => {
                    let (target, tensor, first) = (Some(&old[..]), block.name(), block.first());
                    let rows = Rows { weights: &new, target, rows, cols, tensor, first };
                    let rounded = round(scheme, rounding, rows);
                    tally.moved = tally.moved.map(|moved| moved + rounded.moved);
                    decode(&rounded.packed)
                }
                Values::Released(_, file) => block.read(file)?.to_f32(),
            };
            tally.weights += new.len() as u64;
            tally.add(&old, &new, from, &to);
        }
        done += block.weights();
        watch(done, total);
    }
    let files = ways.iter().map(|way| match way {
        Values::Rounded(..) => 0,
        Values::Released(_, file) => file.tensors().bytes_read(),
    });
    let bytes = pair.disk_bytes() + files.sum::<u64>();
    Ok(Tallies { places, tallies, bytes })
}
