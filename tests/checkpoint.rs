//! Checkpoints on disk: what loads, and what every kind of broken input is answered with.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::checkpoint::{Checkpoint, Config, RopeScaling, Tensors, Tokenizer};
use undertext::quant::Scheme;
use undertext::{Error, Result};

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

/// [`config`] with some keys changed; `null` leaves the key out.
fn config_with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(key),
            value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    config
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), content).unwrap();
}

fn write_json(dir: &Path, name: &str, value: &Value) {
    write(dir, name, value.to_string());
}

/// A word-level tokenizer with BOS 1 and EOS 2, its post-processor adding BOS.
fn tokenizer_json(words: &[&str]) -> Value {
    let mut vocab: HashMap<&str, usize> = HashMap::from([("<unk>", 0), ("<s>", 1), ("</s>", 2)]);
    for (index, word) in words.iter().enumerate() {
        vocab.insert(word, 3 + index);
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        // As some published tokenizers carry: must not shorten or lengthen what is encoded.
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

/// Bytes of a safetensors file with one tensor.
fn safetensors(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

/// Bytes of a file with this header and these data, whether or not they fit.
fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
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

fn read_config(value: &Value) -> Result<Config> {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "config.json", value);
    Config::read(dir.path())
}

#[test]
fn config_defaults_are_those_of_transformers() {
    let read = read_config(&config()).unwrap();
    let expected = Config {
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 8,
        vocab_size: 12,
        context: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: None,
        tied: false,
        attention_bias: false,
        eos: vec![2],
    };
    assert_eq!(read, expected);
    let nulls = json!({"num_key_value_heads": null, "head_dim": null, "rope_scaling": null});
    let mut with_nulls = config();
    with_nulls.as_object_mut().unwrap().extend(nulls.as_object().unwrap().clone());
    assert_eq!(read_config(&with_nulls).unwrap(), expected);
}

#[test]
fn config_rope_of_transformers_4_and_5() {
    let llama3 = Some(RopeScaling {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192.0,
    });
    let stretch = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
    let mut stretch_5 = stretch.clone();
    stretch_5["rope_theta"] = json!(500000.0);
    let cases = [
        (json!({"rope_theta": 500000.0, "rope_scaling": stretch}), 5e5, llama3),
        (json!({"rope_parameters": stretch_5, "dtype": "bfloat16"}), 5e5, llama3),
        (json!({"rope_parameters": stretch_5, "rope_theta": 7.0}), 5e5, llama3),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}), 1e6, None),
        (json!({"rope_scaling": {"type": "default"}, "rope_theta": 3}), 3.0, None),
        (json!({"torch_dtype": "float16"}), 1e4, None),
    ];
    for (keys, theta, scaling) in cases {
        let read = read_config(&config_with(keys.clone())).unwrap();
        assert_eq!((read.rope_theta, read.rope_scaling), (theta, scaling), "{keys}");
    }
    // The context before stretching defaults to the context.
    let keys = json!({"max_position_embeddings": 640, "rope_scaling":
        {"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}});
    assert_eq!(read_config(&config_with(keys)).unwrap().rope_scaling.unwrap().original_context, 640.0);
}

#[test]
fn config_eos_comes_from_both_files() {
    let cases = [
        (json!({"eos_token_id": 5}), None, vec![5]),
        (json!({"eos_token_id": [5, 6]}), Some(json!({"eos_token_id": [6, 7]})), vec![5, 6, 7]),
        (json!({}), Some(json!({"eos_token_id": 9})), vec![9]),
        (json!({}), Some(json!({})), vec![2]),
    ];
    for (keys, generation, eos) in cases {
        let dir = TempDir::new().unwrap();
        write_json(dir.path(), "config.json", &config_with(keys));
        if let Some(generation) = generation {
            write_json(dir.path(), "generation_config.json", &generation);
        }
        assert_eq!(Config::read(dir.path()).unwrap().eos, eos);
    }
    refused(read_config(&config_with(json!({"eos_token_id": -1}))), &["config.json", "eos_token_id", "-1"]);
}

#[test]
fn config_refuses_what_is_not_supported_by_name() {
    let cases = [
        (json!({"architectures": ["MistralForCausalLM"]}), vec!["MistralForCausalLM", "LlamaForCausalLM"]),
        (json!({"architectures": null, "model_type": null}), vec!["architecture", "none named"]),
        (json!({"model_type": "qwen2"}), vec!["model_type", "qwen2"]),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), vec!["rope type", "linear", "llama3"]),
        (json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}), vec!["rope type", "yarn"]),
        (json!({"rope_scaling": {"rope_type": 4}}), vec!["rope type"]),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
            vec!["rope_scaling.low_freq_factor"],
        ),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), vec!["full_attention"]),
        (json!({"partial_rotary_factor": 0.5}), vec!["partial_rotary_factor", "0.5"]),
        (json!({"hidden_act": "gelu"}), vec!["hidden_act", "gelu", "silu"]),
        (json!({"mlp_bias": true}), vec!["mlp_bias", "true"]),
        (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), vec!["quantized", "gptq"]),
    ];
    for (keys, mut parts) in cases {
        parts.push("config.json");
        refused(read_config(&config_with(keys)), &parts);
    }
}

