//! Folds logits, chunk by chunk of the vocabulary, into log-sum-exp, argmax and a given token's logit.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::case::{ULP, exp_error, noise, unwritten};
use super::link::{FOLD_STATE, file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;

/// Vocabulary columns in a chunk. Part of the arithmetic: another number may change the last bits.
pub const FOLD_CHUNK: usize = 1024;

params!(Params { rows: u32, n: u32, first: u32, unused: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "fold", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("fold".to_owned(), file!("fold.wgsl")).with_index();
    source.parts.push(FOLD_STATE);
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// One row's statistics, as the shader keeps them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct FoldState {
    /// The greatest logit.
    pub top: f32,
    /// Sum of `exp(logit - top)`.
    pub sum: f32,
    /// Logit of the given token.
    pub given_logit: f32,
    /// The token of the greatest logit, the lowest among equals.
    pub argmax: u32,
}

impl FoldState {
    /// Natural log of the sum of `exp(logit)`.
    #[must_use]
    pub fn log_sum_exp(&self) -> f32 {
        self.top + self.sum.ln()
    }
}

/// Folds chunks of logits.
#[derive(Clone, Debug)]
pub struct Fold {
    pipeline: Arc<Pipeline>,
}

impl Fold {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source())? })
    }

    /// Records the fold of one chunk, columns `first..first + n` of the vocabulary; chunks in order.
    ///
    /// | buffer | shape | type |
    /// |---|---|---|
    /// | `logits` | `[rows, n]` | f32 |
    /// | `given` | `[rows]` | u32 |
    /// | `states` | `[rows]` | [`FoldState`], set by the first chunk |
    #[expect(clippy::too_many_arguments, reason = "three buffers and their three sizes")]
    pub fn record(
        &self,
        commands: &mut Commands,
        logits: &Buffer,
        given: &Buffer,
        states: &Buffer,
        rows: usize,
        n: usize,
        first: usize,
    ) {
        let params = Params { rows: small(rows), n: small(n), first: small(first), unused: 0 };
        let buffers = [("logits", logits), ("given", given), ("states", states)];
        commands.dispatch(&self.pipeline, &params, &buffers, Grid::flat(rows), moving(4 * rows * n));
    }
}

fn cases() -> Vec<Case> {
    [(1, 1, false), (3, 65, false), (7, 1024, false), (5, 2500, false), (64, 32_768, true)]
        .into_iter()
        .map(|(rows, vocab, timed)| Case {
            name: format!("fold/ m={rows} v={vocab}"),
            work: Work::Bytes(2 * 4 * (rows * vocab) as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, rows, vocab)),
        })
        .collect()
}

/// Rows of `vocab` logits on the device, a chunk of the vocabulary at a time: its first column, its width, `[rows, n]`.
pub(super) fn chunks(gpu: &Gpu, logits: &[f32], vocab: usize) -> Result<Vec<(usize, usize, Buffer)>> {
    let chunk = |first: usize| {
        let n = FOLD_CHUNK.min(vocab - first);
        let rows = logits.chunks(vocab).flat_map(|row| &row[first..first + n]);
        Ok((first, n, gpu.upload("logits", &rows.copied().collect::<Vec<f32>>())?))
    };
    (0..vocab).step_by(FOLD_CHUNK).map(chunk).collect()
}

fn prepare(gpu: &Gpu, rows: usize, vocab: usize) -> Result<Prepared> {
    // Peaky, and with equal maxima in different lanes and chunks.
    let mut logits: Vec<f32> = noise(41, rows * vocab).iter().map(|x| 8.0 * x).collect();
    for (row, logits) in logits.chunks_mut(vocab).enumerate() {
        for column in [vocab / 3, vocab / 3 + 70, vocab - 1] {
            if row % 2 == 0 && column < vocab {
                logits[column] = 40.0;
            }
        }
    }
    let given: Vec<u32> = (0..rows).map(|row| small((row * 997 + vocab / 2) % vocab)).collect();
    let given_buffer = gpu.upload("given", &given)?;
    let chunks = chunks(gpu, &logits, vocab)?;
    let states = unwritten(gpu, "states", 4 * rows)?;
    let want =
        move || logits.chunks(vocab).zip(&given).flat_map(|(row, given)| reference(row, *given)).collect();
    let kernel = Fold::new(gpu)?;
    let outputs = vec![Output { name: "states", buffer: states.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        for (first, n, logits) in &chunks {
            kernel.record(commands, logits, &given_buffer, &states, rows, *n, *first);
        }
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin: the state of one row.
fn reference(row: &[f32], given: u32) -> [Want; 4] {
    let top = row.iter().copied().fold(f32::MIN, f32::max);
    let argmax = row.iter().position(|logit| *logit == top).unwrap_or_default();
    let terms = row.iter().map(|logit| (f64::from(*logit) - f64::from(top), f64::from(*logit)));
    let chunks = row.len().div_ceil(FOLD_CHUNK);
    // A lane's running sum; then, lane by lane and chunk by chunk, two products with exp of a difference
    // (3 ulp and one for its own rounding) and a sum; and as much for every rise of a lane's maximum. The
    // differences of a chain add up to no more than the spread of the logits, once for each of the
    // four levels: lane, lanes, chunks, and the term's own.
    let rises = 16;
    let depth = FOLD_CHUNK.div_ceil(WG as usize) + (WG as usize + chunks + rises) * (2 + 4);
    let (sum, bound) = terms.fold((0.0, 0.0), |(sum, bound), (x, _): (f64, f64)| {
        (sum + x.exp(), bound + x.exp() * (4.0 * exp_error(x) + depth as f64 * ULP))
    });
    [
        Want::Exactly(top.to_bits()),
        Want::Near { value: sum, bound },
        Want::Exactly(row[given as usize].to_bits()),
        Want::Exactly(small(argmax)),
    ]
}
