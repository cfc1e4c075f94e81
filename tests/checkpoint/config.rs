//! `config.json` and `generation_config.json`.

#![expect(clippy::needless_pass_by_value, reason = "so that json!(…) can be written in place")]

use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::Result;
use undertext::checkpoint::{Config, RopeScaling};

use super::{config, refused, write_json};

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

fn read_config(value: &Value) -> Result<Config> {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "config.json", value);
    Config::read(dir.path())
}

#[test]
fn defaults_are_those_of_transformers() {
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
fn rope_of_transformers_4_and_5() {
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
fn eos_comes_from_both_files() {
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
fn refuses_what_is_not_supported_by_name() {
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
fn refuses_impossible_numbers() {
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