#[test]
fn config_refuses_impossible_numbers() {
    let cases = [
        (json!({"hidden_size": 1_u64 << 40}), vec!["hidden_size", "1099511627776", "1048576"]),
        (json!({"num_hidden_layers": 1_000_000_000}), vec!["num_hidden_layers", "1000000000"]),
        (json!({"num_hidden_layers": 0}), vec!["num_hidden_layers", "found 0"]),
        (json!({"vocab_size": -5}), vec!["vocab_size", "-5"]),
        (json!({"vocab_size": 12.5}), vec!["vocab_size", "12.5"]),
        (json!({"vocab_size": "12"}), vec!["vocab_size", "\"12\""]),
        (json!({"vocab_size": null}), vec!["vocab_size", "found nothing"]),
        (json!({"hidden_size": 20}), vec!["hidden_size", "20", "multiple of 8"]),
        (json!({"intermediate_size": 20}), vec!["intermediate_size", "20", "multiple of 8"]),
        (json!({"head_dim": 12}), vec!["head_dim", "12", "multiple of 8"]),
        (json!({"num_attention_heads": 3}), vec!["hidden_size", "16", "multiple of num_attention_heads"]),
        (
            json!({"num_attention_heads": 4, "num_key_value_heads": 3, "head_dim": 8}),
            vec!["num_key_value_heads"],
        ),
        (json!({"num_attention_heads": 1 << 20, "head_dim": 8}), vec!["head_dim"]),
        (json!({"rms_norm_eps": -1e-6}), vec!["rms_norm_eps", "above 0"]),
        (json!({"rope_theta": 1e39}), vec!["rope_theta"]),
        (json!({"tie_word_embeddings": "yes"}), vec!["tie_word_embeddings", "yes"]),
    ];
    for (keys, parts) in cases {
        refused(read_config(&config_with(keys)), &parts);
    }
    // A head width that hidden / heads does not give is fine when it is stated.
    let read = read_config(&config_with(json!({"num_attention_heads": 3, "head_dim": 24}))).unwrap();
    assert_eq!((read.heads, read.kv_heads, read.head_dim), (3, 3, 24));
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
fn weight_files_that_are_not_there() {
    let dir = TempDir::new().unwrap();
    let open = || Tensors::open(dir.path());
    refused(open(), &["model.safetensors", "missing"]);
    write(dir.path(), "pytorch_model.bin", "PK");
    refused(open(), &["pytorch_model.bin", "safetensors"]);
    write(dir.path(), "model-00001-of-00002.safetensors", "");
    refused(open(), &["model.safetensors.index.json", "model-00001-of-00002.safetensors"]);

    let dir = TempDir::new().unwrap();
    write(dir.path(), "adapter_config.json", "{}");
    refused(Tensors::open(dir.path()), &["adapter_config.json", "LoRA"]);
    refused(Checkpoint::open(dir.path()), &["adapter_config.json", "LoRA"]);
}

#[test]
fn one_file_that_is_broken() {
    let dir = TempDir::new().unwrap();
    let refuse = |bytes: &[u8], parts: &[&str]| {
        write(dir.path(), "model.safetensors", bytes);
        refused(Tensors::open(dir.path()), &[&["model.safetensors"], parts].concat());
    };
    let good = safetensors("w", Dtype::F32, &[2, 2], &f32_bytes(&[1.0, 2.0, 3.0, 4.0]));
    let (len, cut) = (good.len(), good.len() - 3);

    refuse(&good[..cut], &["truncated", &format!("{cut} bytes"), &format!("{len} by")]);
    refuse(&[&good[..], b"x"].concat(), &["trailing", &format!("{} bytes", len + 1)]);
    refuse(&good[..20], &["truncated", "20 bytes"]);
    refuse(&good[..5], &["truncated", "5 bytes"]);
    refuse(b"", &["truncated", "0 bytes"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    refuse(pointer.as_bytes(), &["git-LFS pointer", "git lfs pull"]);
    refuse(&[0xff; 40], &["header length", "not a safetensors file"]);
    refuse(&raw_safetensors("{\"w\": ", &[]), &["header"]);

    let entry = |name: &str, from: usize, to: usize| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{from},{to}]}}")
    };
    let twice = format!("{{{},{}}}", entry("w", 0, 4), entry("w", 4, 8));
    refuse(&raw_safetensors(&twice, &[0; 8]), &["header", "tensor w twice"]);
    let overlapping = format!("{{{},{}}}", entry("a", 0, 4), entry("b", 2, 6));
    refuse(&raw_safetensors(&overlapping, &[0; 6]), &["header"]);
    let wrong_size = format!("{{{}}}", entry("w", 0, 8));
    refuse(&raw_safetensors(&wrong_size, &[0; 8]), &["header"]);
    let unknown = "{\"w\":{\"dtype\":\"Q9\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    refuse(&raw_safetensors(unknown, &[0; 4]), &["header", "Q9"]);
    let huge = "{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}";
    refuse(&raw_safetensors(huge, &[0; 4]), &["header"]);
}

