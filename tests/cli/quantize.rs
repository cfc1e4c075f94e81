//! `undertext quantize`, and what it wrote, read again.

use serde_json::{Value, json};
use undertext::checkpoint::Checkpoint;
use undertext::quant::Scheme;

use super::{failure, family, good, json_of, stdout, undertext};
use crate::family::Family;

#[test]
fn quantize_writes_a_checkpoint_that_keeps_its_update() {
    let family = Family::new(&[]);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models");
    let line = format!("quantize {demo}/npo_gdr --scheme int4 --keep-from {demo}/target --out $/kept");
    let text = undertext(&family, &line);
    assert!(good(&text).contains("Survival of the update: 0.9"), "{}", stdout(&text));
    let record: Value =
        serde_json::from_slice(&std::fs::read(family.path("kept/undertext.json")).unwrap()).unwrap();
    assert_eq!(record["rounding"], "kept");
    assert_eq!(
        (&record["keep"], &record["scheme"], &record["dtype"]),
        (&json!(0.9), &json!("int4-g128"), &json!("F32"))
    );
    let total = &record["total"];
    assert!((total["survival"].as_f64().unwrap() - 0.9).abs() < 0.01, "{total}");
    assert!(total["survival_nearest"].as_f64().unwrap() < 0.1, "{total}");
    assert!(record["rows_near"].as_f64().unwrap() > 0.9, "{record}");
    // By content: what these files are, wherever they lie.
    let hash = |path: std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
        hasher.finalize().to_hex().to_string()
    };
    for (input, name) in [("model", "npo_gdr"), ("target", "target")] {
        let directory = std::path::Path::new(demo).join(name);
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let weights = checkpoint.tensors().content_hash(&mut |_, _| Ok(())).unwrap();
        assert_eq!(record["inputs"][input]["weights"], weights, "{record}");
        assert_eq!(record["inputs"][input]["config"], hash(directory.join("config.json")), "{record}");
    }
    assert_eq!(record["inputs"]["calibrate"], json!(null));
    let sum: u64 = record["tensors"].as_array().unwrap().iter().map(|t| t["moved"].as_u64().unwrap()).sum();
    assert_eq!(total["moved"], sum);
    assert!(record["as_stored"].as_array().unwrap().contains(&json!("model.embed_tokens.weight")));

    // What was written is what is read: survival at full precision, and no file but the checkpoint's.
    let mut names: Vec<_> = std::fs::read_dir(family.path("kept"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "undertext.json",
    ];
    assert_eq!(names, expected);
    let output = undertext(&family, "generate $/kept --prompt a --max-new-tokens 2 --device cpu --json");
    assert_eq!(json_of(&output)["token_ids"].as_array().unwrap().len(), 2);

    // The same again, byte by byte; then a directory that is taken.
    let weights = std::fs::read(family.path("kept/model.safetensors")).unwrap();
    let again = undertext(&family, &(line.replace("$/kept", "$/again") + " --json"));
    assert_eq!(json_of(&again)["total"], *total);
    assert_eq!(std::fs::read(family.path("again/model.safetensors")).unwrap(), weights);
    failure(&family, &line, 2, &["--out", "kept", "not empty"]);
    let left: Vec<_> =
        std::fs::read_dir(family.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".tmp")), "{left:?}");

    // int8 keeps the update by itself.
    let output = undertext(&family, &line.replace("int4", "int8").replace("$/kept", "$/int8"));
    assert!(good(&output).contains("Nothing needs repair"), "{}", stdout(&output));
}

#[test]
fn quantize_rounds_to_nearest_or_at_random() {
    let family = family();
    let nearest = json_of(&undertext(&family, "quantize $/npo --scheme nf4-b64 --out $/a --json"));
    assert_eq!((&nearest["rounding"], &nearest["total"]["moved"]), (&json!("nearest"), &json!(0)));
    assert_eq!(nearest["total"]["reason"], "no target was given");
    let random =
        json_of(&undertext(&family, "quantize $/npo --scheme nf4-b64 --stochastic 7 --out $/b --json"));
    assert_eq!((&random["rounding"], &random["seed"]), (&json!("stochastic"), &json!(7)));
    assert!(random["total"]["moved"].as_u64().unwrap() > 0, "{random}");
}

#[test]
fn quantize_looks_at_a_text() {
    let family = family();
    std::fs::write(family.path("text.txt"), "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12").unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models");
    let line = format!("quantize {demo}/npo_gdr --scheme int4-g32 --keep-from {demo}/target");
    let plain = json_of(&undertext(&family, &format!("{line} --out $/plain --keep 0.85 --json")));
    assert!(plain.get("calibrate").is_none());
    let value =
        json_of(&undertext(&family, &format!("{line} --out $/matched --calibrate $/text.txt --json")));
    assert_eq!(value["keep"], 0.85);
    assert!(value["calibrated_on"].as_u64().unwrap() > 20);
    assert!(value["calibrate"].as_str().unwrap().ends_with("text.txt"));
    assert!(value["total"]["survival"].as_f64().unwrap() > 0.8);
    let weights = |name: &str| std::fs::read(family.path(name).join("model.safetensors")).unwrap();
    assert!(weights("plain") != weights("matched"));
    failure(&family, "quantize $/npo --scheme int4 --out $/x --calibrate $/text.txt", 2, &["--keep-from"]);
    failure(&family, &format!("{line} --out $/x --calibrate $/none.txt"), 3, &["none.txt"]);
    std::fs::write(family.path("empty.txt"), "").unwrap();
    failure(&family, &format!("{line} --out $/x --calibrate $/empty.txt"), 3, &["empty.txt"]);
    assert!(!family.path("x").exists(), "nothing is left of a run that failed");
}

