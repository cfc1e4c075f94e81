//! `undertext codes`.

use serde_json::{Value, json};

use super::{failure, good, json_of, stderr, stdout, undertext};
use crate::family::Family;

#[test]
fn codes_gives_names_that_stay() {
    let family = Family::new(&["target", "npo"]);
    let output =
        undertext(&family, "codes $/target $/npo --schemes int8,int4,nf4-b64,int8 --quantize-head --json");
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
    let value = json_of(&output);
    assert_eq!(value["schema_version"], 1);
    assert_eq!(value["plan"]["schemes"], json!(["int8", "int4-g128", "nf4-b64"]));
    assert_eq!(value["plan"]["quantize_head"], true);
    let schemes = value["schemes"].as_object().unwrap();
    assert_eq!(schemes.keys().collect::<Vec<_>>(), ["int4-g128", "int8", "nf4-b64"]);
    // q, o: 16 x 16; k, v: 8 x 16; gate, up, down: 24 x 16; head: 80 x 16.
    let (layers, head) = (2 * 256 + 2 * 128 + 3 * 384, 1280);
    for scheme in schemes.values() {
        let total = &scheme["total"];
        assert_eq!(total["weights"], layers + head);
        for name in [
            "changed",
            "code_equal",
            "code_changed",
            "scale_changed",
            "value_changed",
            "absorbed",
            "zero_codes_target",
            "zero_codes_unlearned",
            "movement_from_zero",
            "flips_predicted",
            "survival",
            "norm_ratio",
        ] {
            assert!(total[name].is_f64(), "{name} in {total}");
        }
        for name in ["mean", "p50", "p90", "p99", "max"] {
            assert!(total["delta_over_step"][name].is_f64(), "{name} in {total}");
        }
        assert_eq!(scheme["layers"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&scheme["layers"][0]["layer"], &scheme["layers"][0]["total"]["weights"]),
            (&json!(0), &json!(layers))
        );
        assert_eq!(scheme["layers"][0]["modules"]["down_proj"]["weights"], 384);
        assert_eq!(scheme["modules"].as_object().unwrap().len(), 7);
        assert_eq!(scheme["head"]["weights"], head);
    }
    // Independent weights of another checkpoint: int8 keeps such an update, and says so.
    let survival = value["schemes"]["int8"]["total"]["survival"].as_f64().unwrap();
    assert!((survival - 1.0).abs() < 0.01, "{survival}");
    // The embedding is the head too, norms are all that is left besides.
    assert_eq!(value["as_stored"]["weights"], 1280 + 3 * 16);
    assert!(value["disk_bytes"].as_u64().unwrap() > 0 && value["seconds"].is_number());
}

/// Embeddings and norms are no part of survival, and are not passed over in silence either.
#[test]
fn codes_says_what_changed_outside_the_matrices() {
    let family = Family::new(&["target", "npo"]);
    let [target, npo] = ["target", "npo"].map(|name| family.path(&format!("{name}/model.safetensors")));
    let [target, npo] = [target, npo].map(|path| std::fs::read(path).unwrap());
    let [target, npo] = [&target, &npo].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    let (mut all, mut outside) = (0.0, 0.0);
    for (name, old) in target.tensors() {
        let new = npo.tensor(&name).unwrap();
        let values = |bytes: &[u8]| -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()
        };
        let squares = values(old.data()).into_iter().zip(values(new.data())).map(|(t, u)| (u - t).powi(2));
        let sum: f64 = squares.sum();
        all += sum;
        outside += if name.contains("_proj") { 0.0 } else { sum };
    }
    let output = undertext(&family, "codes $/target $/npo --schemes int8 --json=codes.json --device cpu");
    let text = good(&output);
    let words = format!("hold {:.0} % of the whole squared update", 100.0 * outside / all);
    assert!(text.contains(&words), "{words}: {text}");
    let value: Value =
        serde_json::from_str(&std::fs::read_to_string(family.path("codes.json")).unwrap()).unwrap();
    let share = value["as_stored"]["share_of_update"].as_f64().unwrap();
    // Two orders of adding 3,000 squares, and serde_json's ulp.
    assert!((share - outside / all).abs() < 3000.0 * f64::EPSILON, "{share}");
}

