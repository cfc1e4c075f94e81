//! The tensors of a Llama checkpoint: names, shapes, and which of them may be absent.
//!
//! The one list that both passes load by, so that they cannot disagree.

use crate::checkpoint::{Checkpoint, Config, Tensor};
use crate::error::{Error, Result};
use crate::quant::Scheme;

/// The embedding, `[v, d]`.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the head, `[d]`.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// The head, `[v, d]`; absent where it is tied to the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// A weight matrix of one layer: what a quantizing scheme applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linear {
    /// Queries, `[h e, d]`.
    Q,
    /// Keys, `[g e, d]`.
    K,
    /// Values, `[g e, d]`.
    V,
    /// Attention output, `[d, h e]`.
    O,
    /// Feed-forward gate, `[f, d]`.
    Gate,
    /// Feed-forward up, `[f, d]`.
    Up,
    /// Feed-forward down, `[d, f]`.
    Down,
}

impl Linear {
    /// All of them, in the order of their use.
    pub(crate) const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Where it stands in a layer.
    fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of [`Linear::module`], which tells the matrices of a layer apart.
    pub(crate) fn short_name(self) -> &'static str {
        let module = self.module();
        module.rsplit('.').next().unwrap_or(module)
    }

    /// The matrix's name in the checkpoint.
    pub(crate) fn name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.module())
    }

    /// The bias's name in the checkpoint.
    pub(crate) fn bias_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.bias", self.module())
    }

    /// The matrix's shape, `[n, k]`: outputs, inputs.
    pub(crate) fn shape(self, config: &Config) -> [usize; 2] {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::Q => [queries, d],
            Self::K | Self::V => [keys, d],
            Self::O => [d, queries],
            Self::Gate | Self::Up => [f, d],
            Self::Down => [d, f],
        }
    }

    /// Whether the matrix has a bias: `config.json` asks for it or the checkpoint holds it. Only the attention's
    /// projections have any; if q, k or v lack one that is asked for, reading it fails (o may go without: families
    /// differ).
    pub(crate) fn has_bias(self, checkpoint: &Checkpoint, layer: usize) -> bool {
        let asked = checkpoint.config().attention_bias && matches!(self, Self::Q | Self::K | Self::V);
        let allowed = asked || matches!(self, Self::Q | Self::K | Self::V | Self::O);
        allowed && (asked || checkpoint.tensors().contains(&self.bias_name(layer)))
    }

    /// The bias, `[n]`, if the checkpoint has one.
    ///
    /// # Errors
    ///
    /// [`Error::TensorMissing`] if `config.json` asks for biases and q, k or v has none; what
    /// [`crate::checkpoint::Tensors::read`] says of a broken one.
    pub(crate) fn bias(self, checkpoint: &Checkpoint, layer: usize) -> Result<Option<Tensor>> {
        if !self.has_bias(checkpoint, layer) {
            return Ok(None);
        }
        checkpoint.tensors().read(&self.bias_name(layer), &[self.shape(checkpoint.config())[0]]).map(Some)
    }
}

/// A layer's norm, `[d]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// Before the attention.
    Attention,
    /// Before the feed-forward part.
    FeedForward,
}

impl Norm {
    /// The norm's name in the checkpoint.
    pub(crate) fn name(self, layer: usize) -> String {
        let module = match self {
            Self::Attention => "input_layernorm",
            Self::FeedForward => "post_attention_layernorm",
        };
        format!("model.layers.{layer}.{module}.weight")
    }
}

/// The name of the head's tensor, `[v, d]`: its own, or the embedding's if `config.json` ties them.
///
/// A tied checkpoint may hold a copy under the head's name; like transformers, we do not read it.
///
/// # Errors
///
/// [`Error::TensorMissing`] if the head is not tied and absent.
pub(crate) fn head_name(checkpoint: &Checkpoint) -> Result<&'static str> {
    if checkpoint.config().tied {
        Ok(EMBEDDING)
    } else if checkpoint.tensors().contains(HEAD) {
        Ok(HEAD)
    } else {
        Err(Error::TensorMissing { path: checkpoint.path().to_path_buf(), tensor: HEAD.to_owned() })
    }
}

/// Checks from the headers alone that every tensor the architecture needs is there, with the right shape and a dtype
/// that can be read, so that a long run does not find out half way.
///
/// # Errors
///
/// As [`crate::checkpoint::Tensors::read`], but for what only the values can show.
pub(crate) fn check_tensors(checkpoint: &Checkpoint) -> Result<()> {
    let (config, tensors) = (checkpoint.config(), checkpoint.tensors());
    let (v, d) = (config.vocab_size, config.hidden_size);
    let check = |name: &str, shape: &[usize]| tensors.read_rows(name, shape, 0..0).map(drop);
    check(EMBEDDING, &[v, d])?;
    check(head_name(checkpoint)?, &[v, d])?;
    check(FINAL_NORM, &[d])?;
    for layer in 0..config.layers {
        for norm in [Norm::Attention, Norm::FeedForward] {
            check(&norm.name(layer), &[d])?;
        }
        for linear in Linear::ALL {
            check(&linear.name(layer), &linear.shape(config))?;
        }
    }
    Ok(())
}

/// Names of the tensors that no scheme applies to: the embedding (also where it is the head, too), norms, the biases that
/// there are, and a head of its own unless it is quantized.
pub(crate) fn unquantized(checkpoint: &Checkpoint, quantize_head: bool) -> Vec<String> {
    let mut names = vec![EMBEDDING.to_owned(), FINAL_NORM.to_owned()];
    if !checkpoint.config().tied && !quantize_head {
        names.push(HEAD.to_owned());
    }
    for layer in 0..checkpoint.config().layers {
        names.extend([Norm::Attention, Norm::FeedForward].map(|norm| norm.name(layer)));
        let biases = Linear::ALL.map(|linear| linear.bias_name(layer));
        names.extend(biases.into_iter().filter(|name| checkpoint.tensors().contains(name)));
    }
    names
}

/// How the matrices of the layers are stored; the first one speaks for all.
///
/// # Errors
///
/// If there is no such tensor or its dtype cannot be read.
pub(crate) fn stored_scheme(checkpoint: &Checkpoint) -> Result<Scheme> {
    Ok(checkpoint.tensors().describe(&Linear::Q.name(0))?.0)
}
