//! How a model lies in the device's memory, and what each part of that takes.

use super::cache::Caches;
use super::inputs::Inputs;
use super::parts::{BlockBytes, Kind, kinds};
use super::scratch::Scratch;
use super::{STATES_ALIGNED, Source};
use crate::checkpoint::Config;
use crate::error::Result;
use crate::kernels::{DivergenceState, EntropyState, FoldState, KvFormat, TOP, TopEntry};
use crate::model::{PAGE, Work};
use crate::quant::Precision;

/// Where weights are between passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// On the device.
    Resident,
    /// On disk; blocks of them pass through the device.
    Streamed {
        /// Whether there is room for the next block while one is in use.
        overlap: bool,
    },
}

/// What one kind of work gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Batches of each arm in a pass.
    pub batches: usize,
    /// Pages of each arm's cache (generation), or of the one that all share (scoring).
    pub pages: usize,
}

/// How a model lies in memory; no choice but that of the cache's format changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens in a batch, and wanted rows.
    pub tokens: usize,
    /// For scoring.
    pub score: Share,
    /// For generation.
    pub generate: Share,
    /// Where weights are between passes.
    pub residence: Residence,
    /// How keys and values are kept: the one choice here that changes results.
    pub kv: KvFormat,
    /// Whether residual streams wait in host memory between blocks.
    pub spill: bool,
    /// Rows of the head that are loaded together, a multiple of [`crate::kernels::FOLD_CHUNK`].
    pub head_rows: usize,
}

impl Layout {
    /// What `work` gets.
    #[must_use]
    pub fn share(&self, work: Work) -> Share {
        match work {
            Work::Score => self.score,
            Work::Generate => self.generate,
        }
    }
}

/// Bytes of the parts of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// All weights, packed for all arms.
    pub weights: u64,
    /// The largest block, packed for all arms.
    pub block: u64,
    /// The largest two neighbouring blocks.
    pub two_blocks: u64,
    /// Through which stored weights pass on their way, at most.
    pub staging: u64,
    /// Read from all checkpoints for a pass; without the embedding where it is not the head.
    pub read: u64,
    /// Uploaded for a pass.
    pub uploaded: u64,
    /// The part of `read` that is the head.
    pub head: u64,
}

impl Sizes {
    /// Of these arms' weights.
    ///
    /// # Errors
    ///
    /// If a checkpoint lacks a tensor or has one of an unsupported dtype.
    pub fn of(sources: &[Source], quantize_head: bool, head_rows: usize) -> Result<Self> {
        let mut by_checkpoint: Vec<(&Source, Vec<Precision>)> = Vec::new();
        for source in sources {
            let same =
                |known: &&mut (&Source, _)| std::sync::Arc::ptr_eq(&known.0.checkpoint, &source.checkpoint);
            // Some of the matrices of an arm with a list are kept as stored.
            let stored = source.only.as_ref().map(|_| Precision::Full);
            let own = std::iter::once(source.precision).chain(stored);
            match by_checkpoint.iter_mut().find(same) {
                Some((_, precisions)) => precisions.extend(own),
                None => by_checkpoint.push((source, own.collect())),
            }
        }
        let Some((first, _)) = by_checkpoint.first() else {
            return Ok(Self {
                weights: 0,
                block: 0,
                two_blocks: 0,
                staging: 0,
                read: 0,
                uploaded: 0,
                head: 0,
            });
        };
        let mut blocks = Vec::new();
        let mut head = 0;
        for kind in kinds(first.checkpoint.config(), head_rows) {
            let mut sum = BlockBytes::default();
            for (source, precisions) in &by_checkpoint {
                let bytes = kind.bytes(&source.checkpoint, precisions, quantize_head)?;
                sum.device += bytes.device;
                sum.staging = sum.staging.max(bytes.staging);
                sum.read += bytes.read;
                sum.uploaded += bytes.uploaded;
            }
            if matches!(kind, Kind::Head(_)) {
                head += sum.read;
            }
            blocks.push(sum);
        }
        let device = || blocks.iter().map(|block| block.device);
        Ok(Self {
            weights: device().sum(),
            block: device().max().unwrap_or(0),
            two_blocks: blocks.windows(2).map(|two| two[0].device + two[1].device).max().unwrap_or(0),
            staging: blocks.iter().map(|block| block.staging).max().unwrap_or(0),
            read: blocks.iter().map(|block| block.read).sum(),
            uploaded: blocks.iter().map(|block| block.uploaded).sum(),
            head,
        })
    }

    /// Activations of a batch.
    #[must_use]
    pub fn activations(config: &Config, tokens: usize) -> u64 {
        Scratch::bytes(config, tokens, tokens)
    }

    /// A batch's residual stream.
    #[must_use]
    pub fn stream(config: &Config, tokens: usize) -> u64 {
        (4 * tokens * config.hidden_size) as u64
    }

    /// What describes `batches` batches of `tokens` tokens in a cache of `pages` pages.
    #[must_use]
    pub fn batches(batches: usize, tokens: usize, pages: usize) -> u64 {
        batches as u64 * Inputs::most_bytes(tokens, pages)
    }

    /// The answers of `arms` arms to `batches` batches, every row of which is wanted, with `pairs` pairs of them held
    /// against each other.
    #[must_use]
    pub fn answers(config: &Config, batches: usize, tokens: usize, arms: usize, pairs: usize) -> u64 {
        let row = |pairs: usize| {
            let details = size_of::<[TopEntry; TOP]>() + size_of::<EntropyState>();
            let details = if pairs > 0 { details } else { 0 };
            arms * (size_of::<FoldState>() + details) + pairs * size_of::<DivergenceState>()
        };
        let rows = batches * tokens.next_multiple_of(STATES_ALIGNED);
        let sides = if pairs > 0 { arms as u64 * Scratch::side_bytes(config, tokens) } else { 0 };
        // Buffers that grow are up to twice as large as what they hold.
        2 * (rows * row(pairs)) as u64 + sides
    }

    /// Keys and values of `arms` arms with `pages` pages each.
    #[must_use]
    pub fn cache(config: &Config, kv: KvFormat, work: Work, pages: usize, arms: usize) -> u64 {
        let layers = match work {
            Work::Score => 1,
            Work::Generate => arms * config.layers,
        };
        layers as u64 * Caches::layer_bytes(config, kv, pages)
    }

    /// The table of rotations for `pages` pages.
    #[must_use]
    pub fn rotary(config: &Config, pages: usize) -> u64 {
        (4 * pages * PAGE * config.head_dim) as u64
    }
}
