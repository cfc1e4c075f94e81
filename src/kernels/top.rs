//! The likeliest tokens of each row, chunk by chunk of the vocabulary.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::case::{noise, unwritten};
use super::fold::chunks;
use super::link::{file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

/// Few, as one lane looks through them in every turn.
const WG: u32 = 32;

/// How many tokens are kept; the shader has the same number.
pub const TOP: usize = 10;

params!(Params { rows: u32, n: u32, first: u32, unused: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "top", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("top".to_owned(), file!("top.wgsl")).with_index();
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// One of a row's likeliest tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct TopEntry {
    /// Its logit.
    pub logit: f32,
    /// The token; `u32::MAX` where the vocabulary has fewer than [`TOP`].
    pub token: u32,
}

/// Keeps the greatest logits.
#[derive(Clone, Debug)]
pub struct Top {
    pipeline: Arc<Pipeline>,
}

impl Top {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source())? })
    }

    /// Records one chunk, columns `first..first + n` of the vocabulary; chunks in order.
    ///
    /// | buffer | shape | type |
    /// |---|---|---|
    /// | `logits` | `[rows, n]` | f32 |
    /// | `best` | `[rows, TOP]` | [`TopEntry`], set by the first chunk; greatest first, equal ones by token |
    pub fn record(
        &self,
        commands: &mut Commands,
        logits: &Buffer,
        best: &Buffer,
        rows: usize,
        n: usize,
        first: usize,
    ) {
        let params = Params { rows: small(rows), n: small(n), first: small(first), unused: 0 };
        let buffers = [("logits", logits), ("best", best)];
        // Most chunks are read once or twice.
        commands.dispatch(&self.pipeline, &params, &buffers, Grid::flat(rows), moving(8 * rows * n));
    }
}

fn cases() -> Vec<Case> {
    [(1, 3, false), (3, 65, false), (7, 1024, false), (5, 2500, false), (64, 32_768, true)]
        .into_iter()
        .map(|(rows, vocab, timed)| Case {
            name: format!("top/ m={rows} v={vocab}"),
            work: Work::Bytes(4 * (rows * vocab) as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, rows, vocab)),
        })
        .collect()
}

fn prepare(gpu: &Gpu, rows: usize, vocab: usize) -> Result<Prepared> {
    let mut logits: Vec<f32> = noise(47, rows * vocab).iter().map(|x| 8.0 * x).collect();
    for (row, logits) in logits.chunks_mut(vocab).enumerate() {
        // Odd rows have runs of equal logits, across lanes and chunks; every third one rises, which is the worst case.
        if row % 2 == 1 {
            logits.iter_mut().for_each(|logit| *logit = logit.round());
        }
        if row % 3 == 2 {
            logits.sort_by(f32::total_cmp);
        }
    }
    let chunks = chunks(gpu, &logits, vocab)?;
    let best = unwritten(gpu, "best", 2 * TOP * rows)?;
    let want = move || logits.chunks(vocab).flat_map(reference).collect();
    let kernel = Top::new(gpu)?;
    let outputs = vec![Output { name: "best", buffer: best.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        for (first, n, logits) in &chunks {
            kernel.record(commands, logits, &best, rows, *n, *first);
        }
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The twin: a sort. There is nothing to round.
fn reference(row: &[f32]) -> Vec<Want> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let mut best: Vec<_> = order.iter().take(TOP).map(|token| (row[*token], small(*token))).collect();
    best.resize(TOP, (-3.4e38, u32::MAX));
    best.iter().flat_map(|(logit, token)| [Want::Exactly(logit.to_bits()), Want::Exactly(*token)]).collect()
}
