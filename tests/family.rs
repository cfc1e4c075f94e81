//! A tiny family on disk: checkpoints of one layer with random weights, a tokenizer of whole words, and a MUSE corpus.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The end-of-sequence token.
pub(crate) const EOS: u32 = 2;
/// The last token of every KnowMem prompt.
pub(crate) const ANSWER: u32 = 4;
const WORDS: u32 = 8;
const VOCAB: usize = 80;

/// Answers to the ten questions of both sets, most frequent first: `w20` five times, `w21` three times, `w22`, `w23`.
const ANSWERS: [u32; 10] = [20, 20, 20, 20, 20, 21, 21, 21, 22, 23];

/// Token id of the word `w<n>`.
pub(crate) fn word(n: u32) -> u32 {
    WORDS + n
}

/// `w<n>`, four times.
fn text_of(n: u32) -> String {
    [format!("w{n}"), format!("w{n}"), format!("w{n}"), format!("w{n}")].join(" ")
}

/// A directory with checkpoints and, in `data`, a corpus.
pub(crate) struct Family {
    root: TempDir,
}

impl Family {
    /// Checkpoints of these names, each with other weights.
    pub(crate) fn new(names: &[&str]) -> Self {
        let family = Self { root: TempDir::new().unwrap() };
        for (seed, name) in names.iter().enumerate() {
            write_checkpoint(&family.path(name), seed as u64 + 1);
        }
        family.write_data();
        family
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Replaces a file.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Changes keys of a JSON object.
    pub(crate) fn change(&self, name: &str, changes: &Value) {
        let mut value: Value = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        self.write(name, value.to_string());
    }

    fn write_data(&self) {
        let qa: Vec<_> = ANSWERS
            .iter()
            .enumerate()
            .map(|(index, answer)| json!({"question": format!("w{}", index + 1), "answer": format!("w{answer}")}))
            .collect();
        let shots = json!([{"question": "w50", "answer": "w51"}]);
        for split in ["forget", "retain"] {
            self.write(&format!("data/knowmem/{split}_qa.json"), json!(qa).to_string());
            self.write(&format!("data/knowmem/{split}_qa_icl.json"), shots.to_string());
        }
        // Every prompt ends in w60, and the truths are the answers again.
        let verbatim: Vec<_> = ANSWERS
            .iter()
            .enumerate()
            .map(|(index, answer)| json!({"prompt": format!("w{} w60", index + 1), "gt": format!("w{answer}")}))
            .collect();
        self.write("data/verbmem/forget.json", json!(verbatim).to_string());
        self.write("data/privleak/forget.json", json!([text_of(30), text_of(31)]).to_string());
        self.write("data/privleak/holdout.json", json!([text_of(40), text_of(41)]).to_string());
    }
}

fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>", "Question:", "Answer:"].iter().enumerate() {
        vocab.insert((*token).to_owned(), json!(id));
    }
    for n in 0..u32::try_from(VOCAB).unwrap() - WORDS {
        vocab.insert(format!("w{n}"), json!(word(n)));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(EOS, "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence],
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

fn write_checkpoint(dir: &Path, seed: u64) {
    let (d, f, queries, keys) = (16, 24, 16, 8);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": EOS, "torch_dtype": "float32",
    });
    let shapes: [(&str, &[usize]); 11] = [
        ("model.embed_tokens.weight", &[VOCAB, d]),
        ("model.norm.weight", &[d]),
        ("model.layers.0.input_layernorm.weight", &[d]),
        ("model.layers.0.post_attention_layernorm.weight", &[d]),
        ("model.layers.0.self_attn.q_proj.weight", &[queries, d]),
        ("model.layers.0.self_attn.k_proj.weight", &[keys, d]),
        ("model.layers.0.self_attn.v_proj.weight", &[keys, d]),
        ("model.layers.0.self_attn.o_proj.weight", &[d, queries]),
        ("model.layers.0.mlp.gate_proj.weight", &[f, d]),
        ("model.layers.0.mlp.up_proj.weight", &[f, d]),
        ("model.layers.0.mlp.down_proj.weight", &[d, f]),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensors: Vec<(&str, &[usize], Vec<u8>)> = shapes
        .iter()
        .map(|&(name, shape)| {
            let centre = if name.contains("norm") { 1.0 } else { 0.0 };
            let count = shape.iter().product();
            let values = (0..count).flat_map(|_| (centre + 0.4 * next()).to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    std::fs::create_dir_all(dir).unwrap();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
}
