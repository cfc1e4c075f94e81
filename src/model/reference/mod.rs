//! The forward pass on the CPU: `--device cpu`, and the oracle of the GPU's.
//!
//! Semantics are those of transformers' `LlamaForCausalLM` in f32. Weights stay packed: a pass unpacks a
//! panel of rows at a time, into memory that stays in the cache, and multiplies the whole batch with it.

mod attention;
pub(crate) mod calibrate;
mod fold;
mod math;
mod matrix;
mod panels;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use self::attention::Cache;
use self::math::FLOATS_PER_TASK;
use self::matrix::Matrix;
use self::panels::Panels;
use super::rope::rotary_table;
use super::weights::{EMBEDDING, FINAL_NORM, Linear, Norm, head_name};
use super::{Batch, Capacity, Counters, Folded, Forward, Logits, PAGE, Place, Source};
use crate::checkpoint::{Checkpoint, Config, Tensor};
use crate::error::{Error, Result};
use crate::quant::{Packed, Precision, Rows, round};

/// Tokens in a batch, and wanted rows: bounds the activations, not the speed.
const MAX_TOKENS: usize = 512;

/// One arm on the CPU.
///
/// A row's bits depend on nothing but the tokens before it and on whether they came as prompt or
/// were generated: not on the batch, and not on the number of threads.
#[derive(Debug)]
pub struct Reference {
    path: PathBuf,
    config: Config,
    /// `[v, d]`, always as stored; a tied head that is not quantized shares it.
    embedding: Arc<Panels>,
    layers: Vec<Layer>,
    /// `[d]`.
    norm: Vec<f32>,
    /// `[v, d]`.
    head: Matrix,
    /// `[positions, e / 2]`.
    rotary: Vec<[f32; 2]>,
    pages: usize,
    kv_f16: bool,
    counters: Counters,
}

/// One layer's weights and its part of the cache.
#[derive(Debug)]
struct Layer {
    /// `[d]`.
    attention_norm: Vec<f32>,
    /// `[d]`.
    feed_forward_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    cache: Cache,
}

impl Reference {
    /// Loads a checkpoint and packs it at `precision`, with room for `cache_tokens` tokens in the
    /// cache (rounded up to whole pages). No sequence can be longer than that.
    ///
    /// The matrices of the layers are quantized; embedding and norms stay as stored, and so does
    /// the head unless `quantize_head` (a tied head is then quantized apart from the embedding).
    ///
    /// # Errors
    ///
    /// If a tensor is missing, has another shape than `config.json` asks for, or holds NaN or
    /// infinity.
    pub fn load(
        checkpoint: &Checkpoint,
        precision: Precision,
        quantize_head: bool,
        cache_tokens: usize,
    ) -> Result<Self> {
        Self::load_mixed(checkpoint, None, |_| precision, quantize_head, cache_tokens)
    }

    /// [`Self::load`] of an arm whose matrices may be of several precisions.
    ///
    /// # Errors
    ///
    /// As [`Self::load`]; if the arm's rounding asks for a target and there is none of its architecture.
    pub fn load_source(source: &Source, quantize_head: bool, cache_tokens: usize) -> Result<Self> {
        source.check()?;
        let of = |tensor: &str| source.precision_of(tensor);
        let target = source.target.as_deref().filter(|_| source.precision.rounding().needs_target());
        Self::load_mixed(&source.checkpoint, target, of, quantize_head, cache_tokens)
    }

    fn load_mixed(
        checkpoint: &Checkpoint,
        target: Option<&Checkpoint>,
        precision_of: impl Fn(&str) -> Precision,
        quantize_head: bool,
        cache_tokens: usize,
    ) -> Result<Self> {
        let start = Instant::now();
        let bytes_read =
            || checkpoint.tensors().bytes_read() + target.map_or(0, |target| target.tensors().bytes_read());
        let read_before = bytes_read();
        let config = checkpoint.config().clone();
        let (v, d) = (config.vocab_size, config.hidden_size);
        let pages = cache_tokens.div_ceil(PAGE);
        let head_name = head_name(checkpoint)?;
        let stored = checkpoint.tensors().read(EMBEDDING, &[v, d])?;
        let packer = Packer { target, precision_of };
        let embedding = Arc::new(full(&stored, [v, d]));
        let head = match (head_name == EMBEDDING, quantize_head) {
            (true, false) => Arc::clone(&embedding),
            (true, true) => Arc::new(packer.pack(head_name, &stored, [v, d])?),
            (false, _) => {
                let stored = checkpoint.tensors().read(head_name, &[v, d])?;
                let packed = if quantize_head {
                    packer.pack(head_name, &stored, [v, d])?
                } else {
                    full(&stored, [v, d])
                };
                Arc::new(packed)
            }
        };
        drop(stored);
        let layers = (0..config.layers).map(|layer| Layer::load(checkpoint, layer, &packer, pages));
        let layers = layers.collect::<Result<_>>()?;
        let norm = vector(checkpoint, FINAL_NORM, &[d])?;
        let mut counters = Counters { disk_bytes: bytes_read() - read_before, ..Counters::default() };
        counters.seconds.load = start.elapsed().as_secs_f64();
        Ok(Self {
            path: checkpoint.path().to_path_buf(),
            embedding,
            layers,
            norm,
            head: Matrix { weights: head, bias: None },
            rotary: rotary_table(&config, pages * PAGE),
            config,
            pages,
            kv_f16: false,
            counters,
        })
    }

