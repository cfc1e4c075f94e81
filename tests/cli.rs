//! The program as its users see it: stdout, stderr, files, exit codes. On the CPU pass but for what is about device memory.

use std::process::Output;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::checkpoint::Checkpoint;

use crate::family::Family;

/// Runs the program with the words of `line`; `$` stands for the family's directory.
fn undertext(family: &Family, line: &str) -> Output {
    let root = family.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let words = line.split_whitespace().map(|word| word.replace('$', root));
    Command::new(env!("CARGO_BIN_EXE_undertext")).args(words).current_dir(root).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// stdout, after a run that succeeded.
fn good(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

/// stdout as the one JSON value that it must be.
fn json_of(output: &Output) -> Value {
    serde_json::from_str(good(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

const AUDIT: &str = "audit --target $/target --unlearned $/npo $/ga --data $/data --device cpu";

fn family() -> Family {
    Family::new(&["target", "npo", "ga", "retrain"])
}

#[test]
fn help_has_examples_and_exit_codes() {
    let family = Family::new(&[]);
    for (line, part) in [
        ("--help", "Exit codes:"),
        ("audit --help", "undertext audit --target"),
        ("demo --help", "undertext demo --limit 4"),
        ("generate --help", "undertext generate models/target@int4-g128"),
        ("localize --help", "undertext localize --target models/target --unlearned models/npo"),
        ("compare --help", "undertext compare models/target models/target@int8"),
        ("codes --help", "undertext codes models/target models/npo --schemes int4,nf4-b64"),
        ("quantize --help", "undertext quantize models/npo --scheme int4 --keep-from models/target"),
        ("devices --help", "undertext devices --json"),
        ("export --help", "undertext export report.json --format csv"),
        ("completions --help", "undertext completions bash"),
        ("man --help", "undertext man --out"),
    ] {
        let output = undertext(&family, line);
        assert!(good(&output).contains(part), "{line}: {}", stdout(&output));
        assert!(stderr(&output).is_empty(), "{line}");
    }
}

#[test]
fn wrong_usage_is_code_2_with_nothing_on_stdout() {
    let family = family();
    for (line, part) in [
        ("", "Usage"),
        ("audit --target $/target", "--unlearned"),
        ("generate --prompt x", "DIR"),
        ("generate --json --prompt x", "DIR"),
        ("generate $/target@int9 --prompt x --device cpu", "int9"),
        (&format!("{AUDIT} --precision fp17"), "fp17"),
        (&format!("{AUDIT} --limit 0"), "--limit"),
        (&format!("{AUDIT} --resamples 7"), "--resamples"),
        (&format!("{AUDIT} --held-below 0.5"), "--held-below"),
        (&format!("{AUDIT} --fail-on forgotten"), "forgotten"),
        (&format!("{AUDIT} --series size"), "--series"),
        (&format!("{AUDIT} --series size=$/npo@1"), "two steps"),
        (&format!("{AUDIT} --no-tune --retune"), "--retune"),
        (&format!("{AUDIT} --corpus poems"), "poems"),
        ("audit --target $/target --unlearned $/npo $/npo --data $/data", "--unlearned"),
        ("compare $/target --text $/a.txt", "DIR"),
        ("localize --target $/target --unlearned $/npo --data $/data --by head", "--by"),
        (
            "localize --target $/target --unlearned $/npo --data $/data --precision fp16 --device cpu",
            "--precision",
        ),
        (
            "localize --target $/target --unlearned $/npo --data $/data --held-below 2 --device cpu",
            "--held-below",
        ),
        ("compare $/target $/npo", "--text"),
        ("compare $/target $/npo --text a --data b", "--data"),
        ("compare $/target $/npo --data $/data --window 9", "--window"),
        ("compare $/target $/npo --data $/data --limit 0 --device cpu", "--limit"),
    ] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{line}");
    }
}

#[test]
fn near_misses_are_named() {
    let family = family();
    for (line, code, part) in [
        (&*format!("{AUDIT} --precision int4-128"), 2, "did you mean int4-g128?"),
        (&format!("{AUDIT} --fail-on resurected"), 2, "'resurrected'"),
        ("codes $/target $/npo --schemes nf4", 2, "did you mean nf4-b64?"),
        ("generate $/target@INT8 --prompt x --device cpu", 2, "did you mean int8?"),
        ("devices --device vulcan", 4, "did you mean vulkan?"),
        ("devcies", 2, "'devices'"),
        ("devices --mesure", 2, "'--measure'"),
    ] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
    }
    let output = undertext(&family, "devices --device no-such-device");
    assert!(!stderr(&output).contains("did you mean"), "{}", stderr(&output));
}

#[test]
fn versions_name_commit_and_wgpu() {
    let family = Family::new(&[]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(good(&undertext(&family, "-V")), format!("undertext {version}\n"));
    let output = undertext(&family, "--version");
    let long = good(&output);
    assert!(long.starts_with(&format!("undertext {version} (")) && long.lines().count() == 1, "{long}");
    let lock = include_str!("../Cargo.lock").replace('\r', "");
    let mut packages = lock.split("[[package]]\n");
    let wgpu = packages.find_map(|package| package.strip_prefix("name = \"wgpu\"\nversion = \"")).unwrap();
    let wgpu = wgpu.split('"').next().unwrap();
    assert!(long.contains(&format!("wgpu {wgpu})")), "{long}");
    // The commit that records name.
    let program = serde_json::to_value(undertext::report::schema::Program::this()).unwrap();
    let commit =
        program["commit"].as_str().map_or("of no commit".to_owned(), |hash| format!("commit {hash}"));
    assert!(long.contains(&commit), "{commit} in {long}");
}

#[test]
fn completions_are_scripts() {
    let family = Family::new(&[]);
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef undertext"), ("fish", "complete -c undertext")]
    {
        let output = undertext(&family, &format!("completions {shell}"));
        let script = good(&output);
        assert!(script.contains(part) && script.contains("fail-on"), "{shell}");
        let there = || std::process::Command::new("bash").args(["-c", ":"]).status().is_ok();
        if shell == "bash" && there() {
            let path = family.path("completions.bash");
            std::fs::write(&path, script).unwrap();
            let checked = std::process::Command::new("bash").arg("-n").arg(&path).output().unwrap();
            assert!(checked.status.success(), "{}", stderr(&checked));
        }
    }
    assert_eq!(undertext(&family, "completions tcsh").status.code(), Some(2));
}

#[test]
fn manual_pages_are_roff() {
    let family = Family::new(&[]);
    let output = undertext(&family, "man");
    let page = good(&output);
    assert!(page.contains(".TH undertext 1") && page.contains("interrupted"), "{page}");
    assert_eq!(good(&undertext(&family, "man --out pages")), "pages\n");
    for name in ["undertext", "undertext-audit", "undertext-export", "undertext-devices"] {
        let page = std::fs::read_to_string(family.path("pages").join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1")), "{name}: {page}");
    }
    std::fs::write(family.path("file"), "").unwrap();
    one_line(&undertext(&family, "man --out file"), 1, &["cannot write", "file"]);
}

#[test]
fn quiet_is_quiet_but_for_errors() {
    let family = family();
    let line = format!("{AUDIT} --limit 1 --precision int8 --resamples 100 --no-survival --out run");
    let output = undertext(&family, &format!("{line} --quiet"));
    assert!(good(&output).contains("KnowMem") && stderr(&output).is_empty(), "{}", stderr(&output));
    // The run's log has it all the same.
    let log = std::fs::read_to_string(family.path("run/run.log")).unwrap();
    assert!(log.contains("note: fp16 is added") && log.contains("[1-6/6] target fp16"), "{log}");
    let output = undertext(&family, "-q generate $/nothing --prompt x --device cpu");
    one_line(&output, 3, &["nothing"]);
}

#[test]
fn devices_are_listed_as_json() {
    let family = Family::new(&[]);
    let value = json_of(&undertext(&family, "devices --json"));
    for (index, device) in value["devices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(device["index"], index);
        for name in ["name", "backend", "type", "driver"] {
            assert!(device[name].is_string(), "{name} in {device}");
        }
        assert!(device["f16"].is_boolean() && device["subgroups"].as_array().unwrap().len() == 2, "{device}");
        for name in ["max_binding_bytes", "max_buffer_bytes", "workgroup_memory_bytes", "workgroup_lanes"] {
            assert!(device["limits"][name].as_u64().unwrap() >= 64, "{name} in {device}");
        }
        assert!(device.get("measured").is_none(), "{device}");
    }
    let cpu = json_of(&undertext(&family, "devices --device cpu --json"));
    assert_eq!(cpu["devices"][0]["type"], "cpu");
    assert!(cpu["devices"][0].get("limits").is_none(), "{cpu}");
    let output = undertext(&family, "devices --device no-such-device");
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("error: no usable device"), "{}", stderr(&output));
    assert!(stderr(&output).contains("no-such-device"));
}

#[test]
fn devices_are_measured_if_asked() {
    let family = Family::new(&[]);
    let output = undertext(&family, "devices --measure --device cpu");
    assert!(!good(&output).contains("GFLOP/s"), "{}", stdout(&output));
    assert!(stderr(&output).contains("not the CPU pass"), "{}", stderr(&output));
    let Some(gpu) = crate::adapters::all().first() else { return };
    let line = format!("devices --measure --device {}", gpu.info().index.unwrap());
    let value = json_of(&undertext(&family, &format!("{line} --json")));
    for name in ["gflops", "read_gb_per_s", "copy_gb_per_s"] {
        let figure = value["devices"][0]["measured"][name].as_f64().unwrap();
        assert!(figure.is_finite() && figure > 0.0, "{name} is {figure}");
    }
    let output = undertext(&family, &line);
    assert!(
        good(&output).contains("GFLOP/s") && stdout(&output).contains("copy GB/s"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn generate_prints_text_or_json() {
    let family = family();
    let root = family.path("");
    let run = |json: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
        command.args(["generate", "--device", "cpu", "--max-new-tokens", "5", "--prompt", "w1 w2"]);
        command.args(json).current_dir(&root).output().unwrap()
    };
    let value = json_of(&run(&["target@int8", "--json"]));
    assert_eq!(value["prompt_ids"], json!([1, 9, 10]));
    let new = value["token_ids"].as_array().unwrap();
    assert!((1..=5).contains(&new.len()), "{value}");
    assert_eq!((&value["precision"], &value["scheme"]), (&json!("int8"), &json!("int8")));
    assert_eq!(value["device"]["type"], "cpu");
    assert_eq!(value["counters"]["tokens_generated"], new.len());
    let text = value["text"].as_str().unwrap();

    let output = run(&["target@int8"]);
    assert_eq!(good(&output), format!("{text}\n"));
    // The directory after --json is still the directory.
    assert_eq!(json_of(&run(&["--json", "target@int8"]))["token_ids"], value["token_ids"]);
    let output = run(&["target@int8", "--json", "out.json"]);
    assert_eq!(good(&output), format!("{text}\n"));
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("out.json")).unwrap()).unwrap();
    assert_eq!(saved["token_ids"], value["token_ids"]);
}

#[test]
fn audit_prints_tables_or_json() {
    let family = family();
    let value = json_of(&undertext(&family, &format!("{AUDIT} --retrain $/retrain --limit 2 --json")));
    assert_eq!((&value["schema_version"], &value["complete"]), (&json!(1), &json!(true)));
    let arms = value["arms"].as_array().unwrap();
    let names: Vec<_> = arms.iter().map(|arm| format!("{}@{}", arm["name"], arm["precision"])).collect();
    let want = ["target", "npo", "ga", "retrain"]
        .map(|name| ["fp16", "int8", "int4-g128"].map(|precision| format!("\"{name}\"@\"{precision}\"")));
    assert_eq!(names, want.concat());
    for arm in arms {
        for metric in ["verbmem_forget", "knowmem_forget", "knowmem_retain"] {
            assert!(arm["metrics"][metric]["value"].is_number() && arm["metrics"][metric]["n"] == 2, "{arm}");
        }
        assert_eq!(arm["metrics"]["privleak"]["reference"], "retrain");
    }
    assert_eq!(value["recovery"].as_array().unwrap().len(), 2 * 2 * 2);
    assert!(value["counters"]["tokens_scored"].as_u64().unwrap() > 0);

    let line = format!("{AUDIT} --limit 2 --precision int8 --json report.json");
    let output = undertext(&family, &line);
    let text = good(&output);
    for part in
        ["KnowMem ↓", "int8", "fp16", "What quantization brings back in npo", "Controls: ", "Verdicts: "]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains('\u{1b}'), "no escape codes in a pipe");
    assert!(stderr(&output).contains("note: fp16 is added"), "{}", stderr(&output));
    assert!(stderr(&output).contains("[1-6/6] target fp16"), "{}", stderr(&output));
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("report.json")).unwrap()).unwrap();
    assert_eq!(saved["arms"].as_array().unwrap().len(), 6);
    assert_eq!(saved["complete"], true);
}

#[test]
fn verdicts_can_be_made_to_fail() {
    let family = family();
    let line = format!("{AUDIT} --limit 3 --precision int8 --json report.json --fail-on");
    let output = undertext(&family, &format!("{line} resurrected,void"));
    good(&output);
    let output = undertext(&family, &format!("{line} resurrected,inconclusive"));
    one_line(&output, 5, &["--fail-on", "npo@int8 is inconclusive", "ga@int8 is inconclusive"]);
    assert!(stdout(&output).contains("INCONCLUSIVE"), "the report is there all the same");
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("report.json")).unwrap()).unwrap();
    assert_eq!(
        (&saved["complete"], &saved["verdicts"][0]["verdict"]),
        (&json!(true), &json!("inconclusive"))
    );
}

