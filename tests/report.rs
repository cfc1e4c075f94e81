//! The report: names that stay, numbers or reasons, text for people.

use serde_json::{Value, json};
use undertext::audit::{ArmResult, Findings, Metric, Plan, Request};
use undertext::gpu::DeviceInfo;
use undertext::metrics::Measured;
use undertext::model::Counters;
use undertext::quant::{Precision, Scheme};
use undertext::report::{Report, Style, report_text};

const INT8: Precision = Precision::Quantized(Scheme::Int8);
const INT4: Precision = Precision::Quantized(Scheme::Int4 { group: 128 });

/// KnowMem on the forget set at full precision, int8 and int4: target, npo, sure, retrain.
const KNOWMEM: [[f64; 3]; 4] = [[100.0, 98.0, 90.0], [20.0, 20.0, 84.0], [16.0, 15.0, 18.0], [8.0, 8.0, 8.0]];

fn findings() -> Findings {
    let plan = Plan::new(Request {
        target: "models/target".into(),
        unlearned: vec!["models/npo".into(), "models/sure".into()],
        retrain: Some("models/retrain".into()),
        data: "data".into(),
        precisions: vec![Precision::Full, INT8, INT4],
        ..Request::default()
    })
    .unwrap();
    let metric = |value, n| Metric { value: Measured::Value(value), n };
    let arm = |model: usize, place: usize| {
        let precision = [Precision::Full, INT8, INT4][place];
        ArmResult {
            model,
            precision,
            scheme: precision.scheme(Scheme::Bf16),
            verbmem_forget: metric(50.0, 3),
            knowmem_forget: metric(KNOWMEM[model][place], 4),
            knowmem_retain: metric(75.25, 5),
            auc: metric(if model == 3 { 0.5 } else { 0.25 }, 12),
        }
    };
    let arms = (0..4).flat_map(|model| (0..3).map(move |place| (model, place)));
    let arms = arms.map(|(model, place)| arm(model, place)).collect();
    let counters = Counters { tokens_scored: 120, peak_device_bytes: 100, ..Counters::default() };
    Findings { plan, arms, truncated: 0, stopped: None, counters }
}

fn report(findings: &Findings) -> Report {
    Report::new(findings, &DeviceInfo::cpu())
}

/// `at` of a JSON value, panicking with the path.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or_else(|| panic!("{path} is missing in {value}"))
}

#[test]
fn json_has_the_stable_names() {
    let report = report(&findings());
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(at(&value, "/schema_version"), 1);
    assert_eq!(at(&value, "/undertext/version"), env!("CARGO_PKG_VERSION"));
    let program = at(&value, "/undertext");
    assert!(program["commit"].is_string() || program["reason"].is_string(), "{program}");
    assert!(program["dirty"].is_boolean() || program["reason"].is_string(), "{program}");
    for name in ["name", "backend", "driver", "type"] {
        assert!(at(&value, &format!("/device/{name}")).is_string());
    }
    assert_eq!(at(&value, "/arms").as_array().unwrap().len(), 12);
    let arm = at(&value, "/arms/5");
    for (name, want) in
        [("name", "npo"), ("role", "unlearned"), ("precision", "int4-g128"), ("scheme", "int4-g128")]
    {
        assert_eq!(arm[name], want);
    }
    assert_eq!(at(&value, "/arms/3/scheme"), "bf16");
    assert_eq!(arm["metrics"]["verbmem_forget"], json!({"value": 50.0, "n": 3}));
    assert_eq!(arm["metrics"]["knowmem_forget"], json!({"value": 84.0, "n": 4}));
    assert_eq!(arm["metrics"]["knowmem_retain"], json!({"value": 75.25, "n": 5}));
    let leak = json!({"value": -50.0, "auc": 0.25, "reference_auc": 0.5, "reference": "retrain", "n": 12});
    assert_eq!(arm["metrics"]["privleak"], leak);

    let recovery = at(&value, "/recovery").as_array().unwrap();
    assert_eq!(recovery.len(), 2 * 2 * 2);
    assert_eq!(
        recovery[3],
        json!({
            "unlearned": "npo", "precision": "int4-g128", "metric": "knowmem_forget",
            "of_gap_to_target": 0.8, "of_gap_to_target_same_precision": 64.0 / 70.0,
            "share_of_target_same_precision": 84.0 / 90.0,
        })
    );
    // VerbMem: the target does not score above the unlearned model.
    assert_eq!(recovery[2]["of_gap_to_target"], Value::Null);
    let reason = recovery[2]["reason"].as_str().unwrap();
    assert!(reason.contains("of_gap_to_target: ") && !reason.contains("share_of"), "{reason}");

    // Of the CPU pass there are none.
    assert!(value.get("gpu_seconds").is_none() && value["gpu_timed_dispatches"] == 0);
    let counters = at(&value, "/counters");
    assert_eq!((&counters["tokens_scored"], &counters["peak_device_bytes"]), (&json!(120), &json!(100)));
    for name in
        ["disk_bytes", "upload_bytes", "weight_passes", "dispatches", "submissions", "tokens_generated"]
    {
        assert_eq!(counters[name], 0, "{name}");
    }
    for name in ["load", "score", "generate"] {
        assert!(at(counters, "/seconds")[name].is_number(), "{name}");
    }
    assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
}