/// Without a choice only a real GPU is taken; a named adapter is taken whatever it is, and finds the same.
#[test]
fn codes_runs_where_it_is_told_to() {
    let family = Family::new(&["target", "npo"]);
    let run = |device: &str| json_of(&undertext(&family, &format!("codes $/target $/npo --json {device}")));
    let best = undertext::gpu::list().into_iter().next().filter(|best| !best.is_software());
    let expected = best.map_or_else(|| "CPU pass".to_owned(), |best| best.name);
    assert_eq!(run("")["device"]["name"], *expected);
    let host = run("--device cpu");
    assert_eq!(host["device"]["type"], "cpu");
    assert_eq!(host["host_weights"], host["schemes"]["int8"]["total"]["weights"]);
    for (index, adapter) in undertext::gpu::list().iter().enumerate() {
        let value = run(&format!("--device {index}"));
        assert_eq!(value["device"]["name"], *adapter.name);
        assert_eq!(value["host_weights"], 0);
        for (name, scheme) in host["schemes"].as_object().unwrap() {
            let (got, want) = (&value["schemes"][name]["total"], &scheme["total"]);
            assert_eq!(got["code_changed"], want["code_changed"], "{name}");
            let [got, want] = [got, want].map(|total| total["survival"].as_f64().unwrap());
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{name}: {got}, {want}");
        }
    }
    failure(&family, "codes $/target $/npo --device nonesuch", 4, &["nonesuch"]);
}

#[test]
fn codes_without_an_update_are_null_with_a_reason() {
    let family = Family::new(&["target"]);
    let output = undertext(&family, "codes $/target $/target --json=codes.json");
    assert!(good(&output).contains("none of 1920 quantized weights changed"), "{}", stdout(&output));
    let text = std::fs::read_to_string(family.path("codes.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let total = &value["schemes"]["int4-g32"]["total"];
    for name in ["survival", "norm_ratio", "absorbed", "movement_from_zero"] {
        assert_eq!(total[name], Value::Null, "{name}");
    }
    assert_eq!(total["reason"], "no weight changed");
    assert_eq!((&total["changed"], &total["code_equal"]), (&json!(0.0), &json!(1.0)));
    assert_eq!(value["as_stored"]["reason"], "no weight changed");
}

#[test]
fn codes_refuses_what_cannot_be_compared() {
    let family = Family::new(&["target", "npo"]);
    failure(&family, "codes $/target $/npo --schemes fp16", 2, &["--schemes", "full precision has no codes"]);
    failure(&family, "codes $/target $/npo --schemes int5", 2, &["int5", "int4-g128"]);
    failure(&family, "codes $/target", 2, &["UNLEARNED"]);
    failure(&family, "codes $/target $/nothing", 3, &["nothing"]);
    failure(&family, "codes $/target $/data", 3, &["config.json"]);

    // Another number of layers, by config.json and by its tensors.
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models/target");
    failure(&family, &format!("codes $/target {demo}"), 3, &["the number of layers is 4", "it is 1"]);
    // One layer of another width.
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/model/tiny_llama");
    failure(&family, &format!("codes {demo} {golden}"), 3, &["tiny_llama", "target"]);

    let path = family.path("npo/model.safetensors");
    let good = std::fs::read(&path).unwrap();
    // The last four bytes are some matrix's last weight, or a norm's.
    let mut broken = good.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &broken).unwrap();
    failure(&family, "codes $/target $/npo", 3, &["npo", "NaN", "expected finite weights"]);
    // A tensor less, by its name in the header.
    let mut missing = good;
    let name = b"mlp.up_proj";
    let at = missing.windows(name.len()).position(|bytes| bytes == name).unwrap();
    missing[at] = b'x';
    std::fs::write(&path, &missing).unwrap();
    failure(&family, "codes $/target $/npo", 3, &["model.layers.0.mlp.up_proj.weight is missing"]);
}
