//! The report: names that stay, numbers or reasons, text for people.

use serde_json::{Value, json};
use undertext::audit::{
    AnswerApart, AnswerSet, Apart, ArmResult, Auc, Fate, Findings, MatrixFate, Metric, Plan, Request,
    Survival,
};
use undertext::gpu::DeviceInfo;
use undertext::metrics::Measured;
use undertext::model::Counters;
use undertext::quant::{Precision, Scheme};
use undertext::report::{Report, Style, report_text};
use undertext::suite::muse::Truth;

const INT8: Precision = Precision::nearest(Scheme::Int8);
const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 128 });

/// KnowMem on the forget set at full precision, int8 and int4: target, npo, sure, retrain.
const KNOWMEM: [[f64; 3]; 4] = [[100.0, 98.0, 90.0], [20.0, 20.0, 84.0], [16.0, 15.0, 18.0], [8.0, 8.0, 8.0]];

/// npo's distance from the target is 2 nats a token at full precision and 0.5 at int4, on two answers of 10 and 30 tokens.
fn apart() -> Vec<Apart> {
    let (target, npo) = (0, 1);
    let of = |set, reference, arm, kl: f64, same: usize| Apart {
        set,
        reference,
        arm,
        answers: [10, 30]
            .map(|positions| AnswerApart {
                positions,
                kl: 0.1 * positions as f64,
                reverse_kl: kl * positions as f64,
                same_top: same * positions / 10,
            })
            .into(),
    };
    AnswerSet::ALL
        .into_iter()
        .flat_map(|set| {
            [
                of(set, (target, Precision::Full), (npo, Precision::Full), 2.0, 4),
                of(set, (target, INT4), (npo, INT4), 0.5, 9),
                of(set, (npo, Precision::Full), (npo, INT4), 7.0, 5),
                of(set, (target, Precision::Full), (target, INT4), 7.0, 5),
            ]
        })
        .collect()
}

#[test]
fn the_four_way_picture_says_by_how_much_arms_come_together() {
    let report = serde_json::to_value(Report::new(&findings(), &DeviceInfo::cpu())).unwrap();
    let rows = report["divergence"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "int8 was not compared, nor sure: {rows:?}");
    let row = &rows[0];
    assert_eq!([&row["set"], &row["unlearned"], &row["precision"]], ["forget", "npo", "int4-g128"]);
    let near = |name: &str, want: f64| {
        let value = row[name]["value"].as_f64().unwrap();
        assert!((value - want).abs() < 1e-12, "{name}: {value}");
        let [low, high] = [0, 1].map(|end| row[name]["ci95"][end].as_f64().unwrap());
        assert!(low <= value + 1e-12 && value <= high + 1e-12, "{name}: {low} {high}");
    };
    near("to_target_full", 2.0);
    near("to_target", 0.5);
    near("closer", 0.75);
    near("to_own_full", 0.1);
    near("target_to_own_full", 0.1);
    near("same_top", 0.9);
    near("same_top_full", 0.4);
    assert_eq!([&row["n"], &row["positions"]], [2, 40]);
    let truth = &report["arms"][0]["metrics"]["verbmem_forget"]["truth"];
    assert_eq!([&truth["probability"]["value"], &truth["exact_memorization"]["value"]], [25.0, 75.0]);
    assert!(
        truth["extraction_strength"]["value"].is_null() && truth["extraction_strength"]["reason"].is_string()
    );
    assert_eq!([&truth["extraction_strength"]["n"], &truth["extraction_strength"]["n_asked"]], [0, 2]);
}

/// Two layers of two matrices each: the first layer keeps all of its update, the second what is left of the whole's share.
/// The last matrix did not change.
fn matrices(survival: f64) -> Vec<MatrixFate> {
    let fate = |kept: f64| {
        let absorbed = (0..100).filter(|weight| f64::from(*weight) >= 100.0 * kept).count() as u64;
        Fate { update: 1.0, kept, changed: 100, absorbed: Some(absorbed) }
    };
    let matrix = |layer, module, fate| MatrixFate { layer: Some(layer), module, fate };
    vec![
        matrix(0, "q_proj", fate(survival)),
        matrix(0, "down_proj", fate(survival)),
        matrix(1, "q_proj", fate(survival)),
        matrix(1, "down_proj", Fate::default()),
    ]
}

