//! Weights that are loaded together, and the kernels that read them.

use std::sync::Arc;

use super::cache::Kv;
use super::inputs::Inputs;
use super::scratch::Scratch;
use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernels::{
    AttentionDecode, AttentionOperands, AttentionPrefill, Heads, KvFormat, MatOperands, Matmul, Matrix,
    Matvec, Norm, NormOperands, RmsNorm, RmsNormForm, Rope, RopeOperands, Swiglu,
};
use crate::model::{PAGE, Phase};

/// The kernels that all layers share.
#[derive(Debug)]
pub(super) struct Kernels {
    norm: RmsNorm,
    rope: Rope,
    prefill: AttentionPrefill,
    decode: AttentionDecode,
    swiglu: Swiglu,
    heads: Heads,
    /// `[positions, e / 2]`.
    rotary: Buffer,
    d: usize,
    f: usize,
    eps: f32,
}

impl Kernels {
    pub(super) fn new(gpu: &Gpu, config: &Config, kv: KvFormat, rotary: Buffer) -> Result<Self> {
        let heads = Heads { queries: config.heads, kv: config.kv_heads, width: config.head_dim };
        Ok(Self {
            norm: RmsNorm::new(gpu, RmsNormForm::Plain, config.hidden_size)?,
            rope: Rope::new(gpu, kv)?,
            prefill: AttentionPrefill::new(gpu, config.head_dim, PAGE, kv)?,
            decode: AttentionDecode::new(gpu, heads, PAGE, kv)?,
            swiglu: Swiglu::new(gpu)?,
            heads,
            rotary,
            d: config.hidden_size,
            f: config.intermediate_size,
            eps: config.rms_norm_eps,
        })
    }

    /// Records the norm of all rows of the residual stream.
    fn norm(&self, commands: &mut Commands, h: &Buffer, gain: &Buffer, y: &Buffer, count: usize) {
        self.norm.record(commands, NormOperands { h, rows: None, gain, y, count, d: self.d, eps: self.eps });
    }
}

/// The kernels that multiply by matrices of one scheme and shape.
#[derive(Clone, Debug)]
pub(super) struct Products {
    pub(super) matmul: Matmul,
    pub(super) matvec: Matvec,
}

/// A matrix with the kernels that read it.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Buffer>,
    /// Columns of its products.
    pub(super) columns: usize,
    pub(super) products: Products,
}

/// Matrices that multiply the same rows. Both ways give the same bits.
#[derive(Debug)]
pub(super) enum Together<const N: usize> {
    /// In one launch: they lie one below the other, in one scheme.
    Joined(Projection),
    /// In a launch each.
    Apart([Projection; N]),
}

impl Projection {
    /// Records `y = x W^T (+ bias)`, or `y += ...` where the kernels were made so, for `t` rows.
    fn record(&self, commands: &mut Commands, phase: Phase, x: &Buffer, y: &Buffer, t: usize) {
        self.record_at(commands, phase, [x, y], t, (0, self.columns));
    }

    /// As [`Self::record`], into the columns of y from `first_column` on, of `stride` in all.
    fn record_at(
        &self,
        commands: &mut Commands,
        phase: Phase,
        [x, y]: [&Buffer; 2],
        t: usize,
        (first_column, stride): (usize, usize),
    ) {
        let (bias, n) = (self.bias.as_ref(), self.matrix.n);
        let operands = MatOperands { x, bias, y, t, first_row: 0, n, stride, first_column };
        self.record_rows(commands, phase, operands);
    }

    /// Records the product with the normed rows of `h`: in a launch of its own, or the norm first.
    fn record_normed(
        &self,
        commands: &mut Commands,
        (kernels, normed): (&Kernels, &Buffer),
        phase: Phase,
        (h, gain, y): (&Buffer, &Buffer, &Buffer),
        t: usize,
    ) {
        if phase == Phase::Decode && self.products.matvec.norms(t) {
            let (n, columns) = (self.matrix.n, self.columns);
            let bias = self.bias.as_ref();
            let operands =
                MatOperands { x: h, bias, y, t, first_row: 0, n, stride: columns, first_column: 0 };
            let norm = Norm { gain, eps: kernels.eps };
            self.products.matvec.record_normed(commands, &self.matrix, operands, norm);
        } else {
            kernels.norm(commands, h, gain, normed, t);
            self.record(commands, phase, normed, y, t);
        }
    }

