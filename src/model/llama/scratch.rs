//! Activations on the device, reused from batch to batch and from arm to arm.

use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kernels::FOLD_CHUNK;

/// Buffers for the largest batch, f32 unless said otherwise.
#[derive(Debug)]
pub(super) struct Scratch {
    /// After a norm, `[t, d]`.
    pub(super) normed: Buffer,
    /// Queries, keys and values, `[t, h + 2 g, e]`.
    pub(super) qkv: Buffer,
    /// `[t, h, e]`.
    pub(super) attended: Buffer,
    /// `[t, f]`.
    pub(super) gate: Buffer,
    /// `[t, f]`.
    pub(super) up: Buffer,
    /// `[t, f]`.
    pub(super) gated: Buffer,
    /// A chunk of the wanted rows' logits, `[wanted, FOLD_CHUNK]`.
    pub(super) logits: Buffer,
    /// The wanted rows' statistics; grows.
    pub(super) states: Option<Buffer>,
}

/// Numbers of f32 in each buffer, in the order of the fields.
fn sizes(config: &Config, tokens: usize, wanted: usize) -> [(&'static str, usize); 7] {
    let (d, f) = (tokens * config.hidden_size, tokens * config.intermediate_size);
    let queries = tokens * config.heads * config.head_dim;
    let keys = tokens * config.kv_heads * config.head_dim;
    [
        ("normed activations", d.max(wanted * config.hidden_size)),
        ("queries, keys and values", queries + 2 * keys),
        ("attention output", queries),
        ("gate", f),
        ("up", f),
        ("gated", f),
        ("logits chunk", wanted * FOLD_CHUNK.min(config.vocab_size)),
    ]
}

impl Scratch {
    pub(super) fn new(gpu: &Gpu, config: &Config, tokens: usize, wanted: usize) -> Result<Self> {
        let floats = |(what, count): (&str, usize)| gpu.alloc(what, 4 * count as u64);
        let [normed, qkv, attended, gate, up, gated, logits] = sizes(config, tokens, wanted).map(floats);
        Ok(Self {
            normed: normed?,
            qkv: qkv?,
            attended: attended?,
            gate: gate?,
            up: up?,
            gated: gated?,
            logits: logits?,
            states: None,
        })
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(config: &Config, tokens: usize, wanted: usize) -> u64 {
        sizes(config, tokens, wanted).iter().map(|(_, count)| 4 * *count as u64).sum()
    }
}
