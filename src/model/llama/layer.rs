//! One decoder layer on the GPU.

use super::scratch::Scratch;
use crate::checkpoint::{Checkpoint, Config};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernels::{
    AttentionDecode, AttentionOperands, AttentionPrefill, Finish, Heads, KvFormat, MatOperands, Matmul,
    Matrix, Matvec, NormOperands, Packer, RmsNorm, RmsNormForm, Rope, RopeOperands, Stored, Swiglu,
};
use crate::model::weights::{Linear, Norm};
use crate::model::{Batch, PAGE, Phase};
use crate::quant::Precision;

/// The kernels that all layers share.
#[derive(Debug)]
pub(super) struct Kernels {
    norm: RmsNorm,
    rope: Rope,
    prefill: AttentionPrefill,
    decode: AttentionDecode,
    swiglu: Swiglu,
    heads: Heads,
}

impl Kernels {
    pub(super) fn new(gpu: &Gpu, config: &Config) -> Result<Self> {
        Ok(Self {
            norm: RmsNorm::new(gpu, RmsNormForm::Plain, config.hidden_size)?,
            rope: Rope::new(gpu, KvFormat::F32)?,
            prefill: AttentionPrefill::new(gpu, config.head_dim, PAGE, KvFormat::F32)?,
            decode: AttentionDecode::new(gpu, config.head_dim, PAGE, KvFormat::F32)?,
            swiglu: Swiglu::new(gpu)?,
            heads: Heads { queries: config.heads, kv: config.kv_heads, width: config.head_dim },
        })
    }
}

/// A matrix with the two kernels that read it.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) matrix: Matrix,
    bias: Option<Buffer>,
    matmul: Matmul,
    matvec: Matvec,
}

impl Projection {
    /// `launched` rows of the matrix are used at a time.
    pub(super) fn new(
        gpu: &Gpu,
        matrix: Matrix,
        bias: Option<Buffer>,
        add: bool,
        launched: usize,
    ) -> Result<Self> {
        let finish = Finish { bias: bias.is_some(), add };
        let matmul = Matmul::tuned(gpu, &matrix, launched, finish)?;
        let matvec = Matvec::tuned(gpu, &matrix, launched, finish)?;
        Ok(Self { matrix, bias, matmul, matvec })
    }

    /// Records `y = x W^T (+ bias)` for `t` rows.
    fn record(&self, commands: &mut Commands, phase: Phase, x: &Buffer, y: &Buffer, t: usize) {
        self.record_rows(commands, phase, x, y, t, 0, self.matrix.n);
    }

    /// As [`Self::record`], with rows `first_row..first_row + n` of the matrix.
    #[expect(clippy::too_many_arguments, reason = "two buffers and three sizes")]
    pub(super) fn record_rows(
        &self,
        commands: &mut Commands,
        phase: Phase,
        x: &Buffer,
        y: &Buffer,
        t: usize,
        first_row: usize,
        n: usize,
    ) {
        let operands = MatOperands { x, bias: self.bias.as_ref(), y, t, first_row, n };
        match phase {
            Phase::Prefill => self.matmul.record(commands, &self.matrix, operands),
            Phase::Decode => self.matvec.record(commands, &self.matrix, operands),
        }
    }
}

/// One layer's packed weights and its part of the cache.
#[derive(Debug)]
pub(super) struct Layer {
    attention_norm: Buffer,
    feed_forward_norm: Buffer,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    gate: Projection,
    up: Projection,
    down: Projection,
    /// `[slots, g, e]`.
    cache_k: Buffer,
    /// `[slots, g, e]`.
    cache_v: Buffer,
}

impl Layer {
    pub(super) fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        layer: usize,
        precision: Precision,
        slots: usize,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let projection = |linear: Linear| {
            let name = linear.name(layer);
            let [n, k] = linear.shape(config);
            let stored = checkpoint.tensors().read(&name, &[n, k])?;
            let scheme = precision.scheme(stored.dtype);
            let stored = Stored { name: &name, dtype: stored.dtype, bytes: &stored.bytes, n, k };
            let matrix = Packer::default().pack_one(gpu, scheme, stored)?;
            let bias = linear.bias(checkpoint, layer)?;
            let bias = bias.map(|bias| gpu.upload(&linear.bias_name(layer), &bias.to_f32())).transpose()?;
            Projection::new(gpu, matrix, bias, matches!(linear, Linear::O | Linear::Down), n)
        };
        let norm = |norm: Norm| vector(gpu, checkpoint, &norm.name(layer), config.hidden_size);
        let cache_bytes = 4 * (slots * config.kv_heads * config.head_dim) as u64;
        Ok(Self {
            attention_norm: norm(Norm::Attention)?,
            feed_forward_norm: norm(Norm::FeedForward)?,
            q: projection(Linear::Q)?,
            k: projection(Linear::K)?,
            v: projection(Linear::V)?,
            o: projection(Linear::O)?,
            gate: projection(Linear::Gate)?,
            up: projection(Linear::Up)?,
            down: projection(Linear::Down)?,
            cache_k: gpu.alloc("key cache", cache_bytes)?,
            cache_v: gpu.alloc("value cache", cache_bytes)?,
        })
    }

    /// Records the layer, which adds to the residual stream. `lengths` are the positions that each token looks at.
    #[expect(clippy::too_many_arguments, reason = "what the pass shares, by name")]
    pub(super) fn record(
        &self,
        commands: &mut Commands,
        kernels: &Kernels,
        scratch: &Scratch,
        rotary: &Buffer,
        config: &Config,
        batch: &Batch,
        lengths: &[u32],
    ) {
        let (phase, t) = (batch.phase, batch.tokens.len());
        let Scratch { h, normed, q, k, v, attended, gate, up, gated, places, table, .. } = scratch;
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        let norm = |gain| NormOperands { h, rows: None, gain, y: normed, count: t, d, eps };
        let (cache_k, cache_v, heads) = (&self.cache_k, &self.cache_v, kernels.heads);

        kernels.norm.record(commands, norm(&self.attention_norm));
        self.q.record(commands, phase, normed, q, t);
        self.k.record(commands, phase, normed, k, t);
        self.v.record(commands, phase, normed, v, t);
        let turned = RopeOperands { places, rotary, q, k, v, cache_k, cache_v, t, heads };
        kernels.rope.record(commands, turned);
        let attention =
            AttentionOperands { q, cache_k, cache_v, table, places, out: attended, lengths, heads };
        match phase {
            Phase::Prefill => kernels.prefill.record(commands, attention),
            Phase::Decode => kernels.decode.record(commands, attention),
        }
        self.o.record(commands, phase, attended, h, t);

        kernels.norm.record(commands, norm(&self.feed_forward_norm));
        self.gate.record(commands, phase, normed, gate, t);
        self.up.record(commands, phase, normed, up, t);
        kernels.swiglu.record(commands, gate, up, gated, t * config.intermediate_size);
        self.down.record(commands, phase, gated, h, t);
    }
}

/// Reads a vector of `d` and uploads it in f32.
pub(super) fn vector(gpu: &Gpu, checkpoint: &Checkpoint, name: &str, d: usize) -> Result<Buffer> {
    gpu.upload(name, &checkpoint.tensors().read(name, &[d])?.to_f32())
}