    /// Records the product with some rows of the matrix.
    pub(super) fn record_rows(&self, commands: &mut Commands, phase: Phase, operands: MatOperands<'_>) {
        match phase {
            Phase::Prefill => self.products.matmul.record(commands, &self.matrix, operands),
            Phase::Decode => self.products.matvec.record(commands, &self.matrix, operands),
        }
    }
}

/// The attention half of a layer.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) norm: Buffer,
    pub(super) qkv: Together<3>,
    pub(super) o: Projection,
}

impl Attention {
    /// Records the half layer, which adds to the residual stream `h`, `[t, d]`.
    pub(super) fn record(
        &self,
        commands: &mut Commands,
        kernels: &Kernels,
        scratch: &Scratch,
        inputs: &Inputs<'_>,
        kv: &Kv,
        h: &Buffer,
    ) {
        let (phase, t) = (inputs.batch.phase, inputs.batch.tokens.len());
        let Scratch { normed, qkv, attended, .. } = scratch;
        let Inputs { places, table, lengths, .. } = inputs;
        let (cache_k, cache_v, heads, rotary) = (&kv.keys, &kv.values, kernels.heads, &kernels.rotary);

        match &self.qkv {
            Together::Joined(all) => {
                all.record_normed(commands, (kernels, normed), phase, (h, &self.norm, qkv), t);
            }
            Together::Apart(each) => {
                kernels.norm(commands, h, &self.norm, normed, t);
                let stride = each.iter().map(|projection| projection.columns).sum();
                let mut first = 0;
                for projection in each {
                    projection.record_at(commands, phase, [normed, qkv], t, (first, stride));
                    first += projection.columns;
                }
            }
        }
        let turned = RopeOperands { places, rotary, qkv, cache_k, cache_v, t, heads };
        kernels.rope.record(commands, turned);
        let attention =
            AttentionOperands { q: qkv, cache_k, cache_v, table, places, out: attended, lengths, heads };
        match phase {
            Phase::Prefill => kernels.prefill.record(commands, attention),
            Phase::Decode => kernels.decode.record(commands, attention),
        }
        self.o.record(commands, phase, attended, h, t);
    }
}

/// The feed-forward half of a layer.
#[derive(Debug)]
pub(super) struct FeedForward {
    pub(super) norm: Buffer,
    /// Joined, it gates what it multiplies.
    pub(super) gate_up: Together<2>,
    pub(super) down: Projection,
}

impl FeedForward {
    /// Records the half layer, which adds to the residual stream `h`, `[t, d]`.
    pub(super) fn record(
        &self,
        commands: &mut Commands,
        kernels: &Kernels,
        scratch: &Scratch,
        inputs: &Inputs<'_>,
        h: &Buffer,
    ) {
        let (phase, t) = (inputs.batch.phase, inputs.batch.tokens.len());
        let Scratch { normed, gate, up, gated, .. } = scratch;
        match &self.gate_up {
            Together::Joined(both) => {
                both.record_normed(commands, (kernels, normed), phase, (h, &self.norm, gated), t);
            }
            Together::Apart([own_gate, own_up]) => {
                kernels.norm(commands, h, &self.norm, normed, t);
                own_gate.record(commands, phase, normed, gate, t);
                own_up.record(commands, phase, normed, up, t);
                kernels.swiglu.record(commands, gate, up, gated, t * kernels.f);
            }
        }
        self.down.record(commands, phase, gated, h, t);
    }
}

/// Rows of the head, with the norm before it.
#[derive(Debug)]
pub(super) struct HeadRows {
    pub(super) norm: Buffer,
    pub(super) rows: Projection,
    /// The first of the rows in the whole head.
    pub(super) first: usize,
}

/// What is loaded together.
#[derive(Debug)]
pub(super) enum Block {
    Attention(Attention),
    FeedForward(FeedForward),
    Head(HeadRows),
}

/// For each arm its block; arms whose weights are byte-identical have the same one.
pub(super) type Blocks = Vec<Arc<Block>>;
