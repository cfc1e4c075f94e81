//! Entropy of each row, and the rank of a given token, chunk by chunk of the vocabulary.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::case::{ULP, exp_error, noise};
use super::fold::chunks;
use super::link::{FOLD_STATE, file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, FOLD_CHUNK, FoldState, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::metrics::divergence;

const WG: u32 = 64;

params!(Params { rows: u32, n: u32, first: u32, unused: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "entropy", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("entropy".to_owned(), file!("entropy.wgsl")).with_index();
    source.parts.push(FOLD_STATE);
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// What the shader keeps of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct EntropyState {
    /// In nats.
    pub entropy: f32,
    /// Tokens before the given one in the order of likelihood, equal ones by token.
    pub before: u32,
    unused: [u32; 2],
}

/// Adds up entropies and ranks.
#[derive(Clone, Debug)]
pub struct Entropy {
    pipeline: Arc<Pipeline>,
}

/// What [`Entropy::record`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[rows, n]` f32.
    pub logits: &'a Buffer,
    /// `[rows]` u32.
    pub given: &'a Buffer,
    /// `[rows]` [`FoldState`] of the whole vocabulary.
    pub states: &'a Buffer,
    /// `[rows]` [`EntropyState`], set by the first chunk.
    pub details: &'a Buffer,
}

impl Entropy {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source())? })
    }

    /// Records one chunk, columns `first..first + n` of the vocabulary; chunks in order.
    pub fn record(
        &self,
        commands: &mut Commands,
        operands: Operands<'_>,
        rows: usize,
        n: usize,
        first: usize,
    ) {
        let Operands { logits, given, states, details } = operands;
        let params = Params { rows: small(rows), n: small(n), first: small(first), unused: 0 };
        let buffers = [("logits", logits), ("given", given), ("states", states), ("details", details)];
        commands.dispatch(&self.pipeline, &params, &buffers, Grid::flat(rows), moving(4 * rows * n));
    }
}

fn cases() -> Vec<Case> {
    [(1, 1, false), (3, 65, false), (7, 1024, false), (5, 2500, false), (64, 32_768, true)]
        .into_iter()
        .map(|(rows, vocab, timed)| Case {
            name: format!("entropy/ m={rows} v={vocab}"),
            work: Work::Bytes(4 * (rows * vocab) as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, rows, vocab)),
        })
        .collect()
}

/// The statistics that folding leaves of `row`, rounded once.
#[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
pub(super) fn fold_state(row: &[f32], given: u32) -> FoldState {
    let top = row.iter().copied().fold(f32::MIN, f32::max);
    let sum = row.iter().map(|logit| (f64::from(*logit) - f64::from(top)).exp()).sum::<f64>() as f32;
    let argmax = row.iter().position(|logit| *logit == top).unwrap_or_default();
    FoldState { top, sum, given_logit: row[given as usize], argmax: small(argmax) }
}

fn prepare(gpu: &Gpu, rows: usize, vocab: usize) -> Result<Prepared> {
    // From nearly flat to peaky, and with ties.
    let logits: Vec<f32> = noise(53, rows * vocab)
        .chunks(vocab)
        .enumerate()
        .flat_map(|(row, x)| x.iter().map(move |x| (x * (1.0 + 4.0 * row as f32) * 8.0).round() / 8.0))
        .collect();
    let given: Vec<u32> = (0..rows).map(|row| small((row * 997 + vocab / 2) % vocab)).collect();
    let states: Vec<_> =
        logits.chunks(vocab).zip(&given).map(|(row, given)| fold_state(row, *given)).collect();
    let [given_buffer, states] = [gpu.upload("given", &given)?, gpu.upload("states", &states)?];
    let chunks = chunks(gpu, &logits, vocab)?;
    let details = gpu.alloc("details", (16 * rows) as u64)?;
    let want =
        move || logits.chunks(vocab).zip(&given).flat_map(|(row, given)| reference(row, *given)).collect();
    let kernel = Entropy::new(gpu)?;
    let outputs = vec![Output { name: "details", buffer: details.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        for (first, n, logits) in &chunks {
            let operands = Operands { logits, given: &given_buffer, states: &states, details: &details };
            kernel.record(commands, operands, rows, *n, *first);
        }
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin: the state of one row.
fn reference(row: &[f32], given: u32) -> [Want; 4] {
    let whole = divergence::log_sum_exp(row);
    let value = divergence::entropy(row, whole);
    let depth = row.len().div_ceil(WG as usize) + WG as usize + row.len().div_ceil(FOLD_CHUNK);
    let terms = row.iter().map(|logit| {
        let surprise = whole - f64::from(*logit);
        let p = (-surprise).exp();
        // log is good to 2^-21 near 1 and 3 ulp elsewhere; then two differences.
        let shift = 2f64.powi(-21) + 5.0 * ULP * (whole.abs() + surprise.abs() + f64::from(logit.abs()));
        p * surprise.abs() * (exp_error(surprise) + depth as f64 * ULP) + p * (1.0 + surprise.abs()) * shift
    });
    let asked = row[given as usize];
    let before =
        row.iter().enumerate().filter(|(token, x)| **x > asked || (**x == asked && small(*token) < given));
    [
        Want::Near { value, bound: terms.sum() },
        Want::Exactly(small(before.count())),
        Want::Exactly(0),
        Want::Exactly(0),
    ]
}
