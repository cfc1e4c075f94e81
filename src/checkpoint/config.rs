//! `config.json` and `generation_config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{malformed, read_object};
use crate::error::{Error, Result};

/// Longest config file that is read. Real ones have a few kilobytes.
const LIMIT_BYTES: u64 = 1 << 20;

/// What `config.json` may say at most, far beyond any real model: nothing is allocated from a larger number.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 30;

/// All matrices and heads have widths that are multiples of this, so that every packed row starts at a word.
const WIDTH_STEP: usize = 8;

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
    /// Whether q, k and v projections must have biases. Biases that exist are used either way, o's too: families
    /// differ in which of the four they have.
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
    /// Whether a forward pass of the other model is this one's but for the weights.
    #[must_use]
    pub fn runs_like(&self, other: &Self) -> bool {
        self.difference(other).is_none()
    }

    /// The first number on which a forward pass depends that the other model has not: its key in config.json, and its value
    /// here and there.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let numbers = |config: &Self| {
            let Self {
                hidden_size,
                intermediate_size,
                layers,
                heads,
                kv_heads,
                head_dim,
                vocab_size,
                rms_norm_eps,
                rope_theta,
                rope_scaling,
                tied,
                // These do not show in a pass.
                context: _,
                attention_bias: _,
                eos: _,
            } = config;
            [
                ("num_hidden_layers", layers.to_string()),
                ("hidden_size", hidden_size.to_string()),
                ("intermediate_size", intermediate_size.to_string()),
                ("num_attention_heads", heads.to_string()),
                ("num_key_value_heads", kv_heads.to_string()),
                ("head_dim", head_dim.to_string()),
                ("vocab_size", vocab_size.to_string()),
                ("rms_norm_eps", rms_norm_eps.to_string()),
                ("rope_theta", rope_theta.to_string()),
                ("rope_scaling", format!("{rope_scaling:?}")),
                ("tie_word_embeddings", tied.to_string()),
            ]
        };
        let mut both = numbers(self).into_iter().zip(numbers(other));
        let ((key, here), (_, there)) = both.find(|(ours, theirs)| ours != theirs)?;
        Some((key, here, there))
    }

    /// Reads the two config files of a checkpoint directory.
    ///
    /// Keys of transformers 4 and 5 are understood. An absent key has the value that transformers' `LlamaConfig`
    /// gives it (KV heads: `num_attention_heads`; head width: `hidden_size / num_attention_heads`; context 2048;
    /// epsilon 1e-6; theta 1e4; untied; no biases; end-of-sequence id 2 if neither file has one).
    ///
    /// # Errors
    ///
    /// If a file is missing or broken, or asks for something that is not supported.
    pub fn read(checkpoint: &Path) -> Result<Self> {
        must_be_directory(checkpoint)?;
        let path = checkpoint.join("config.json");
        if !path.exists() {
            refuse_adapter(checkpoint)?;
        }
        let remedy = "a checkpoint is a directory with config.json and *.safetensors";
        let keys = Keys { map: read_object(&path, "config.json", remedy, LIMIT_BYTES)?, path };

        keys.refuse_unsupported()?;

        let hidden_size = keys.size("hidden_size", MAX_WIDTH)?.required()?;
        let heads = keys.size("num_attention_heads", MAX_WIDTH)?.required()?;
        let kv_heads = keys.size("num_key_value_heads", MAX_WIDTH)?.or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.wrong(
                "num_key_value_heads",
                &kv_heads,
                format!("a divisor of num_attention_heads = {heads}"),
            ));
        }
        let head_dim = match keys.size("head_dim", MAX_WIDTH)?.value {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads = {heads}, or a head_dim");
                return Err(keys.wrong("hidden_size", &hidden_size, expected));
            }
        };
        let intermediate_size = keys.size("intermediate_size", MAX_WIDTH)?.required()?;
        for (key, size) in
            [("hidden_size", hidden_size), ("intermediate_size", intermediate_size), ("head_dim", head_dim)]
        {
            if !size.is_multiple_of(WIDTH_STEP) {
                return Err(keys.wrong(key, &size, format!("a multiple of {WIDTH_STEP}")));
            }
        }
        if heads * head_dim > MAX_WIDTH {
            let expected = format!("num_attention_heads * head_dim of at most {MAX_WIDTH}");
            return Err(keys.wrong("head_dim", &head_dim, expected));
        }

        let context = keys.size("max_position_embeddings", MAX_CONTEXT)?.or(2048);
        let (rope_theta, rope_scaling) = keys.rope(context)?;
        Ok(Self {
            hidden_size,
            intermediate_size,
            layers: keys.size("num_hidden_layers", MAX_LAYERS)?.required()?,
            heads,
            kv_heads,
            head_dim,
            vocab_size: keys.size("vocab_size", MAX_VOCAB)?.required()?,
            context,
            rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tied: keys.flag("tie_word_embeddings")?,
            attention_bias: keys.flag("attention_bias")?,
            eos: read_eos(checkpoint, &keys)?,
        })
    }
}