    /// Whether keys and values are rounded to f16, half to even, on their way into the cache, as a device with a cache
    /// of f16 does; beyond 65504 they saturate. The cache itself is f32 here.
    #[must_use]
    pub fn with_kv_f16(self, kv_f16: bool) -> Self {
        Self { kv_f16, ..self }
    }

    /// The logits of every wanted row, `[wanted, v]`, for tests; the given tokens do not matter.
    ///
    /// # Errors
    ///
    /// As [`Forward::forward`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.check(batch)?;
        Ok(in_pool(|| {
            let hidden = Self::hidden(self, batch);
            self.head.apply(&hidden, batch.phase)
        }))
    }

    /// What the head is applied to: the wanted rows after the last norm, `[wanted, d]`. Fills the cache.
    fn hidden(&mut self, batch: &Batch) -> Vec<f32> {
        let (d, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let mut x = math::floats(batch.tokens.len() * d);
        let rows = x.par_chunks_exact_mut(d).zip(&batch.tokens);
        rows.for_each(|(row, &token)| self.embedding.row(token as usize, row));
        for layer in &mut self.layers {
            layer.run(&mut x, batch, &self.config, &self.rotary, self.kv_f16, &mut |_, _| {});
        }
        self.counters.weight_passes += 1;
        let wanted = batch.wanted.iter().flat_map(|wanted| &x[wanted.row as usize * d..][..d]);
        math::rms_norm(&wanted.copied().collect::<Vec<_>>(), &self.norm, eps)
    }

    /// Refuses tokens without a row in the embedding and positions beyond the rotary table.
    fn check(&self, batch: &Batch) -> Result<()> {
        let vocab = self.config.vocab_size;
        let ids = batch.tokens.iter().chain(batch.wanted.iter().map(|wanted| &wanted.given));
        if let Some(&id) = ids.into_iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::TokenId { path: self.path.clone(), id, vocab });
        }
        let limit = self.pages * PAGE;
        let beyond = |place: &&Place| place.position as usize >= limit || place.slot as usize >= limit;
        if let Some(place) = batch.places.iter().find(beyond) {
            return Err(Error::Shape {
                kernel: "forward",
                what: "position or slot",
                got: place.position.max(place.slot) as usize,
                expected: format!("less than the {limit} slots of the cache"),
            });
        }
        Ok(())
    }
}

impl Forward for Reference {
    fn capacity(&self) -> Capacity {
        Capacity { tokens: MAX_TOKENS, wanted: MAX_TOKENS, pages: self.pages }
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<Folded>> {
        self.check(batch)?;
        let hidden = in_pool(|| Self::hidden(self, batch));
        Ok(self.fold(batch, &hidden))
    }

    fn counters(&self) -> Counters {
        self.counters.clone()
    }

    fn logits(&mut self) -> Option<&mut dyn Logits> {
        Some(self)
    }
}

impl Logits for Reference {
    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.check(batch)?;
        Ok(in_pool(|| Self::hidden(self, batch)))
    }

    fn fold(&self, batch: &Batch, hidden: &[f32]) -> Vec<Folded> {
        let given: Vec<_> = batch.wanted.iter().map(|wanted| wanted.given).collect();
        in_pool(|| self.head.fold(hidden, &given, batch.phase))
    }

    fn chunk(&self, batch: &Batch, hidden: &[f32], tokens: Range<usize>) -> Vec<f32> {
        in_pool(|| self.head.apply_rows(hidden, tokens, batch.phase))
    }

    fn vocab(&self) -> usize {
        self.config.vocab_size
    }
}

