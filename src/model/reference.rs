//! The forward pass on the CPU: `--device cpu`, and the oracle of the GPU's.
//!
//! Semantics are those of transformers' `LlamaForCausalLM` in f32. Weights are decoded to f32 when
//! loaded, so a pass costs the same at every precision.

mod math;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use self::math::Matrix;
use super::rope::rotary_table;
use super::weights::{EMBEDDING, FINAL_NORM, Linear, Norm, head_name};
use super::{Batch, Capacity, Counters, Folded, Forward, PAGE, Phase, Place};
use crate::checkpoint::{Checkpoint, Config};
use crate::error::{Error, Result};
use crate::quant::{self, Precision, Scheme};

/// Tokens in a batch, and wanted rows: bounds the activations, not the speed.
const MAX_TOKENS: usize = 2048;

/// Rows that a product takes at a time; see [`Matrix::apply`].
fn block(phase: Phase) -> usize {
    match phase {
        Phase::Prefill => 32,
        Phase::Decode => 8,
    }
}

/// One arm on the CPU.
///
/// A row's bits depend on nothing but the tokens before it and on whether they came as prompt or
/// were generated: not on the batch, and not on the number of threads.
#[derive(Debug)]
pub struct Reference {
    path: PathBuf,
    config: Config,
    /// `[v, d]`, always as stored.
    embedding: Arc<Vec<f32>>,
    layers: Vec<Layer>,
    /// `[d]`.
    norm: Vec<f32>,
    /// `[v, d]`.
    head: Matrix,
    /// `[positions, e / 2]`.
    rotary: Vec<[f32; 2]>,
    pages: usize,
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
    /// `[slots, g, e]`.
    keys: Vec<f32>,
    /// `[slots, g, e]`.
    values: Vec<f32>,
}

impl Reference {
    /// Loads a checkpoint and decodes it at `precision`, with room for `cache_tokens` tokens in the
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
        let start = Instant::now();
        let read_before = checkpoint.tensors().bytes_read();
        let config = checkpoint.config().clone();
        let (v, d) = (config.vocab_size, config.hidden_size);
        let pages = cache_tokens.div_ceil(PAGE);
        let head_name = head_name(checkpoint)?;
        let embedding = Arc::new(vector(checkpoint, EMBEDDING, &[v, d])?);
        let head = if head_name == EMBEDDING {
            Arc::clone(&embedding)
        } else {
            Arc::new(vector(checkpoint, head_name, &[v, d])?)
        };
        let head = match precision {
            Precision::Quantized(scheme) if quantize_head => Arc::new(quantized(&head, [v, d], scheme)),
            _ => head,
        };
        let layers = (0..config.layers).map(|layer| Layer::load(checkpoint, layer, precision, pages * PAGE));
        let layers = layers.collect::<Result<_>>()?;
        let norm = vector(checkpoint, FINAL_NORM, &[d])?;
        let mut counters =
            Counters { disk_bytes: checkpoint.tensors().bytes_read() - read_before, ..Counters::default() };
        counters.seconds.load = start.elapsed().as_secs_f64();
        Ok(Self {
            path: checkpoint.path().to_path_buf(),
            embedding,
            layers,
            norm,
            head: Matrix { values: head, rows: v, cols: d, bias: None },
            rotary: rotary_table(&config, pages * PAGE),
            config,
            pages,
            counters,
        })
    }

    /// The logits of every wanted row, `[wanted, v]`, for tests; the given tokens do not matter.
    ///
    /// # Errors
    ///
    /// As [`Forward::forward`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let hidden = self.hidden(batch)?;
        Ok(self.head.apply(&hidden, block(batch.phase)))
    }

    /// What the head is applied to: the wanted rows after the last norm, `[wanted, d]`. Fills the cache.
    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.check(batch)?;
        let (d, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let rows = batch.tokens.iter().flat_map(|&token| &self.embedding[token as usize * d..][..d]);
        let mut x: Vec<f32> = rows.copied().collect();
        for layer in &mut self.layers {
            layer.run(&mut x, batch, &self.config, &self.rotary);
        }
        self.counters.weight_passes += 1;
        let wanted = batch.wanted.iter().flat_map(|wanted| &x[wanted.row as usize * d..][..d]);
        Ok(math::rms_norm(&wanted.copied().collect::<Vec<_>>(), &self.norm, eps))
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
        let hidden = self.hidden(batch)?;
        let (v, block) = (self.config.vocab_size, block(batch.phase));
        let mut folded = Vec::with_capacity(batch.wanted.len());
        // Block by block: the logits of a batch would take more room than the weights.
        let blocks = hidden.chunks(block * self.config.hidden_size).zip(batch.wanted.chunks(block));
        for (hidden, wanted) in blocks {
            let logits = self.head.apply(hidden, block);
            let rows = logits.par_chunks_exact(v).zip(wanted);
            folded.par_extend(rows.map(|(row, wanted)| math::fold(row, wanted.given as usize)));
        }
        Ok(folded)
    }

    fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

