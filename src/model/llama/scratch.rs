//! Activations on the device, reused from batch to batch and from arm to arm.

use bytemuck::Pod;

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
    /// The wanted rows' statistics.
    pub(super) states: Growing,
    /// Their likeliest tokens, where arms are compared.
    pub(super) tops: Growing,
    /// Their entropies and ranks, where arms are compared.
    pub(super) details: Growing,
    /// What sets arms apart, where they are compared.
    pub(super) sums: Growing,
    /// Of each arm that is compared: the wanted rows after the norm, `[wanted, d]`, and a chunk of their logits,
    /// `[wanted, FOLD_CHUNK]`.
    pub(super) sides: Vec<[Buffer; 2]>,
}

/// A buffer that is made anew when it is too small.
#[derive(Debug)]
pub(super) struct Growing {
    what: &'static str,
    buffer: Option<Buffer>,
}

impl Growing {
    fn new(what: &'static str) -> Self {
        Self { what, buffer: None }
    }

    /// The buffer, with room for `rows` rows of `T`. What it held is kept only if it was large enough.
    pub(super) fn reserve<T>(&mut self, gpu: &Gpu, rows: usize) -> Result<Buffer> {
        let bytes = (rows * size_of::<T>()) as u64;
        match &self.buffer {
            Some(buffer) if buffer.bytes() >= bytes => Ok(buffer.clone()),
            _ => {
                self.buffer = None;
                Ok(self.buffer.insert(gpu.alloc(self.what, bytes.next_power_of_two())?).clone())
            }
        }
    }

    /// Its first rows.
    pub(super) fn read<T: Pod>(&self, gpu: &Gpu, rows: usize) -> Result<Vec<T>> {
        match &self.buffer {
            Some(buffer) if rows > 0 => gpu.read(buffer, rows),
            _ => Ok(Vec::new()),
        }
    }
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
            states: Growing::new("statistics"),
            tops: Growing::new("likeliest tokens"),
            details: Growing::new("entropies"),
            sums: Growing::new("divergences"),
            sides: Vec::new(),
        })
    }

    /// Makes room for `count` arms that are compared.
    pub(super) fn reserve_sides(&mut self, gpu: &Gpu, count: usize) -> Result<()> {
        while self.sides.len() < count {
            let normed = gpu.alloc("normed activations of an arm", self.normed.bytes())?;
            let logits = gpu.alloc("logits chunk of an arm", self.logits.bytes())?;
            self.sides.push([normed, logits]);
        }
        Ok(())
    }

    /// Frees what only some kinds of work need.
    pub(super) fn clear(&mut self) {
        self.sides.clear();
        for growing in [&mut self.states, &mut self.tops, &mut self.details, &mut self.sums] {
            growing.buffer = None;
        }
    }

    /// Bytes that each arm takes which is compared.
    pub(super) fn side_bytes(config: &Config, tokens: usize) -> u64 {
        let [normed, .., logits] = sizes(config, tokens, tokens);
        4 * (normed.1 + logits.1) as u64
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(config: &Config, tokens: usize, wanted: usize) -> u64 {
        sizes(config, tokens, wanted).iter().map(|(_, count)| 4 * *count as u64).sum()
    }
}