#[test]
fn one_file_that_is_whole() {
    let dir = TempDir::new().unwrap();
    let values = [0.5, -1.0, 3.25, 0.0, -0.0, 65504.0];
    let halves: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let brains: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let singles = f32_bytes(&values);
    for (dtype, scheme, bytes, last) in [
        (Dtype::F32, Scheme::F32, &singles, 65504.0),
        (Dtype::F16, Scheme::F16, &halves, 65504.0),
        (Dtype::BF16, Scheme::Bf16, &brains, 65536.0),
    ] {
        let file = safetensors("w", dtype, &[3, 2], bytes);
        write(dir.path(), "model.safetensors", &file);
        let tensors = Tensors::open(dir.path()).unwrap();
        assert!(tensors.contains("w") && !tensors.contains("v"));
        assert_eq!(tensors.names(), ["w"]);
        assert_eq!(tensors.describe("w").unwrap(), (scheme, &[3, 2][..]));

        let header = tensors.bytes_read();
        assert_eq!(header as usize + bytes.len(), file.len());
        let whole = tensors.read("w", &[3, 2]).unwrap();
        assert_eq!((whole.dtype, &whole.shape[..], &whole.bytes), (scheme, &[3, 2][..], bytes));
        let widened = whole.to_f32();
        assert_eq!(widened[..5], values[..5]);
        assert!(widened[4].is_sign_negative());
        assert_eq!(widened[5], last);
        assert_eq!(tensors.bytes_read() as usize, file.len());

        let row = tensors.read_rows("w", &[3, 2], 1..2).unwrap();
        assert_eq!((&row.shape[..], row.to_f32()), (&[1, 2][..], vec![3.25, 0.0]));
        assert_eq!(tensors.bytes_read() as usize, file.len() + bytes.len() / 3);
        let error = tensors.read_rows("w", &[3, 2], 2..4).unwrap_err();
        assert!(matches!(error, Error::Shape { got: 4, .. }), "{error}");
    }
}

