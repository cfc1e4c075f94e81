//! `undertext compare`.

use serde_json::{Value, json};

use super::{family, good, json_of, stderr, stdout, undertext};

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
