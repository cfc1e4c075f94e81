//! `config.json` and `generation_config.json`.

use std::path::Path;

use crate::error::Result;

/// The numbers of a Llama-architecture model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Model width, `d`.
    pub hidden_size: usize,
    /// Feed-forward width, `f`.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads, `h`.
    pub heads: usize,
    /// Key and value heads, `g`; divides `heads`.
    pub kv_heads: usize,
    /// Head width, `e`; a multiple of 8.
    pub head_dim: usize,
    /// Vocabulary, `v`.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Epsilon inside the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k and v projections have biases (o too, if its tensor exists: see the model's loader).
    pub attention_bias: bool,
    /// End-of-sequence ids, from both config files.
    pub eos: Vec<u32>,
}

/// `rope_type: llama3` (transformers `_compute_llama3_parameters`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Low frequencies are divided by this.
    pub factor: f32,
    /// Wavelengths longer than `original_context / low_freq_factor` are stretched in full.
    pub low_freq_factor: f32,
    /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
    pub high_freq_factor: f32,
    /// The context before stretching.
    pub original_context: f32,
}

impl Config {
    /// Reads the two config files of a checkpoint directory.
    ///
    /// # Errors
    ///
    /// If a file is missing or broken, or asks for something that is not supported.
    pub fn read(_checkpoint: &Path) -> Result<Self> {
        unimplemented!()
    }
}
