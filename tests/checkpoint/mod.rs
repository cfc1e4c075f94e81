//! Checkpoints on disk: what loads, and what every kind of broken input is answered with.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod config;
mod tensors;
mod tokenizer;

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::Result;
use undertext::checkpoint::Checkpoint;
use undertext::quant::{self, Scheme};

use tensors::one_tensor;
use tokenizer::tokenizer_json;

/// A config that loads, small.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 12,
    })
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), content).unwrap();
}

fn write_json(dir: &Path, name: &str, value: &Value) {
    write(dir, name, value.to_string());
}

/// Asserts exit code 3 and that the message has every part.
fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    assert!(!message.contains('\n'), "one line: {message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn directories_and_config_files_that_are_not_there_or_broken() {
    let dir = TempDir::new().unwrap();
    let open = || Checkpoint::open(dir.path());
    refused(Checkpoint::open(&dir.path().join("nowhere")), &["nowhere", "directory is missing"]);
    refused(open(), &["config.json", "missing"]);

    write(dir.path(), "config.json", "");
    refused(open(), &["config.json", "empty"]);
    write(dir.path(), "config.json", "{\"hidden_size\": ");
    refused(open(), &["config.json", "JSON"]);
    write(dir.path(), "config.json", "[1]");
    refused(open(), &["config.json", "an array", "an object"]);
    write(dir.path(), "config.json", b"{\"a\": \"\xff\"}");
    refused(open(), &["config.json", "UTF-8", "offset 7"]);
    write(dir.path(), "config.json", "\u{feff}{}");
    refused(open(), &["config.json", "byte-order mark"]);
    write(dir.path(), "config.json", vec![b' '; (1 << 20) + 1]);
    refused(open(), &["config.json", "1048576 bytes"]);
    write(dir.path(), "config.json", "[".repeat(100_000));
    refused(open(), &["config.json"]);
    refused(Checkpoint::open(&dir.path().join("config.json")), &["config.json", "a file", "a directory"]);
}

#[test]
fn whole_checkpoint() {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "config.json", &config());
    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "no", ".", "do", "n't"]));
    write(dir.path(), "model.safetensors", one_tensor("w", Dtype::F32, &[1], &[0; 4]));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.config().vocab_size, 12);
    assert!(checkpoint.tensors().contains("w"));
    assert_eq!(checkpoint.path(), dir.path());

    let tokenizer = checkpoint.tokenizer().unwrap();
    // Neither the saved truncation (3) nor the saved padding (20) applies.
    assert_eq!(tokenizer.encode("yes yes no no .").unwrap(), [1, 3, 3, 4, 4, 5]);
    assert_eq!(tokenizer.added(), [1]);
    assert_eq!(tokenizer.declares_bos(), None);
    assert_eq!(tokenizer.decode(&[1, 3, 6, 7, 5, 2]).unwrap(), "yes do n't .");
    assert_eq!(tokenizer.decode_cleaned(&[1, 3, 6, 7, 5, 2]).unwrap(), "yes don't.");
}

/// FNV-1a, 64 bits: what `tests/golden/model/make_logits.py` hashes with.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn golden_model_loads_and_our_codec_is_the_one_its_logits_were_made_with() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model/tiny_llama");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = checkpoint.config();
    let widths =
        [config.hidden_size, config.intermediate_size, config.head_dim, config.heads, config.kv_heads];
    assert_eq!(widths, [64, 136, 24, 4, 2]);
    assert_eq!((config.layers, config.vocab_size, config.context), (3, 320, 256));
    assert_eq!((config.tied, config.attention_bias, config.rms_norm_eps), (false, true, 1e-2));
    let scaling = config.rope_scaling.unwrap();
    assert_eq!((config.rope_theta, scaling.factor, scaling.original_context), (1e4, 4.0, 32.0));
    assert_eq!((scaling.low_freq_factor, scaling.high_freq_factor), (1.0, 4.0));
    assert_eq!(config.eos, [2]);

    let tensors = checkpoint.tensors();
    for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        assert!(tensors.contains(&format!("model.layers.2.self_attn.{module}.bias")), "{module}");
    }
    let dtype = |name: &str| tensors.describe(name).unwrap().0;
    assert_eq!(dtype("model.embed_tokens.weight"), Scheme::F32);
    assert_eq!(dtype("model.layers.2.self_attn.q_proj.weight"), Scheme::Bf16);
    assert_eq!(dtype("lm_head.weight"), Scheme::F16);

    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("logits.json")).unwrap()).unwrap();
    let schemes = golden["dequantized_fnv1a"].as_object().unwrap();
    let mut compared = 0;
    for (scheme, hashes) in schemes {
        let scheme: Scheme = scheme.parse().unwrap();
        for (name, hash) in hashes.as_object().unwrap() {
            let (_, shape) = tensors.describe(name).unwrap();
            let &[rows, cols] = shape else { panic!("{name} is {shape:?}") };
            let weights = tensors.read(name, shape).unwrap().to_f32();
            let decoded = quant::decode(&quant::encode(scheme, &weights, rows, cols));
            let ours = fnv1a(decoded.iter().flat_map(|value| value.to_le_bytes()));
            assert_eq!(format!("{ours:016x}"), hash.as_str().unwrap(), "{scheme} {name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 3 * 7);
}

/// By hand: `UNDERTEXT_SMOLLM2=DIR cargo test smollm2 -- --ignored`, DIR as assets/smollm2/convert.py writes it.
#[test]
#[ignore = "needs the SmolLM2 checkpoint that assets/smollm2/convert.py makes"]
fn smollm2_loads_and_tokenizes_as_transformers_does() {
    let dir = std::env::var_os("UNDERTEXT_SMOLLM2").expect("UNDERTEXT_SMOLLM2 names the checkpoint");
    let checkpoint = Checkpoint::open(Path::new(&dir)).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.rope_theta), (9, 3, 64, 1e5));
    assert!(config.tied);
    let shape = [config.vocab_size, config.hidden_size];
    let embedding = checkpoint.tensors().read("model.embed_tokens.weight", &shape).unwrap();
    let row = checkpoint.tensors().read_rows("model.embed_tokens.weight", &shape, 7042..7043).unwrap();
    assert_eq!(row.to_f32(), embedding.to_f32()[7042 * shape[1]..7043 * shape[1]]);

    let tokenizer = checkpoint.tokenizer().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2/greedy.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        assert_eq!(tokenizer.encode(case["prompt"].as_str().unwrap()).unwrap(), ids(&case["prompt_ids"]));
        assert_eq!(tokenizer.decode(&ids(&case["token_ids"])).unwrap(), case["text"].as_str().unwrap());
    }
}
