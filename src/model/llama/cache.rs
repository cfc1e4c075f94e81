//! The KV caches of all arms.

use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kernels::KvFormat;
use crate::model::{PAGE, Work};

/// Keys and values of one layer, each `[slots, g, e]`.
#[derive(Clone, Debug)]
pub(super) struct Kv {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
}

/// The caches for one kind of work.
#[derive(Debug)]
pub(super) enum Caches {
    /// One layer of one arm: scoring needs keys and values no longer than the layer lasts.
    Score(Kv),
    /// By arm, then by layer.
    Generate(Vec<Vec<Kv>>),
}

impl Caches {
    pub(super) fn new(
        gpu: &Gpu,
        config: &Config,
        format: KvFormat,
        work: Work,
        pages: usize,
        arms: usize,
    ) -> Result<Self> {
        let bytes = Self::layer_bytes(config, format, pages) / 2;
        let kv = || Ok(Kv { keys: gpu.alloc("key cache", bytes)?, values: gpu.alloc("value cache", bytes)? });
        Ok(match work {
            Work::Score => Self::Score(kv()?),
            Work::Generate => {
                let arm = |_| (0..config.layers).map(|_| kv()).collect::<Result<_>>();
                Self::Generate((0..arms).map(arm).collect::<Result<_>>()?)
            }
        })
    }

    /// What it is made for.
    pub(super) fn work(&self) -> Work {
        match self {
            Self::Score(_) => Work::Score,
            Self::Generate(_) => Work::Generate,
        }
    }

    pub(super) fn of(&self, arm: usize, layer: usize) -> &Kv {
        match self {
            Self::Score(kv) => kv,
            Self::Generate(arms) => &arms[arm][layer],
        }
    }

    /// Bytes of keys and values of one layer.
    pub(super) fn layer_bytes(config: &Config, format: KvFormat, pages: usize) -> u64 {
        (2 * format.bytes() * pages * PAGE * config.kv_heads * config.head_dim) as u64
    }
}