impl Layer {
    fn load(checkpoint: &Checkpoint, layer: usize, precision: Precision, slots: usize) -> Result<Self> {
        let config = checkpoint.config();
        let matrix = |linear: Linear| {
            let shape = linear.shape(config);
            let stored = vector(checkpoint, &linear.name(layer), &shape)?;
            let bias = linear.bias(checkpoint, layer)?.map(|tensor| tensor.to_f32());
            let values = match precision {
                Precision::Full => stored,
                Precision::Quantized(scheme) => quantized(&stored, shape, scheme),
            };
            Ok(Matrix { values: Arc::new(values), rows: shape[0], cols: shape[1], bias })
        };
        let norm = |norm: Norm| vector(checkpoint, &norm.name(layer), &[config.hidden_size]);
        let cache = slots * config.kv_heads * config.head_dim;
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
            keys: vec![0.0; cache],
            values: vec![0.0; cache],
        })
    }

    /// Adds the layer's two parts to the residual stream `x`, `[t, d]`.
    fn run(&mut self, x: &mut [f32], batch: &Batch, config: &Config, rotary: &[[f32; 2]]) {
        let (eps, block) = (config.rms_norm_eps, block(batch.phase));
        let normed = math::rms_norm(x, &self.attention_norm, eps);
        let mut q = self.q.apply(&normed, block);
        let mut k = self.k.apply(&normed, block);
        let v = self.v.apply(&normed, block);
        let half = config.head_dim / 2;
        for (row, place) in batch.places.iter().enumerate() {
            let turns = &rotary[place.position as usize * half..][..half];
            math::rotate(&mut q[row * self.q.rows..][..self.q.rows], turns);
            math::rotate(&mut k[row * self.k.rows..][..self.k.rows], turns);
        }
        self.store(&k, &v, &batch.places);
        let attended = self.attend(&q, batch, config);
        add(x, &self.o.apply(&attended, block));

        let normed = math::rms_norm(x, &self.feed_forward_norm, eps);
        let mut gate = self.gate.apply(&normed, block);
        math::swiglu(&mut gate, &self.up.apply(&normed, block));
        add(x, &self.down.apply(&gate, block));
    }

    /// Writes keys and values, `[t, g, e]`, to their slots.
    fn store(&mut self, k: &[f32], v: &[f32], places: &[Place]) {
        let width = self.k.rows;
        for ((k, v), place) in k.chunks_exact(width).zip(v.chunks_exact(width)).zip(places) {
            let start = place.slot as usize * width;
            self.keys[start..start + width].copy_from_slice(k);
            self.values[start..start + width].copy_from_slice(v);
        }
    }

    /// Causal attention, `[t, h, e]`; query head `i` reads KV head `i / (h / g)`.
    fn attend(&self, q: &[f32], batch: &Batch, config: &Config) -> Vec<f32> {
        let (e, per_kv) = (config.head_dim, config.heads / config.kv_heads);
        let scale = 1.0 / (e as f32).sqrt();
        let mut out = vec![0.0; q.len()];
        let rows = out.par_chunks_exact_mut(config.heads * e).zip(q.par_chunks_exact(config.heads * e));
        rows.zip(&batch.places).for_each(|((out, q), place)| {
            let slots: Vec<_> = (0..=place.position as usize).map(|p| slot(batch, place, p)).collect();
            let mut scores = vec![0.0; slots.len()];
            for (head, (out, q)) in out.chunks_exact_mut(e).zip(q.chunks_exact(e)).enumerate() {
                let at = |slot: usize| slot * self.k.rows + head / per_kv * e;
                for (score, &slot) in scores.iter_mut().zip(&slots) {
                    *score = math::dot(q, &self.keys[at(slot)..][..e]) * scale;
                }
                math::softmax(&mut scores);
                for (weight, &slot) in scores.iter().zip(&slots) {
                    let value = &self.values[at(slot)..][..e];
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
                }
            }
        });
        out
    }
}

/// The slot of position `position` of the sequence that `place` belongs to.
fn slot(batch: &Batch, place: &Place, position: usize) -> usize {
    batch.table[place.table as usize + position / PAGE] as usize * PAGE + position % PAGE
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Reads a tensor and widens it.
fn vector(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    Ok(checkpoint.tensors().read(name, shape)?.to_f32())
}

/// What is left of the weights after a round through the scheme.
fn quantized(weights: &[f32], [rows, cols]: [usize; 2], scheme: Scheme) -> Vec<f32> {
    quant::decode(&quant::encode(scheme, weights, rows, cols))
}