pub(crate) fn findings() -> Findings {
    let plan = Plan::new(Request {
        target: "models/target".into(),
        unlearned: vec!["models/npo".into(), "models/sure".into()],
        retrain: Some("models/retrain".into()),
        data: "data".into(),
        precisions: vec![Precision::Full, INT8, INT4],
        ..Request::default()
    })
    .unwrap();
    // Examples that all score the same.
    let metric =
        |value: f64, n| Metric { value: Measured::Value(value), asked: n, scores: vec![value / 100.0; n] };
    // One of four pairs of the target's kind has the holdout text likelier, two of the retrained model's.
    let auc = |model| Auc {
        value: Measured::Value(if model == 3 { 0.5 } else { 0.25 }),
        asked: 4,
        forget: vec![1.0, if model == 3 { 4.0 } else { 2.0 }],
        holdout: vec![1.5, 3.0],
    };
    let arm = |model: usize, place: usize| {
        let precision = [Precision::Full, INT8, INT4][place];
        ArmResult {
            model,
            precision,
            scheme: precision.scheme(Scheme::Bf16),
            verbmem_forget: metric(50.0, 3),
            knowmem_forget: metric(KNOWMEM[model][place], 4),
            knowmem_retain: metric(75.25, 5),
            auc: auc(model),
            truths: [0.25, 0.5, 1.0].map(|probability| {
                let truth = Truth {
                    probability: Measured::Value(probability),
                    exact_memorization: Measured::Value(0.75),
                    extraction_strength: Measured::Missing("none".to_owned()),
                    log_probs: vec![-0.004, -1.236, f32::NAN],
                };
                [truth.clone(), truth].as_slice().into()
            }),
            texts: [3, 4, 5]
                .map(|n| (0..n).map(|sample| format!("model {model} says w{sample} <b>")).collect()),
        }
    };
    let arms = (0..4).flat_map(|model| (0..3).map(move |place| (model, place)));
    let arms = arms.map(|(model, place)| arm(model, place)).collect();
    let counters = Counters { tokens_scored: 120, peak_device_bytes: 100, ..Counters::default() };
    let survival = [1, 2].into_iter().flat_map(|unlearned| {
        [(INT8, 1.0), (INT4, if unlearned == 1 { 0.1 } else { 0.9 })].map(|(precision, value)| Survival {
            unlearned,
            precision,
            value: Measured::Value(value),
            moved: None,
            matrices: matrices(value),
        })
    });
    let survival = survival.collect();
    let apart = apart();
    let question = |sample: usize| (format!("what is {sample}?"), format!("w{sample} says model"));
    let questions = [3, 4, 5].map(|n| (0..n).map(question).collect());
    let (stopped, truncated, codes_disk_bytes) = (None, 0, 77);
    let tokens = [2, 2, 2].map(|n| (0..n).map(|_| [" w<0", "", "\n"].map(str::to_owned).to_vec()).collect());
    Findings {
        plan,
        arms,
        truncated,
        questions,
        tokens,
        apart,
        stopped,
        survival,
        codes_disk_bytes,
        counters,
    }
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
    for (metric, value, n) in
        [("verbmem_forget", 50.0, 3), ("knowmem_forget", 84.0, 4), ("knowmem_retain", 75.25, 5)]
    {
        let found = &arm["metrics"][metric];
        assert_eq!((&found["value"], &found["n"], &found["n_asked"]), (&json!(value), &json!(n), &json!(n)));
        for end in found["ci95"].as_array().unwrap() {
            assert!((end.as_f64().unwrap() - value).abs() < 1e-9, "{found}");
        }
    }
    let leak = &arm["metrics"]["privleak"];
    for (name, want) in [
        ("value", json!(-50.0)),
        ("auc", json!(0.25)),
        ("reference_auc", json!(0.5)),
        ("reference", json!("retrain")),
    ] {
        assert_eq!(leak[name], want, "{name}");
    }
    assert_eq!((&leak["n"], &leak["n_asked"]), (&json!(4), &json!(4)));
    // With two texts a set the retrained model's AUC is 0 on some resamples: no interval.
    assert!(leak.get("ci95").is_none(), "{leak}");

    let recovery = at(&value, "/recovery").as_array().unwrap();
    assert_eq!(recovery.len(), 2 * 2 * 2);
    let row = &recovery[3];
    for (name, want) in [
        ("unlearned", json!("npo")),
        ("precision", json!("int4-g128")),
        ("metric", json!("knowmem_forget")),
        ("of_gap_to_target", json!(0.8)),
        ("of_gap_to_target_same_precision", json!(64.0 / 70.0)),
        ("share_of_target_same_precision", json!(84.0 / 90.0)),
        ("n", json!(4)),
        ("n_asked", json!(4)),
        ("survival", json!(0.1)),
        // All four examples rose: one of the sixteen ways to choose the signs. Holm over eight rows.
        ("p_recovered", json!(1.0 / 16.0)),
        ("p_recovered_holm", json!(0.5)),
        ("p_held", json!(1.0)),
        ("p_held_holm", json!(1.0)),
    ] {
        assert_eq!(row[name], want, "{name}");
    }
    for (name, want) in [
        ("of_gap_to_target_ci95", 0.8),
        ("of_gap_to_target_same_precision_ci95", 64.0 / 70.0),
        ("share_of_target_same_precision_ci95", 84.0 / 90.0),
    ] {
        let ends = row[name].as_array().unwrap();
        assert!(
            ends.len() == 2 && ends.iter().all(|end| (end.as_f64().unwrap() - want).abs() < 1e-9),
            "{name}"
        );
    }
    assert!(row["beyond_retrain"]["value"].is_number());
    // VerbMem: the target does not score above the unlearned model.
    assert_eq!(recovery[2]["of_gap_to_target"], Value::Null);
    let reason = recovery[2]["reason"].as_str().unwrap();
    assert!(reason.contains("of_gap_to_target: ") && !reason.contains("share_of"), "{reason}");

    let names: Vec<_> =
        at(&value, "/verdicts").as_array().unwrap().iter().map(|v| v["unlearned"].clone()).collect();
    assert_eq!(names, ["npo", "npo", "sure", "sure"]);
    let verdict = at(&value, "/verdicts/1");
    assert_eq!((&verdict["precision"], &verdict["verdict"]), (&json!("int4-g128"), &json!("inconclusive")));
    assert!(verdict["because"].as_str().unwrap().contains("4 examples are too few"), "{verdict}");
    let control = at(&value, "/controls/4");
    assert_eq!((&control["name"], &control["precision"]), (&json!("target"), &json!("int4-g128")));
    assert_eq!((&control["metric"], &control["change"]), (&json!("knowmem_forget"), &json!(-10.0)));
    assert_eq!(at(&value, "/controls").as_array().unwrap().len(), 2 * 2 * 3);
    let survival = at(&value, "/survival/1");
    for (name, want) in
        [("unlearned", json!("npo")), ("precision", json!("int4-g128")), ("value", json!(0.1))]
    {
        assert_eq!(survival[name], want, "{name}");
    }
    // Both figures of every matrix, and of all in a row, in a column, and in all.
    for path in
        ["total", "modules/q_proj", "modules/down_proj", "layers/0/modules/down_proj", "layers/1/total"]
    {
        let kept = at(survival, &format!("/map/{path}"));
        // Sums of tenths.
        assert!((kept["survival"].as_f64().unwrap() - 0.1).abs() < 1e-12, "{path}: {kept}");
        assert_eq!(kept["absorbed"], 0.9, "{path}");
    }
    assert_eq!(
        at(survival, "/map/layers/1/modules/down_proj"),
        &json!({"survival": null, "absorbed": null}),
        "it did not change"
    );
    assert!(survival["map"].get("head").is_none(), "the head was not quantized");
    // By value: forget 1, holdout 1.5, forget 2, holdout 3.
    assert_eq!(leak["roc"], json!([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [1.0, 0.5], [1.0, 1.0]]));
    // Of the true answers on the forget set, each token with its log p in hundredths.
    let samples = at(&value, "/samples");
    assert_eq!(samples[0]["tokens"], json!([" w<0", "", "\n"]));
    assert_eq!(samples[0]["answers"][11]["log_probs"], json!([0.0, -1.24, null]));
    assert_eq!((&samples[3]["metric"], &samples[3]["tokens"][0]), (&json!("knowmem_forget"), &json!(" w<0")));
    let retain = &samples[11];
    assert_eq!(retain["metric"], "knowmem_retain");
    assert!(retain.get("tokens").is_none() && retain["answers"][0].get("log_probs").is_none(), "{retain}");
    let ranks = at(&value, "/survival_rank_correlation/1");
    assert_eq!((&ranks["metric"], &ranks["n"]), (&json!("knowmem_forget"), &json!(4)));
    assert!(ranks["spearman"].as_f64().unwrap() < 0.0, "{ranks}");
    let judged = at(&value, "/statistics");
    assert_eq!(
        (&judged["resamples"], &judged["seed"], &judged["alpha"]),
        (&json!(9999), &json!(0), &json!(0.05))
    );
    assert_eq!(at(&value, "/counters/codes_disk_bytes"), 77);

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
fn a_long_curve_is_thinned() {
    let mut findings = findings();
    let values = |from: f64| (0..150).map(|step| from + f64::from(step)).collect();
    findings.arms[0].auc =
        Auc { value: Measured::Value(0.5), asked: 300, forget: values(0.0), holdout: values(0.5) };
    let roc = &report(&findings).arms[0].metrics.privleak.roc;
    assert_eq!((roc.len(), roc[0], roc[100]), (101, [0.0; 2], [1.0; 2]));
    assert!(roc.windows(2).all(|ends| ends[0][0] <= ends[1][0] && ends[0][1] <= ends[1][1]), "{roc:?}");
    findings.arms[0].auc.value = Measured::Missing("forget text 1: too short".to_owned());
    assert!(report(&findings).arms[0].metrics.privleak.roc.is_empty(), "a curve without an area");
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
    // The text has a dash there, and still a verdict.
    let text = report_text(&report(&findings), Style::PLAIN);
    assert!(text.contains("KnowMem: there are no examples"), "{text}");
}

#[test]
fn text_says_what_came_back() {
    let text = report_text(&report(&findings()), Style::PLAIN);
    let row = |start: &[&str]| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines()
            .map(words)
            .find(|words| words.iter().zip(start).filter(|(a, b)| a == b).count() == start.len())
    };
    let npo = row(&["npo", "unlearned", "int4-g128"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(npo[3..].join(" "), "50.0 ± 0.0 84.0 ± 0.0 75.3 ± 0.0 -50.0");
    let retrain = row(&["retrain", "retrain", "fp16", "(bf16)"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(retrain[4..13].join(" "), "50.0 ± 0.0 8.0 ± 0.0 75.3 ± 0.0");
    let ratios = row(&["int4-g128", "KnowMem"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(ratios[2..].join(" "), "80 % [80, 80] 91 % [91, 91] 93 % [93, 93] 0.500 1.000 0.10");
    let control = row(&["target", "int4-g128"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(control[2..].join(" "), "+0.0 ± 0.0 -10.0 ± 0.0 +0.0 ± 0.0");
    let verdict = row(&["npo", "int4-g128", "INCONCLUSIVE"]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(verdict[3..].join(" "), "VerbMem: 3 examples are too few; KnowMem: 4 examples are too few");
    assert!(text.contains("Rank correlation of an update's survival with what came back:"), "{text}");
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(120), "{widest:?}: {text}");
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
    let text = report_text(&report, Style::PLAIN);
    assert!(text.ends_with("Incomplete: the run ended early (the device is gone).\n"), "{text}");
}

/// The program's own words about what it writes.
fn printed_schema() -> Vec<u8> {
    let output =
        assert_cmd::Command::new(env!("CARGO_BIN_EXE_undertext")).args(["report", "--schema"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0));
    output.stdout
}

#[test]
fn the_schema_in_assets_is_the_programs() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/report.schema.json");
    let ours = std::fs::read(&path).unwrap();
    assert!(ours == printed_schema(), "run: undertext report --schema > assets/report.schema.json");
}

#[test]
fn what_an_audit_writes_is_valid_by_the_schema() {
    let schema = serde_json::from_slice(&printed_schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let family = crate::family::Family::new(&["target", "npo", "ga", "retrain"]);
    let run = |more: &[&str]| -> Value {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_undertext"));
        command
            .current_dir(family.path(""))
            .args(["audit", "--target", "target", "--data", "data", "--limit", "2"]);
        command.args(["--device", "cpu", "--no-out", "--json", "--resamples", "100"]).args(more);
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    };
    let check = |report: &Value| {
        let wrong: Vec<_> = validator
            .iter_errors(report)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    };
    check(&run(&["--unlearned", "npo", "--no-survival", "--no-divergence"]));
    let report = run(&["--series", "size=npo@1,ga@2", "--retrain", "retrain", "--corpus", "news"]);
    check(&report);
    // It can tell: every one of these is refused.
    let broken: [fn(&mut Value); 6] = [
        |report| drop(report.as_object_mut().unwrap().remove("arms")),
        |report| report["schema_version"] = "1".into(),
        |report| report["arms"][0]["metrics"]["privleak"]["auc"] = "NaN".into(),
        |report| report["arms"][0]["metrics"]["verbmem_forget"]["ci95"] = serde_json::json!([1.0]),
        |report| drop(report["recovery"][0].as_object_mut().unwrap().remove("of_gap_to_target")),
        |report| report["counters"]["disk_bytes"] = (-1).into(),
    ];
    for (index, spoil) in broken.iter().enumerate() {
        let mut report = report.clone();
        spoil(&mut report);
        assert!(!validator.is_valid(&report), "{index}");
    }
}