#[test]
fn missing_values_are_null_with_a_reason() {
    let mut findings = findings();
    findings.arms[11].auc.value = Measured::Missing("forget text 1: too short".to_owned());
    findings.arms[9].auc.value = Measured::Missing("forget text 0: too short".to_owned());
    findings.arms[0].knowmem_forget.value = Measured::Missing("there are no examples".to_owned());
    let value = serde_json::to_value(report(&findings)).unwrap();
    let leak = at(&value, "/arms/11/metrics/privleak");
    assert_eq!((&leak["value"], &leak["auc"]), (&Value::Null, &Value::Null));
    assert_eq!(leak["reason"], "forget text 1: too short");
    // The reference is gone, so no other arm has a figure either.
    let leak = at(&value, "/arms/5/metrics/privleak");
    assert_eq!((&leak["value"], &leak["auc"]), (&Value::Null, &json!(0.25)));
    assert_eq!(leak["reason"], "the reference: forget text 0: too short");
    assert_eq!(at(&value, "/arms/0/metrics/knowmem_forget/reason"), "there are no examples");
    assert_eq!(at(&value, "/recovery/3/of_gap_to_target"), &Value::Null);
    assert!(at(&value, "/recovery/3/reason").as_str().unwrap().contains("there are no examples"));
    // The text has a dash there, and still a sentence.
    let text = report_text(&report(&findings), Style::Plain);
    assert!(text.contains("npo: int8 has no figure (there are no examples)"), "{text}");
}

#[test]
fn text_says_what_came_back() {
    let text = report_text(&report(&findings()), Style::Plain);
    let row = |start: &[&str]| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines()
            .map(words)
            .find(|words| words.iter().zip(start).filter(|(a, b)| a == b).count() == start.len())
    };
    let npo = row(&["npo", "unlearned", "int4-g128"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(npo[3..], ["50.0", "84.0", "75.3", "-50.0"]);
    let retrain = row(&["retrain", "retrain", "fp16", "(bf16)"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(retrain[4..], ["50.0", "8.0", "75.3", "+0.0"]);
    let ratios = row(&["int4-g128", "KnowMem"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(ratios[2..], ["80", "%", "91", "%", "93", "%"]);
    let sentence = "npo: int4-g128 brings back 80 % of the forgotten knowledge (KnowMem, gap to the target at full \
                    precision); int8 brings back 0 %.";
    assert!(text.contains(sentence), "{text}");
    assert!(text.contains("sure: int4-g128 brings back 2 % of"), "{text}");
    assert!(text.contains("int8 brings back -1 %."), "{text}");
    for direction in ["VerbMem ↓", "KnowMem ↓", "KnowMem retain ↑", "PrivLeak →0 (to retrain)"] {
        assert!(text.contains(direction), "{direction} in {text}");
    }
    assert!(!text.contains("Incomplete"));
    assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
}

#[test]
fn a_run_that_stopped_says_so() {
    let mut findings = findings();
    findings.arms.truncate(4);
    findings.stopped = Some("the device is gone".to_owned());
    let report = report(&findings);
    assert!(!report.complete);
    assert_eq!(report.stopped.as_deref(), Some("the device is gone"));
    let text = report_text(&report, Style::Plain);
    assert!(text.ends_with("Incomplete: the run ended early (the device is gone).\n"), "{text}");
}