fn must_be_directory(checkpoint: &Path) -> Result<()> {
    match std::fs::metadata(checkpoint) {
        Ok(data) if data.is_dir() => Ok(()),
        Ok(_) => Err(malformed(
            checkpoint,
            "checkpoint",
            "a file",
            "a directory with config.json and *.safetensors".to_owned(),
        )),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing {
            path: checkpoint.to_path_buf(),
            what: "checkpoint directory",
            remedy: "name a local directory in Hugging Face layout".to_owned(),
        }),
        Err(source) => Err(Error::Read { path: checkpoint.to_path_buf(), source }),
    }
}

/// Refuses a directory that holds a LoRA adapter in place of a model.
pub(super) fn refuse_adapter(checkpoint: &Path) -> Result<()> {
    let path = checkpoint.join("adapter_config.json");
    if path.exists() {
        return Err(Error::Unsupported {
            path,
            what: "checkpoint kind",
            found: "LoRA adapter".to_owned(),
            supported: "full weights (merge the adapter into its base model and save that)".to_owned(),
        });
    }
    Ok(())
}

/// End-of-sequence ids of both config files, each once, `config.json`'s first.
fn read_eos(checkpoint: &Path, keys: &Keys) -> Result<Vec<u32>> {
    let mut eos = keys.ids("eos_token_id")?;
    let path = checkpoint.join("generation_config.json");
    let mut declared = keys.map.contains_key("eos_token_id");
    if path.exists() {
        let keys = Keys { map: read_object(&path, "generation_config.json", "", LIMIT_BYTES)?, path };
        declared |= keys.map.contains_key("eos_token_id");
        for id in keys.ids("eos_token_id")? {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
    }
    if !declared {
        eos.push(2);
    }
    Ok(eos)
}

/// A JSON object of a config file, with typed access that names the file and the key.
struct Keys {
    map: Map<String, Value>,
    path: PathBuf,
}

/// A size that may be absent.
struct Size<'a> {
    keys: &'a Keys,
    key: &'static str,
    value: Option<usize>,
}

impl Size<'_> {
    fn required(self) -> Result<usize> {
        self.value.ok_or_else(|| self.keys.wrong(self.key, "nothing", "a positive integer".to_owned()))
    }

    fn or(self, default: usize) -> usize {
        self.value.unwrap_or(default)
    }
}

/// Whether `quantization_config` says of packed matrices what the tensors then show.
fn is_packed(config: &Value) -> bool {
    let is = |key: &str, value: &str| config.get(key).and_then(Value::as_str) == Some(value);
    is("quant_method", "compressed-tensors") && is("format", "pack-quantized")
}