/// Packed codes and scales stand for the very values that are written dequantized.
#[test]
fn packed_checkpoints_hold_the_dequantized_values() {
    let family = Family::new(&[]);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models");
    for (scheme, bits, group) in [("int4-g32", 4, 32), ("int8", 8, 128)] {
        let read = |format: &str| {
            let out = format!("{format}-{scheme}");
            let line = format!("quantize {demo}/ga_gdr --scheme {scheme} --keep-from {demo}/target");
            good(&undertext(&family, &format!("{line} --format {format} --out $/{out}")));
            let config = std::fs::read(family.path(&out).join("config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            (std::fs::read(family.path(&out).join("model.safetensors")).unwrap(), config)
        };
        let (values, config) = read("dequantized");
        assert!(config.get("quantization_config").is_none());
        let (packed, config) = read("compressed-tensors");
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["format"], "pack-quantized");
        assert_eq!(quantization["config_groups"]["group_0"]["weights"]["num_bits"], bits);

        let values = safetensors::SafeTensors::deserialize(&values).unwrap();
        let packed = safetensors::SafeTensors::deserialize(&packed).unwrap();
        let words = |tensor: &str| -> Vec<u32> {
            let tensor = packed.tensor(tensor).unwrap();
            tensor.data().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        let name = "model.layers.1.self_attn.k_proj.weight";
        let tensor = values.tensor(name).unwrap();
        let [rows, cols] = *tensor.shape() else { panic!("{:?}", tensor.shape()) };
        assert_eq!((cols, packed.tensor(&format!("{name}_shape")).unwrap().shape()), (128, &[2][..]));
        let (codes, scales) = (words(&format!("{name}_packed")), words(&format!("{name}_scale")));
        let want: Vec<_> =
            tensor.data().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        for index in 0..rows * cols {
            let per_word = 32 / bits;
            let code = codes[index / per_word] >> (index % per_word * bits) & ((1 << bits) - 1);
            let code = code as f32 - (1 << (bits - 1)) as f32;
            assert_eq!(code * f32::from_bits(scales[index / group]), want[index], "{scheme} {index}");
        }
        assert_eq!(packed.tensor("model.norm.weight").unwrap(), values.tensor("model.norm.weight").unwrap());

        // And we read them as these values, whole or in rows.
        let open = |format: &str| Checkpoint::open(&family.path(&format!("{format}-{scheme}"))).unwrap();
        let (dequantized, packed) = (open("dequantized"), open("compressed-tensors"));
        assert_eq!(packed.tensors().names(), dequantized.tensors().names());
        let schemes = [&packed, &dequantized].map(|checkpoint| checkpoint.tensors().packed_scheme());
        assert_eq!(schemes.map(|scheme| scheme.map(Scheme::name)), [Some(scheme), None]);
        for name in packed.tensors().names() {
            let (dtype, shape) = packed.tensors().describe(name).unwrap();
            assert_eq!((dtype, shape), dequantized.tensors().describe(name).unwrap(), "{name}");
            let read = |checkpoint: &Checkpoint| checkpoint.tensors().read(name, shape).unwrap();
            assert!(read(&packed) == read(&dequantized), "{scheme} {name}");
            let some = |checkpoint: &Checkpoint| checkpoint.tensors().read_rows(name, shape, 3..9).unwrap();
            assert!(some(&packed) == some(&dequantized), "{scheme} {name}, some rows");
        }
        assert!(packed.tensors().bytes_read() < dequantized.tensors().bytes_read());
    }
}

/// Someone else's packed checkpoint may be broken, or of a kind that is not read.
#[test]
fn packed_checkpoints_are_checked() {
    let family = Family::new(&[]);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models");
    let line =
        format!("quantize {demo}/npo_gdr --scheme int4-g32 --format compressed-tensors --out $/packed");
    good(&undertext(&family, &line));
    let file = family.path("packed/model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    type Named<'a> = Vec<(String, safetensors::tensor::TensorView<'a>)>;
    let broken = |change: &dyn Fn(&mut Named<'_>), parts: &[&str]| {
        let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let mut tensors = tensors.tensors();
        change(&mut tensors);
        safetensors::serialize_to_file(tensors, None, &file).unwrap();
        failure(&family, "generate $/packed --prompt x --device cpu", 3, parts);
    };
    static WORDS: [u8; 4 * 384 * 5] = [0; 4 * 384 * 5];
    let view = |dtype, shape: &[usize], bytes| {
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap()
    };
    broken(
        &|tensors| tensors.retain(|(tensor, _)| *tensor != format!("{name}_scale")),
        &[name, "_scale", "missing"],
    );
    broken(
        &|tensors| {
            tensors.push((format!("{name}_zero_point"), view(safetensors::Dtype::I32, &[1], &WORDS[..4])));
        },
        &[name, "zero points", "symmetric"],
    );
    broken(
        &|tensors| {
            let codes = tensors.iter_mut().find(|(tensor, _)| *tensor == format!("{name}_packed")).unwrap();
            codes.1 = view(safetensors::Dtype::I32, &[384, 5], &WORDS);
        },
        &[name, "[384, 5]", "384 x 128"],
    );
    std::fs::write(&file, &whole).unwrap();
    good(&undertext(&family, "generate $/packed --prompt x --device cpu --max-new-tokens 2"));
    family.change("packed/config.json", &json!({"quantization_config": {"quant_method": "awq"}}));
    failure(&family, "generate $/packed --prompt x --device cpu", 3, &["awq", "pack-quantized"]);
}

#[test]
fn kept_arms_need_to_know_what_their_update_leads_from() {
    let family = family();
    std::fs::write(family.path("text.txt"), "w1 w2 w3 w4 w5 w6 w7 w8").unwrap();
    let line = "compare $/npo $/npo@int4+keep=0.5 --text $/text.txt --device cpu";
    failure(&family, line, 2, &["--keep-from", "npo", "int4-g128+keep=0.5"]);
    let value = json_of(&undertext(&family, &format!("{line} --keep-from $/target --json")));
    let kept = value["arms"][0]["kl_mean"].as_f64().unwrap();
    let value =
        json_of(&undertext(&family, "compare $/npo $/npo@int4 --text $/text.txt --device cpu --json"));
    assert!(kept > 0.0 && kept != value["arms"][0]["kl_mean"].as_f64().unwrap());
    let line = "generate $/npo@int4+keep --prompt w1 --device cpu --json";
    failure(&family, line, 2, &["--keep-from"]);
    let value = json_of(&undertext(&family, &format!("{line} --keep-from $/target")));
    assert_eq!(value["precision"], "int4-g128+keep=0.9");
    let line =
        "localize --target $/target --unlearned $/npo --data $/data --device cpu --precision int4+keep";
    failure(&family, line, 2, &["--precision", "int4-g128+keep=0.9", "a scheme alone"]);
    let wrong = "quantize $/npo --scheme int4+keep --out $/out";
    failure(&family, wrong, 2, &["--scheme", "--keep-from"]);
    failure(&family, "codes $/target $/npo --schemes int4+keep", 2, &["--schemes", "nearest"]);
}

#[test]
fn quantize_refuses_what_it_cannot_use() {
    let family = family();
    let line = "quantize $/npo --scheme int4 --out $/out";
    failure(&family, &format!("{line} --keep-from $/target --keep 1.5"), 2, &["--keep", "0 to 1"]);
    failure(&family, &format!("{line} --keep 0.5"), 2, &["--keep-from"]);
    failure(&family, &format!("{line} --keep-from $/target --stochastic 1"), 2, &["--stochastic"]);
    failure(&family, &line.replace("int4", "fp16"), 2, &["--scheme", "quantizes"]);
    failure(&family, &format!("{line} --format gguf"), 2, &["--format", "compressed-tensors"]);
    let table = line.replace("int4", "nf4-b64");
    failure(&family, &format!("{table} --format compressed-tensors"), 2, &["--format", "nf4-b64"]);
    failure(&family, &line.replace("npo", "nothing"), 3, &["nothing"]);
    failure(&family, &line.replace("$/out", "$/npo/config.json"), 2, &["--out", "no directory"]);
    failure(&family, &line.replace("$/out", "$/npo/config.json/x"), 1, &["cannot write"]);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models/target");
    failure(&family, &format!("{line} --keep-from {demo}"), 3, &["the number of layers"]);
    assert!(!family.path("out").exists());
}

/// Ctrl-C ends the rounding, and nothing of it is left.
#[cfg(unix)]
#[test]
fn an_interrupted_quantize_leaves_nothing() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let family = Family::new(&[]);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo");
    let out = family.path("kept");
    let mut child = Command::new(env!("CARGO_BIN_EXE_undertext"))
        .args(["quantize", &format!("{root}/models/npo_gdr"), "--scheme", "int4"])
        .args([
            "--keep-from",
            &format!("{root}/models/target"),
            "--calibrate",
            &format!("{root}/calibration.txt"),
        ])
        .args(["-v", "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The draft lies beside its place, and has weights once rounding began.
    let drafts = || {
        let entries = std::fs::read_dir(family.path("")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "tmp")).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while !drafts().iter().any(|draft| draft.join("model.safetensors").exists()) {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("error: interrupted"), "{said}");
    assert!(drafts().is_empty() && !out.exists(), "{:?}", drafts());
}
