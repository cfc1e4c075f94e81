//! Activations and the batch's description on the device, reused from batch to batch.

use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kernels::{FOLD_CHUNK, FoldState};
use crate::model::{Batch, Capacity};

/// Buffers for the largest batch. All f32 unless said otherwise.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The residual stream, `[t, d]`.
    pub(super) h: Buffer,
    /// After a norm, `[t, d]`.
    pub(super) normed: Buffer,
    /// `[t, h, e]`.
    pub(super) q: Buffer,
    /// `[t, g, e]`.
    pub(super) k: Buffer,
    /// `[t, g, e]`.
    pub(super) v: Buffer,
    /// `[t, h, e]`.
    pub(super) attended: Buffer,
    /// `[t, f]`.
    pub(super) gate: Buffer,
    /// `[t, f]`.
    pub(super) up: Buffer,
    /// `[t, f]`.
    pub(super) gated: Buffer,
    /// `[t]` places.
    pub(super) places: Buffer,
    /// Pages of every sequence, u32; grows.
    pub(super) table: Buffer,
    /// Wanted rows of the batch, u32.
    pub(super) rows: Buffer,
    /// The token asked for in each wanted row, u32.
    pub(super) given: Buffer,
    /// Wanted rows after the last norm, `[wanted, d]`.
    pub(super) hidden: Buffer,
    /// A chunk of their logits, `[wanted, FOLD_CHUNK]`.
    pub(super) logits: Buffer,
    /// Their statistics.
    pub(super) states: Buffer,
}

impl Scratch {
    pub(super) fn new(gpu: &Gpu, config: &Config, capacity: Capacity) -> Result<Self> {
        let (t, m, d) = (capacity.tokens, capacity.wanted, config.hidden_size);
        let floats = |what: &str, count: usize| gpu.alloc(what, 4 * count as u64);
        let queries = t * config.heads * config.head_dim;
        let keys = t * config.kv_heads * config.head_dim;
        let wide = t * config.intermediate_size;
        Ok(Self {
            h: floats("residual stream", t * d)?,
            normed: floats("normed activations", t * d)?,
            q: floats("queries", queries)?,
            k: floats("keys", keys)?,
            v: floats("values", keys)?,
            attended: floats("attention output", queries)?,
            gate: floats("gate", wide)?,
            up: floats("up", wide)?,
            gated: floats("gated", wide)?,
            places: floats("places", 4 * t)?,
            table: floats("block table", t)?,
            rows: floats("wanted rows", m)?,
            given: floats("given tokens", m)?,
            hidden: floats("hidden rows", m * d)?,
            logits: floats("logits chunk", m * FOLD_CHUNK)?,
            states: gpu.alloc("statistics", (m * size_of::<FoldState>()) as u64)?,
        })
    }

    /// Uploads the batch; `rows` are its tokens' embeddings, `[t, d]`.
    pub(super) fn write_batch(&mut self, gpu: &Gpu, batch: &Batch, rows: &[f32]) -> Result<()> {
        let table_bytes = 4 * batch.table.len() as u64;
        if self.table.bytes() < table_bytes {
            self.table = gpu.alloc("block table", table_bytes.next_power_of_two())?;
        }
        let (wanted, given): (Vec<u32>, Vec<u32>) =
            batch.wanted.iter().map(|wanted| (wanted.row, wanted.given)).unzip();
        gpu.write(&self.h, rows);
        gpu.write(&self.places, &batch.places);
        gpu.write(&self.table, &batch.table);
        gpu.write(&self.rows, &wanted);
        gpu.write(&self.given, &given);
        Ok(())
    }
}