#[test]
fn tensors_that_are_wrong() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "model.safetensors", safetensors("w", Dtype::F32, &[2, 2], &[0; 16]));
    let tensors = Tensors::open(dir.path()).unwrap();
    refused(tensors.read("model.norm.weight", &[2]), &["tensor model.norm.weight is missing"]);
    refused(tensors.read("w", &[2, 3]), &["model.safetensors", "tensor w", "[2, 2]", "[2, 3]"]);
    refused(tensors.read("w", &[4]), &["[2, 2]", "[4]"]);
    refused(tensors.read_rows("w", &[3, 2], 0..1), &["[2, 2]", "[3, 2]"]);

    write(dir.path(), "model.safetensors", safetensors("w", Dtype::F8_E4M3, &[2, 2], &[0; 4]));
    let tensors = Tensors::open(dir.path()).unwrap();
    refused(tensors.read("w", &[2, 2]), &["F8_E4M3", "tensor w", "F32, F16, BF16"]);
    refused(tensors.describe("w"), &["F8_E4M3", "tensor w"]);
}

#[test]
fn weights_that_are_not_finite_are_found_wherever_they_are() {
    // More than one scanned chunk (a MiB) in each dtype.
    let (rows, cols) = (1100, 512);
    let dir = TempDir::new().unwrap();
    let f16 = |value: f32| half::f16::from_f32(value).to_le_bytes().to_vec();
    let bf16 = |value: f32| half::bf16::from_f32(value).to_le_bytes().to_vec();
    let f32 = |value: f32| value.to_le_bytes().to_vec();
    type ToBytes<'a> = &'a dyn Fn(f32) -> Vec<u8>;
    let dtypes: [(Dtype, ToBytes<'_>); 3] = [(Dtype::F32, &f32), (Dtype::F16, &f16), (Dtype::BF16, &bf16)];
    for (dtype, to_bytes) in dtypes {
        for (value, text, index) in [
            (f32::NAN, "NaN", 0),
            (f32::INFINITY, "inf", rows * cols - 1),
            (f32::NEG_INFINITY, "-inf", 555_555),
        ] {
            let one = to_bytes(-65504.0);
            let mut bytes = one.repeat(rows * cols);
            bytes[index * one.len()..(index + 1) * one.len()].copy_from_slice(&to_bytes(value));
            write(dir.path(), "model.safetensors", safetensors("w", dtype, &[rows, cols], &bytes));
            let tensors = Tensors::open(dir.path()).unwrap();
            let (index_text, row) = (format!("{text} at index {index},"), index / cols);
            refused(tensors.read("w", &[rows, cols]), &["model.safetensors", "tensor w", &index_text]);
            refused(tensors.read_rows("w", &[rows, cols], row..row + 1), &[&index_text]);
            let other = if row == 0 { 1..rows } else { 0..row };
            tensors.read_rows("w", &[rows, cols], other).unwrap();
        }
    }
}

#[test]
fn shards_and_their_index() {
    let dir = TempDir::new().unwrap();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let index =
        |map: Value| write_json(dir.path(), "model.safetensors.index.json", &json!({"weight_map": map}));
    let open = || Tensors::open(dir.path());
    write(dir.path(), first, safetensors("a", Dtype::F32, &[1], &f32_bytes(&[1.5])));
    index(json!({"a": first, "b": second}));
    refused(open(), &[second, "missing"]);

    write(dir.path(), second, safetensors("b", Dtype::F32, &[2], &f32_bytes(&[2.5, 3.5])));
    let tensors = open().unwrap();
    assert_eq!(tensors.read("a", &[1]).unwrap().to_f32(), [1.5]);
    assert_eq!(tensors.read("b", &[2]).unwrap().to_f32(), [2.5, 3.5]);
    refused(tensors.read("b", &[3]), &[second, "[2]", "[3]"]);

    index(json!({"a": first, "b": second, "c": second}));
    refused(open(), &[second, "no tensor c", "model.safetensors.index.json"]);
    for escape in ["../evil.safetensors", "/etc/passwd", "x/../../y", "..", "", "a\\b"] {
        index(json!({"a": escape}));
        refused(open(), &["model.safetensors.index.json", "weight_map of a", "inside the checkpoint"]);
    }
    index(json!({"a": 7}));
    refused(open(), &["weight_map of a", "found 7"]);
    write_json(dir.path(), "model.safetensors.index.json", &json!({"metadata": {}}));
    refused(open(), &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn file_cut_after_it_was_opened() {
    let dir = TempDir::new().unwrap();
    let file = safetensors("w", Dtype::F32, &[4], &[0; 16]);
    write(dir.path(), "model.safetensors", &file);
    let tensors = Tensors::open(dir.path()).unwrap();
    write(dir.path(), "model.safetensors", &file[..file.len() - 4]);
    refused(tensors.read("w", &[4]), &["model.safetensors", "being changed"]);
}

#[test]
fn whole_checkpoint() {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "config.json", &config());
    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "no", ".", "do", "n't"]));
    write(dir.path(), "model.safetensors", safetensors("w", Dtype::F32, &[1], &[0; 4]));
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

#[test]
fn tokenizer_config_is_read() {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "."]));
    let read = |config: Value| {
        write_json(dir.path(), "tokenizer_config.json", &config);
        Tokenizer::read(dir.path(), 5)
    };
    let cleaned = |config: Value| read(config).unwrap().decode(&[3, 4]).unwrap();
    assert_eq!(cleaned(json!({})), "yes .");
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": false})), "yes .");
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true})), "yes.");
    assert_eq!(read(json!({"add_bos_token": true})).unwrap().declares_bos(), Some(true));
    refused(read(json!({"add_bos_token": 1})), &["tokenizer_config.json", "add_bos_token", "found 1"]);

    // transformers 5 does not clean up after BPE, whatever clean_up_tokenization_spaces says.
    let mut bpe = tokenizer_json(&[]);
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, ".": 4});
    bpe["model"] = json!({"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"});
    write_json(dir.path(), "tokenizer.json", &bpe);
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true})), "a .");
    let force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true, force: true})), "a.");
}

#[test]
fn tokenizers_that_do_not_fit() {
    let dir = TempDir::new().unwrap();
    let read = |vocab| Tokenizer::read(dir.path(), vocab);
    refused(read(5), &["tokenizer.json", "tokenizer is missing"]);
    write(dir.path(), "tokenizer.model", "");
    refused(read(5), &["tokenizer.json", "only tokenizer.model"]);
    write(dir.path(), "tokenizer.json", "{}");
    refused(read(5), &["tokenizer.json"]);
    write(dir.path(), "tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
    refused(read(5), &["tokenizer.json", "git lfs pull"]);

    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "no"]));
    read(5).unwrap();
    refused(read(4), &["tokenizer.json", "token id 4", "4 rows"]);
    // A post-processor's id is not in the vocabulary that the tokenizer lists.
    let mut tokenizer = tokenizer_json(&["yes", "no"]);
    tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([77]);
    write_json(dir.path(), "tokenizer.json", &tokenizer);
    refused(read(5), &["tokenizer.json", "token id 77"]);
}