#[test]
fn audit_has_survival_and_series() {
    let family = family();
    let line = "audit --target $/target --data $/data --device cpu --limit 2 --precision int8,int4";
    let value = json_of(&undertext(&family, &format!("{line} --series size=$/npo@1,$/ga@2.5 --json")));
    let survival = value["survival"].as_array().unwrap();
    assert_eq!(survival.len(), 4);
    assert!(survival.iter().all(|row| row["value"].is_number()), "{survival:?}");
    assert_eq!(value["recovery"][0]["survival"], survival[0]["value"]);
    let file = |name: &str| std::fs::metadata(family.path(name).join("model.safetensors")).unwrap().len();
    assert_eq!(value["counters"]["codes_disk_bytes"], 2 * file("target") + file("npo") + file("ga"));
    let series = &value["series"][0];
    assert_eq!(
        (&series["name"], &series["steps"][1]),
        (&json!("size"), &json!({"value": 2.5, "unlearned": "ga"}))
    );
    let curves = series["curves"].as_array().unwrap();
    assert_eq!(curves.len(), 4 * 3);
    assert_eq!(curves[0]["points"][0]["value"], value["arms"][3]["metrics"]["verbmem_forget"]["value"]);

    let output = undertext(&family, &format!("{line} --series size=$/npo@1,$/ga@2.5 --no-survival"));
    assert!(good(&output).contains("Against size\n"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("Rank correlation"));
}

#[test]
fn the_same_audit_gives_the_same_values() {
    let family = family();
    let run = || {
        let value = json_of(&undertext(&family, &format!("{AUDIT} --limit 3 --json")));
        let metrics: Vec<_> =
            value["arms"].as_array().unwrap().iter().map(|arm| arm["metrics"].clone()).collect();
        (metrics, value["recovery"].clone())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_failing_arm_leaves_the_report_of_the_others() {
    let family = family();
    // The header is whole, so the audit begins; NaN shows when the weights are read.
    poison(&family, "ga");
    let output = undertext(&family, &format!("{AUDIT} --limit 1 --json report.json --html report.html"));
    one_line(&output, 3, &["ga", "NaN"]);
    assert!(stderr(&output).contains("going on arm by arm"), "{}", stderr(&output));
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("report.json")).unwrap()).unwrap();
    assert_eq!((&saved["complete"], saved["arms"].as_array().unwrap().len()), (&json!(false), 6));
    assert!(saved["stopped"].as_str().unwrap().contains("NaN"));
    assert!(stdout(&output).contains("Incomplete"), "{}", stdout(&output));
    let page = std::fs::read_to_string(family.path("report.html")).unwrap();
    assert!(page.contains("Incomplete: the run ended early") && page.contains("the 6 arms"), "{page}");
}

#[test]
fn device_memory_is_limited_and_explained() {
    let family = family();
    let Some(gpu) = crate::adapters::all().first() else { return };
    let device = gpu.info().index.unwrap();
    let audit = format!("{AUDIT} --limit 2 --no-tune").replace("cpu", &device.to_string());
    let plain = undertext(&family, &audit);
    let limited = undertext(&family, &format!("{audit} --vram 24MiB --explain --json report.json"));
    assert_eq!(good(&plain), good(&limited), "the same figures");
    let said = stderr(&limited);
    for part in ["--vram", "memory", "weights", "expected: ", "passes over the weights", "most host bytes"] {
        assert!(
            said.contains(part) || part == "most host bytes" && !cfg!(target_os = "linux"),
            "{part} in {said}"
        );
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("report.json")).unwrap()).unwrap();
    let memory = &saved["memory"][0];
    assert_eq!((&memory["budget_bytes"], &memory["budget"]), (&json!(24 << 20), &json!("--vram")));
    let peak = memory["peak_bytes"].as_u64().unwrap();
    assert!(saved["counters"]["peak_device_bytes"].as_u64().unwrap() <= peak && peak <= 24 << 20);
    // One at a time, as a plain script would, comes to the same.
    let alone = undertext(&family, &format!("{audit} --naive"));
    assert_eq!(good(&alone), good(&undertext(&family, &format!("{audit} --no-divergence"))));
    assert!(good(&plain).contains("KL(unlearned || target)") && !good(&alone).contains("KL("));

    one_line(&undertext(&family, &format!("{audit} --vram 1MiB")), 4, &["1048576 (--vram)", "are needed"]);
    one_line_usage(&undertext(&family, &format!("{audit} --vram plenty")), "plenty");
    one_line_usage(&undertext(&family, &format!("{audit} --kv f8")), "f8");
    // Keys and values in f32 are another model's in the last digits, but the same words.
    assert_eq!(undertext(&family, &format!("{audit} --kv f32")).status.code(), Some(0));
}

