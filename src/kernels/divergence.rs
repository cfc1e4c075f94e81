//! What sets the logits of two arms apart, chunk by chunk of the vocabulary.

use std::sync::Arc;

use super::case::{ULP, exp_error, noise, unwritten};
use super::entropy::fold_state;
use super::fold::chunks;
use super::link::{FOLD_STATE, file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, FOLD_CHUNK, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::metrics::divergence::{Divergence, log_sum_exp};

const WG: u32 = 64;

params!(Params { rows: u32, n: u32, first: u32, unused: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "divergence", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("divergence".to_owned(), file!("divergence.wgsl")).with_index();
    source.parts.push(FOLD_STATE);
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// A row's sums as the shader keeps them: KL(p || q), KL(q || p), Jensen-Shannon, total variation.
pub type DivergenceState = [f32; 4];

/// Adds up divergences.
#[derive(Clone, Debug)]
pub struct Diverge {
    pipeline: Arc<Pipeline>,
}

/// What [`Diverge::record`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[rows, n]` f32 logits: p.
    pub reference: &'a Buffer,
    /// `[rows, n]` f32 logits: q.
    pub arm: &'a Buffer,
    /// `[rows]` [`super::FoldState`] of the reference's whole vocabulary.
    pub before: &'a Buffer,
    /// The arm's.
    pub after: &'a Buffer,
    /// `[rows]` [`DivergenceState`], set by the first chunk.
    pub sums: &'a Buffer,
}

impl Diverge {
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
        let Operands { reference, arm, before, after, sums } = operands;
        let params = Params { rows: small(rows), n: small(n), first: small(first), unused: 0 };
        let buffers =
            [("reference", reference), ("arm", arm), ("before", before), ("after", after), ("sums", sums)];
        // Some forty operations for the two logits.
        commands.dispatch(&self.pipeline, &params, &buffers, Grid::flat(rows), moving(8 * rows * n));
    }
}

fn cases() -> Vec<Case> {
    [(1, 1, false), (6, 65, false), (6, 1024, false), (12, 2500, false), (64, 32_768, true)]
        .into_iter()
        .map(|(rows, vocab, timed)| Case {
            name: format!("divergence/ m={rows} v={vocab}"),
            work: Work::Bytes(8 * (rows * vocab) as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, rows, vocab)),
        })
        .collect()
}

fn prepare(gpu: &Gpu, rows: usize, vocab: usize) -> Result<Prepared> {
    let reference: Vec<f32> = noise(59, rows * vocab).iter().map(|x| 6.0 * x).collect();
    // From equal and hardly different to another distribution altogether; and shifted, which changes nothing.
    let amounts = [0.0, 1e-4, 1e-2, 0.3, 3.0, 40.0];
    let change = noise(61, rows * vocab);
    let arm: Vec<f32> = (0..rows * vocab)
        .map(|i| reference[i] + amounts[i / vocab % amounts.len()] * change[i] + (i / vocab / 6) as f32)
        .collect();
    let state = |logits: &[f32]| {
        let states: Vec<_> = logits.chunks(vocab).map(|row| fold_state(row, 0)).collect();
        gpu.upload("states", &states)
    };
    let (before, after) = (state(&reference)?, state(&arm)?);
    let (p, q) = (chunks(gpu, &reference, vocab)?, chunks(gpu, &arm, vocab)?);
    let sums = unwritten(gpu, "sums", 4 * rows)?;
    let want = move || reference.chunks(vocab).zip(arm.chunks(vocab)).flat_map(|(p, q)| twin(p, q)).collect();
    let kernel = Diverge::new(gpu)?;
    let outputs = vec![Output { name: "sums", buffer: sums.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        for ((first, n, reference), (_, _, arm)) in p.iter().zip(&q) {
            let operands = Operands { reference, arm, before: &before, after: &after, sums: &sums };
            kernel.record(commands, operands, rows, *n, *first);
        }
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin: one row's sums, with bounds.
fn twin(p: &[f32], q: &[f32]) -> [Want; 4] {
    let wholes = [log_sum_exp(p), log_sum_exp(q)];
    let mut value = Divergence::default();
    value.add(p, q, wholes);
    let depth = p.len().div_ceil(WG as usize) + WG as usize + p.len().div_ceil(FOLD_CHUNK);
    let summed = depth as f64 * ULP;
    let [mut kl, mut reverse_kl, mut jensen_shannon, mut total_variation] = [0.0; 4];
    // Two logs, good to 2^-21 near 1 and 3 ulp elsewhere, of sums that were rounded, and the differences of the maxima.
    let shift_error = 2.0 * 2f64.powi(-21) + 8.0 * ULP * (1.0 + wholes[0].abs() + wholes[1].abs());
    for (x, y) in p.iter().zip(q).map(|(x, y)| (f64::from(*x), f64::from(*y))) {
        let (log_p, log_q) = (x - wholes[0], y - wholes[1]);
        let (p, q, d) = (log_p.exp(), log_q.exp(), log_q - log_p);
        let mut term = Divergence::default();
        #[expect(clippy::cast_possible_truncation, reason = "was f32")]
        term.add(&[x as f32], &[y as f32], wholes);
        // Of d itself; p and q have the error of exp and of its argument.
        let d_error = shift_error + 2.0 * ULP * ((y - x).abs() + d.abs());
        let exp = |log: f64, logit: f64| exp_error(log) + shift_error + 4.0 * ULP * (log.abs() + logit.abs());
        let (p_error, q_error) = (exp(log_p, x), exp(log_q, y));
        let nearly = d.abs() < 0.5 + 1e-3;
        // A sum of what nearly cancels has the error of its parts; a series that of its leading factors.
        let parts = |p: f64, q: f64, term: f64| {
            let series = if nearly { term * (p_error + q_error + 16.0 * ULP) } else { 0.0 };
            let plain = (p * (1.0 + d.abs()) + q) * (p_error.max(q_error) + 4.0 * ULP);
            series + if d.abs() > 0.5 - 1e-3 { plain } else { 0.0 }
        };
        kl += parts(p, q, term.kl) + (q - p).abs() * d_error + term.kl * summed;
        reverse_kl += parts(q, p, term.reverse_kl) + (q - p).abs() * d_error + term.reverse_kl * summed;
        let relative = p_error + q_error + 16.0 * ULP + summed;
        // d/dd of the terms of Jensen-Shannon is at most that of total variation.
        let moved = 0.5 * (p + q) * (d_error + if nearly { 0.0 } else { p_error + q_error });
        jensen_shannon += term.jensen_shannon * relative + (0.5 * d).tanh().abs() * moved;
        total_variation += term.total_variation * relative + moved;
    }
    [
        (value.kl, kl),
        (value.reverse_kl, reverse_kl),
        (value.jensen_shannon, jensen_shannon),
        (value.total_variation, total_variation),
    ]
    .map(|(value, bound)| if p == q { Want::Exactly(0) } else { Want::Near { value, bound } })
}