impl Keys {
    /// The value of `key`; `null` counts as absent, as in transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &(impl ToString + ?Sized), expected: String) -> Error {
        malformed(&self.path, key, &found.to_string(), expected)
    }

    fn unsupported(&self, what: &'static str, found: &(impl ToString + ?Sized), supported: &str) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            what,
            found: found.to_string(),
            supported: supported.to_owned(),
        }
    }

    fn size(&self, key: &'static str, max: usize) -> Result<Size<'_>> {
        let value = match self.get(key) {
            None => None,
            Some(value) => {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                match size.filter(|size| (1..=max).contains(size)) {
                    Some(size) => Some(size),
                    None => return Err(self.wrong(key, value, format!("an integer from 1 to {max}"))),
                }
            }
        };
        Ok(Size { keys: self, key, value })
    }

    /// A finite number above zero, rounded to f32.
    fn positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        #[expect(clippy::cast_possible_truncation, reason = "transformers computes with f32 here too")]
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, "a number above 0".to_owned())),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false".to_owned())),
        }
    }

    /// One id or a list of ids.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let ids = values.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        ids.collect::<Option<_>>()
            .ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids".to_owned()))
    }

    fn refuse_unsupported(&self) -> Result<()> {
        const LLAMA: &str = "LlamaForCausalLM (model_type llama)";
        match self.get("architectures") {
            Some(Value::Array(names)) if names.iter().any(|name| name == "LlamaForCausalLM") => {}
            Some(other) => return Err(self.unsupported("architecture", other, LLAMA)),
            None if self.get("model_type").is_some_and(|kind| kind == "llama") => {}
            None => return Err(self.unsupported("architecture", "(none named)", LLAMA)),
        }
        if let Some(kind) = self.get("model_type").filter(|kind| *kind != "llama") {
            return Err(self.unsupported("model_type", kind, LLAMA));
        }
        for key in ["quantization_config", "quantization"] {
            if let Some(config) = self.get(key).filter(|config| !is_packed(config)) {
                let method = config.get("quant_method").unwrap_or(config);
                let supported =
                    "weights in F32, F16 or BF16, and symmetric pack-quantized ones of compressed-tensors";
                return Err(self.unsupported("quantized checkpoint", method, supported));
            }
        }
        if let Some(act) = self.get("hidden_act").filter(|act| *act != "silu" && *act != "swish") {
            return Err(self.unsupported("hidden_act", act, "silu"));
        }
        if self.flag("mlp_bias")? {
            return Err(self.unsupported("mlp_bias", "true", "false"));
        }
        Ok(())
    }

    /// Base and stretching of the rotary frequencies, from `rope_scaling` (transformers 4) or `rope_parameters` (5).
    fn rope(&self, context: usize) -> Result<(f32, Option<RopeScaling>)> {
        let found =
            ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| Some((key, self.get(key)?)));
        let map = match found {
            None => Map::new(),
            Some((_, Value::Object(map))) => map.clone(),
            Some((key, other)) => return Err(self.wrong(key, other, "null or an object".to_owned())),
        };
        let key = found.map_or("rope_parameters", |(key, _)| key);
        let rope = Self { map, path: self.path.clone() };

        let theta = rope.positive("rope_theta")?.or(self.positive("rope_theta")?).unwrap_or(1e4);
        for keys in [self, &rope] {
            if let Some(share) = keys.get("partial_rotary_factor").filter(|share| share.as_f64() != Some(1.0))
            {
                return Err(self.unsupported("partial_rotary_factor", share, "1.0"));
            }
        }
        // A `rope_parameters` nested by layer type has no type of its own; it must not pass for the default.
        if let Some((name, _)) = rope.map.iter().find(|(_, value)| value.is_object()) {
            return Err(self.unsupported("rope parameters by layer type:", name, "one set for all layers"));
        }
        let kind = rope.get("rope_type").or(rope.get("type"));
        match kind.map(|kind| kind.as_str().unwrap_or("(not a string)")) {
            None | Some("default") => Ok((theta, None)),
            Some("llama3") => {
                let number = |name: &str| {
                    rope.positive(name)?.ok_or_else(|| {
                        self.wrong(&format!("{key}.{name}"), "nothing", "a number above 0".to_owned())
                    })
                };
                let name = "original_max_position_embeddings";
                let original_context = match self.positive(name)? {
                    Some(outer) => outer,
                    None => rope.positive(name)?.unwrap_or(context as f32),
                };
                let scaling = RopeScaling {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_context,
                };
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    return Err(self.wrong(
                        &format!("{key}.high_freq_factor"),
                        &scaling.high_freq_factor,
                        format!("more than low_freq_factor = {}", scaling.low_freq_factor),
                    ));
                }
                Ok((theta, Some(scaling)))
            }
            Some(other) => Err(self.unsupported("rope type", other, "default, llama3")),
        }
    }
}