impl Layer {
    fn load(
        checkpoint: &Checkpoint,
        layer: usize,
        packer: &Packer<'_, impl Fn(&str) -> Precision>,
        pages: usize,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let matrix = |linear: Linear| {
            let shape = linear.shape(config);
            let name = linear.name(layer);
            let stored = checkpoint.tensors().read(&name, &shape)?;
            let bias = linear.bias(checkpoint, layer)?.map(|tensor| tensor.to_f32());
            Ok(Matrix { weights: Arc::new(packer.pack(&name, &stored, shape)?), bias })
        };
        let norm = |norm: Norm| vector(checkpoint, &norm.name(layer), &[config.hidden_size]);
        Ok(Self {
            attention_norm: norm(Norm::Attention)?,
            feed_forward_norm: norm(Norm::FeedForward)?,
            q: matrix(Linear::Q)?,
            k: matrix(Linear::K)?,
            v: matrix(Linear::V)?,
            o: matrix(Linear::O)?,
            gate: matrix(Linear::Gate)?,
            up: matrix(Linear::Up)?,
            down: matrix(Linear::Down)?,
            cache: Cache::new(config, pages),
        })
    }

    /// Adds the layer's two parts to the residual stream `x`, `[t, d]`. `see` is shown the inputs of each matrix, by the first
    /// of those that share them, `[t, k]`.
    fn run(
        &mut self,
        x: &mut [f32],
        batch: &Batch,
        config: &Config,
        rotary: &[[f32; 2]],
        kv_f16: bool,
        see: &mut dyn FnMut(Linear, &[f32]),
    ) {
        let (eps, phase) = (config.rms_norm_eps, batch.phase);
        let normed = math::rms_norm(x, &self.attention_norm, eps);
        see(Linear::Q, &normed);
        let [mut q, mut k, v] = Matrix::apply_all([&self.q, &self.k, &self.v], &normed, phase);
        let half = config.head_dim / 2;
        let rows = q.par_chunks_exact_mut(self.q.rows()).zip(k.par_chunks_exact_mut(self.k.rows()));
        rows.zip(&batch.places).with_min_len(FLOATS_PER_TASK / self.q.rows()).for_each(|((q, k), place)| {
            let turns = &rotary[place.position as usize * half..][..half];
            math::rotate(q, turns);
            math::rotate(k, turns);
        });
        self.cache.store(&k, &v, &batch.places, kv_f16);
        let attended = self.cache.attend(&q, batch);
        see(Linear::O, &attended);
        let added = self.o.apply(&attended, phase);
        math::add(x, &added);
        math::spare([normed, q, k, v, attended, added]);

        let normed = math::rms_norm(x, &self.feed_forward_norm, eps);
        see(Linear::Gate, &normed);
        let [mut gate, up] = Matrix::apply_all([&self.gate, &self.up], &normed, phase);
        math::swiglu(&mut gate, &up);
        see(Linear::Down, &gate);
        let added = self.down.apply(&gate, phase);
        math::add(x, &added);
        math::spare([normed, gate, up, added]);
    }
}

/// Runs `work` on one of rayon's threads: its many short parallel parts then start without waking one up each time.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Reads a tensor and widens it.
fn vector(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    Ok(checkpoint.tensors().read(name, shape)?.to_f32())
}

/// A matrix as it is stored, bit by bit.
fn full(stored: &Tensor, [rows, cols]: [usize; 2]) -> Panels {
    let words = stored.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    Panels::new(&Packed { scheme: stored.dtype, rows, cols, words, scales: Vec::new() })
}

/// Brings stored matrices to their precisions.
struct Packer<'a, P> {
    /// Where updates lead from.
    target: Option<&'a Checkpoint>,
    precision_of: P,
}

impl<P: Fn(&str) -> Precision> Packer<'_, P> {
    /// The matrix of this name at its precision.
    fn pack(&self, name: &str, stored: &Tensor, shape: [usize; 2]) -> Result<Panels> {
        let Precision::Quantized(scheme, rounding) = (self.precision_of)(name) else {
            return Ok(full(stored, shape));
        };
        let target = self.target.filter(|_| rounding.needs_target());
        let target = target.map(|target| target.tensors().read(name, &shape)).transpose()?;
        let target = target.map(|tensor| tensor.to_f32());
        let (weights, [rows, cols]) = (&stored.to_f32(), shape);
        let what = Rows { weights, target: target.as_deref(), rows, cols, tensor: name, first: 0 };
        Ok(Panels::new(&round(scheme, rounding, what).packed))
    }
}
