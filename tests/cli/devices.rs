//! `undertext devices`, `undertext generate`, and device memory.

use assert_cmd::Command;
use serde_json::{Value, json};

use super::{AUDIT, family, good, json_of, one_line, one_line_usage, stderr, stdout, undertext};
use crate::family::Family;

/// As in a container or on a cluster's node: drivers that look for a desktop there must not put errors on stderr.
#[test]
fn devices_are_quiet_without_a_session() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    for name in ["XDG_RUNTIME_DIR", "WAYLAND_DISPLAY", "DISPLAY"] {
        command.env_remove(name);
    }
    let output = command.arg("devices").output().unwrap();
    assert!(good(&output).contains("backend"));
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
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
    // The directory after --json is the directory.
    assert_eq!(json_of(&run(&["--json", "target@int8"]))["token_ids"], value["token_ids"]);
    let output = run(&["target@int8", "--json=out.json"]);
    assert_eq!(good(&output), format!("{text}\n"));
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("out.json")).unwrap()).unwrap();
    assert_eq!(saved["token_ids"], value["token_ids"]);
}

#[test]
fn device_memory_is_limited_and_explained() {
    let family = family();
    let Some(gpu) = crate::adapters::all().first() else { return };
    let device = gpu.info().index.unwrap();
    let audit = format!("{AUDIT} --limit 2 --no-tune").replace("cpu", &device.to_string());
    let plain = undertext(&family, &audit);
    let limited = undertext(&family, &format!("{audit} --vram 24MiB --explain --json=report.json"));
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