/// What clap refuses: exit code 2, and the value named.
fn one_line_usage(output: &Output, value: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    assert!(stderr(output).contains(value), "{}", stderr(output));
}

#[test]
fn a_report_that_cannot_be_written_is_found_out_first() {
    let family = family();
    let output = undertext(&family, &format!("{AUDIT} --json no/such/directory/report.json"));
    one_line(&output, 1, &["cannot write", "report.json"]);
    assert!(!stderr(&output).contains("[1/"), "{}", stderr(&output));
}

/// A failure is one line on stderr with these parts, apart from notes and progress, and nothing panics.
fn one_line(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let lines: Vec<_> =
        text.lines().filter(|line| !line.starts_with("note: ") && !line.starts_with('[')).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].starts_with("error: "), "{text}");
    for part in parts {
        assert!(lines[0].contains(part), "{part} in {text}");
    }
}

/// Makes the last weight of a checkpoint NaN.
fn poison(family: &Family, name: &str) {
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

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let family = Family::new(&[]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_undertext"));
    command.args(["devices", "--device", "cpu", "--json"]).current_dir(family.path(""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn demo_needs_no_files() {
    let empty = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    let output =
        command.args(["demo", "--limit", "1", "--device", "cpu", "--json"]).current_dir(&empty).output();
    let value = json_of(&output.unwrap());
    assert_eq!(value["arms"].as_array().unwrap().len(), 6 * 3);
    assert_eq!(value["arms"][0]["path"], "assets/demo/models/target");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

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
    let output = undertext(&family, "codes $/target $/npo --schemes int8 --json codes.json --device cpu");
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
    let output = undertext(&family, "codes $/target $/target --json codes.json");
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

/// A command without a device fails so: nothing on stdout, and one line on stderr unless clap explains the usage.
fn failure(family: &Family, line: &str, code: i32, parts: &[&str]) {
    let output = undertext(family, line);
    assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
    assert!(parts.iter().all(|part| stderr(&output).contains(part)), "{line}: {}", stderr(&output));
    assert!(stdout(&output).is_empty());
    assert!(code == 2 || stderr(&output).lines().count() == 1, "{line}: {}", stderr(&output));
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

#[test]
fn compare_reports_every_figure_of_every_arm() {
    let family = family();
    let text: Vec<_> = (0..150).map(|i| format!("w{}", (i * 7 + i * i) % 50)).collect();
    family.write("text.txt", text.join(" "));
    let line = "compare $/target $/target $/target@int4 $/npo $/npo --text $/text.txt --window 32 --stride 16 --device cpu";
    let value = json_of(&undertext(&family, &format!("{line} --json --per-token $/tokens.jsonl")));
    assert_eq!(value["reference"], "target@fp16");
    let arms = value["arms"].as_array().unwrap();
    let names: Vec<_> = arms.iter().map(|arm| arm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["target@fp16 (2)", "target@int4-g128", "npo@fp16", "npo@fp16 (2)"]);
    let number = |arm: &Value, name: &str| arm[name].as_f64().unwrap_or_else(|| panic!("{name} in {arm}"));
    assert_eq!(
        (number(&arms[0], "kl_mean"), number(&arms[0], "same_top")),
        (0.0, 1.0),
        "the reference itself"
    );
    assert_eq!(arms[0]["dp"]["max"], 0.0);
    assert!(number(&arms[1], "kl_mean") > 0.0 && number(&arms[2], "kl_mean") > number(&arms[1], "kl_mean"));
    assert!(number(&arms[1], "rms_dp") > 0.0 && number(&arms[2], "rms_dp_se") > 0.0);
    assert_eq!(arms[2]["kl"], arms[3]["kl"]);

    // The perplexity of the lines is the one of the record; every token but the first is scored once.
    let lines = std::fs::read_to_string(family.path("tokens.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(value["positions"], lines.len());
    for (index, name) in names.iter().enumerate() {
        let log_probs = lines.iter().map(|line| line["arms"][name]["log_prob"].as_f64().unwrap());
        let ppl = (-log_probs.sum::<f64>() / lines.len() as f64).exp();
        // The lines have f32.
        assert!((ppl / number(&arms[index], "ppl") - 1.0).abs() < 1e-6, "{name}");
        let kl = lines.iter().map(|line| line["arms"][name]["kl"].as_f64().unwrap()).sum::<f64>();
        assert!((kl / lines.len() as f64 - number(&arms[index], "kl_mean")).abs() < 1e-12, "{name}");
    }
    assert!(lines.iter().all(|line| line["arms"]["target@fp16"].get("kl").is_none()));
    assert!(lines[0]["arms"]["target@fp16"]["rank"].as_u64().unwrap() >= 1);

    let output = undertext(&family, line);
    for part in ["Against target@fp16", "RMS dp", "same top", "99.9 %", "100.000 ± 0.000 %"] {
        assert!(good(&output).contains(part), "{part} in {}", stdout(&output));
    }
}

#[test]
fn compare_tells_forget_from_retain() {
    let family = family();
    let value = json_of(&undertext(&family, "compare $/target $/npo --data $/data --device cpu --json"));
    let sets = value["sets"].as_array().unwrap();
    assert_eq!([&sets[0]["name"], &sets[1]["name"]], ["forget", "retain"]);
    let positions = |set: &Value| set["positions"].as_u64().unwrap();
    assert_eq!(value["positions"].as_u64().unwrap(), positions(&sets[0]) + positions(&sets[1]));
}

#[test]
fn localize_has_a_row_for_every_part() {
    let family = family();
    let line = "localize --target $/target --unlearned $/npo --data $/data --resamples 200 --device cpu";
    let value = json_of(&undertext(&family, &format!("{line} --by layer,block,layer --json")));
    let variants = value["variants"].as_array().unwrap();
    let kinds: Vec<_> = variants.iter().map(|variant| variant["kind"].as_str().unwrap()).collect();
    let layers = variants.iter().filter(|variant| variant["kind"] == "layer").count();
    assert_eq!(kinds[..4], ["target_full", "target", "nothing", "all"]);
    assert_eq!(variants.len(), 4 + layers + 7 * layers, "{kinds:?}");
    let of = |kind: &str, name: &str| {
        let variant = variants.iter().find(|variant| variant["kind"] == kind).unwrap();
        variant[name].as_f64().unwrap_or_else(|| panic!("{name} in {variant}"))
    };
    // There is but one layer: it is the whole.
    assert_eq!((layers, of("layer", "log_prob")), (1, of("all", "log_prob")));
    assert_eq!(of("target_full", "kl_to_target"), 0.0);
    assert!(of("nothing", "kl_to_target") > 0.0 && of("block", "log_prob") < 0.0);
    assert!(value["counters"]["tokens_scored"].as_u64().unwrap() > 0);

    let output = undertext(&family, &format!("{line} --by module"));
    let none = "No blocks to keep: single blocks were not looked at";
    for part in ["log p", "unlearned quantized", " gate ", "Recovered if nothing but this", none] {
        assert!(good(&output).contains(part), "{part} in {}", stdout(&output));
    }
}

#[test]
fn compare_refuses_what_it_cannot_compare() {
    let family = family();
    family.write("one.txt", "w1");
    family.write("latin.txt", [0xe9, 0x20]);
    family.change("npo/config.json", &json!({"rope_theta": 999.0}));
    for (line, code, part) in [
        ("compare $/target $/retrain --text $/one.txt --second-half --window 8 --device cpu", 3, "one.txt"),
        ("compare $/target $/retrain --text $/latin.txt --device cpu", 3, "latin.txt"),
        ("compare $/target $/retrain --text $/none.txt --device cpu", 3, "none.txt"),
        ("compare $/target $/retrain --text $/one.txt --window 99999 --device cpu", 2, "--window"),
        ("compare $/target $/npo --text $/one.txt --device cpu", 3, "npo"),
        ("compare $/target $/retrain --data $/data --per-token $/no/where --device cpu", 1, "where"),
    ] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("error")).count(), 1, "{line}");
        assert!(stdout(&output).is_empty(), "{line}");
    }
}

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
    let plain = json_of(&undertext(&family, &format!("{line} --out $/plain --keep 0.825 --json")));
    assert!(plain.get("calibrate").is_none());
    let value =
        json_of(&undertext(&family, &format!("{line} --out $/matched --calibrate $/text.txt --json")));
    assert_eq!(value["keep"], 0.825);
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
