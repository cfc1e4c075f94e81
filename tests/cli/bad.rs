//! Every bad input ends in one line that names it.

use serde_json::{Value, json};

use super::{one_line, stderr, undertext};
use crate::family::Family;

/// Makes the last weight of a checkpoint NaN.
pub(super) fn poison(family: &Family, name: &str) {
    let path = family.path(name).join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// Every bad input: what breaks it, and what the error must name.
type Bad = (&'static str, fn(&Family), &'static [&'static str]);

const BAD: [Bad; 15] = [
    ("directory missing", |f| std::fs::remove_dir_all(f.path("npo")).unwrap(), &["npo", "missing"]),
    (
        "no config.json",
        |f| std::fs::remove_file(f.path("npo/config.json")).unwrap(),
        &["npo", "config.json", "missing"],
    ),
    (
        "unsupported architecture",
        |f| {
            f.change(
                "npo/config.json",
                &json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}),
            );
        },
        &["config.json", "MambaForCausalLM", "not supported", "LlamaForCausalLM"],
    ),
    (
        "shard missing",
        |f| {
            std::fs::remove_file(f.path("npo/model.safetensors")).unwrap();
            let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
            f.write("npo/model.safetensors.index.json", index.to_string());
        },
        &["model-00001-of-00002.safetensors", "missing"],
    ),
    (
        "tensor missing",
        |f| f.change("npo/config.json", &json!({"num_hidden_layers": 2})),
        &["npo", "model.layers.1.", "missing"],
    ),
    (
        "shape mismatch",
        |f| f.change("npo/config.json", &json!({"intermediate_size": 32})),
        &["model.safetensors", "mlp.gate_proj", "[24, 16]", "[32, 16]"],
    ),
    (
        "truncated safetensors",
        |f| {
            let bytes = std::fs::read(f.path("npo/model.safetensors")).unwrap();
            f.write("npo/model.safetensors", &bytes[..bytes.len() - 100]);
        },
        &["npo", "model.safetensors"],
    ),
    (
        "git-LFS pointer",
        |f| {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n";
            f.write("npo/model.safetensors", pointer);
        },
        &["model.safetensors", "LFS"],
    ),
    ("NaN in a weight", |f| poison(f, "npo"), &["model.safetensors", "NaN"]),
    (
        "tokenizer missing",
        |f| std::fs::remove_file(f.path("npo/tokenizer.json")).unwrap(),
        &["tokenizer.json", "missing"],
    ),
    (
        "token id beyond the vocabulary",
        |f| {
            let mut tokenizer: Value =
                serde_json::from_slice(&std::fs::read(f.path("npo/tokenizer.json")).unwrap()).unwrap();
            tokenizer["model"]["vocab"]["w1"] = json!(5000);
            f.write("npo/tokenizer.json", tokenizer.to_string());
        },
        &["tokenizer.json", "5000", "80"],
    ),
    ("empty data file", |f| f.write("data/verbmem/forget.json", ""), &["verbmem/forget.json", "empty"]),
    ("empty list", |f| f.write("data/knowmem/forget_qa.json", "[]"), &["knowmem/forget_qa.json", "empty"]),
    (
        "wrong JSON field",
        |f| f.write("data/knowmem/forget_qa.json", r#"[{"question": "w1", "reply": "w2"}]"#),
        &["knowmem/forget_qa.json", "example 0", "answer", "reply"],
    ),
    ("data directory missing", |f| std::fs::remove_dir_all(f.path("data")).unwrap(), &["data", "missing"]),
];

#[test]
fn bad_inputs_end_in_one_line_and_code_3() {
    for (name, spoil, parts) in BAD {
        let family = Family::new(&["target", "npo"]);
        spoil(&family);
        let line = "audit --target $/target --unlearned $/npo --data $/data --limit 1 --device cpu --json";
        let output = undertext(&family, line);
        println!("{name}: {}", stderr(&output));
        one_line(&output, 3, parts);
    }
}
