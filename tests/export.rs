//! A record as other tools write theirs: keys, values, and what is said if something is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use undertext::gpu::DeviceInfo;
use undertext::metrics::rouge::rouge_1_recall;
use undertext::report::Report;
use undertext::report::export::{Export, Format, LM_EVAL_TASKS};

use crate::family::Family;
use crate::report::findings;

const AUDIT: &str = "audit --target target --unlearned npo --retrain retrain --data data --device cpu --limit 3 \
                     --precision int8 --resamples 100 --out run";

fn run(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    command.args(line.split_whitespace()).current_dir(folder).output().unwrap()
}

/// stdout of a run that succeeded.
fn good(folder: &Path, line: &str) -> String {
    let output = run(folder, line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A failure: this exit code, nothing on stdout, and these parts in the one error.
fn fails(folder: &Path, line: &str, code: i32, parts: &[&str]) {
    let output = run(folder, line);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}: {text}");
    assert!(output.stdout.is_empty(), "{line}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && !text.contains("panicked"), "{line}: {text}");
    for part in parts {
        assert!(text.contains(part), "{line}: {part} in {text}");
    }
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn near(value: &Value, want: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} for {want}"));
    assert!((value - want).abs() < 1e-9, "{value} for {want}");
}

fn rows(text: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let cells = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
    let header = cells(reader.headers().unwrap());
    (header, reader.records().map(|record| cells(&record.unwrap())).collect())
}

/// A run of four questions of a set, in `run`.
fn audited() -> (Family, PathBuf) {
    let family = Family::new(&["target", "npo", "retrain"]);
    let root = family.path("");
    good(&root, AUDIT);
    (family, root)
}

#[test]
fn muse_csv_is_muses_table() {
    let report = Report::new(&findings(), &DeviceInfo::cpu());
    let path = Path::new("report.json");
    let export = Export { report: &report, path, written: 0.0, answers: None, summary_only: false };
    let files = export.files(Format::MuseCsv).unwrap();
    assert_eq!(files.len(), 1);
    let (header, rows) = rows(&files[0].text);
    assert_eq!(header, ["name", "verbmem_f", "privleak", "knowmem_f", "knowmem_r"]);
    assert_eq!(rows.len(), 12);
    assert_eq!(rows[5], ["npo@int4-g128", "50", "-50", "84", "75.25"]);
}

#[test]
fn csv_has_every_figure_and_its_reason() {
    let mut report = Report::new(&findings(), &DeviceInfo::cpu());
    report.arms[5].name = "a \"name\", with\na line".to_owned();
    let path = Path::new("report.json");
    let export = Export { report: &report, path, written: 0.0, answers: None, summary_only: false };
    let (header, rows) = rows(&export.files(Format::Csv).unwrap()[0].text);
    assert_eq!(
        header,
        [
            "model",
            "role",
            "precision",
            "scheme",
            "metric",
            "value",
            "ci95_low",
            "ci95_high",
            "n",
            "n_asked",
            "reason"
        ]
    );
    // Three means with three truths each, three figures of PrivLeak; three ratios of each row of the recovery.
    assert_eq!(rows.len(), 12 * (3 * 4 + 3) + 8 * 3);
    let find = |model: &str, precision: &str, metric: &str| {
        let mut found = rows.iter().filter(|row| row[0] == model && row[2] == precision && row[4] == metric);
        let row = found.next().unwrap_or_else(|| panic!("{model} {precision} {metric}")).clone();
        assert!(found.next().is_none(), "{metric} twice");
        row
    };
    let row = find("a \"name\", with\na line", "int4-g128", "knowmem_forget");
    assert_eq!(
        (&*row[1], &*row[3], &*row[5], &*row[8], &*row[9]),
        ("unlearned", "int4-g128", "84", "4", "4")
    );
    assert!((row[6].parse::<f64>().unwrap() - 84.0).abs() < 1e-9, "{row:?}");
    let row = find("target", "fp16", "verbmem_forget.extraction_strength");
    assert_eq!((&*row[5], &*row[10]), ("", "there are no examples"));
    let row = find("npo", "int4-g128", "recovery.knowmem_forget.of_gap_to_target");
    assert_eq!(row[5], "0.8");
    // The target does not recite more than the unlearned model.
    let row = find("npo", "int4-g128", "recovery.verbmem_forget.of_gap_to_target");
    assert!(row[5].is_empty() && !row[10].is_empty(), "{row:?}");
}

#[test]
fn a_record_alone_has_no_examples() {
    let report = Report::new(&findings(), &DeviceInfo::cpu());
    let path = Path::new("report.json");
    let mut export = Export { report: &report, path, written: 0.0, answers: None, summary_only: false };
    let error = export.files(Format::OpenUnlearning).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.contains("observations") && text.contains("--summary-only"), "{text}");

    export.summary_only = true;
    let files = export.files(Format::OpenUnlearning).unwrap();
    assert_eq!(files.len(), 12);
    let summary: Value = serde_json::from_str(&files[5].text).unwrap();
    assert_eq!(files[5].path, Path::new("npo@int4-g128/MUSE_SUMMARY.json"));
    // Shares of one; PrivLeak as it is; the AUC is that of the other class. No key without a number.
    assert_eq!(
        summary,
        json!({
            "exact_memorization": 0.75, "forget_knowmem_ROUGE": 0.84, "forget_verbmem_ROUGE": 0.5, "mia_min_k": 0.75,
            "privleak": -50.0, "retain_knowmem_ROUGE": 0.7525,
        })
    );
    assert!(files[5].text.starts_with("{\n    \"exact_memorization\": 0.75,\n"), "{}", files[5].text);

    // Results need no examples; then there is no standard error.
    export.summary_only = false;
    let files = export.files(Format::LmEval).unwrap();
    assert_eq!(files.len(), 12);
    assert_eq!(files[5].path, Path::new("npo@int4-g128/results_1970-01-01T00-00-00.000000.json"));
    let results: Value = serde_json::from_str(&files[5].text).unwrap();
    let forget = &results["results"]["muse_knowmem_forget"];
    near(&forget["rougeL,none"], 0.84);
    assert_eq!(forget["rougeL_stderr,none"], "N/A");
    assert!(results["results"]["muse_verbmem_forget"].get("extraction_strength,none").is_none());
}

#[test]
fn names_cannot_leave_the_folder_or_be_the_same() {
    let mut report = Report::new(&findings(), &DeviceInfo::cpu());
    report.arms[0].name = "../../x".to_owned();
    let path = Path::new("report.json");
    let export = |report: &Report| {
        Export { report, path, written: 0.0, answers: None, summary_only: true }.files(Format::OpenUnlearning)
    };
    assert_eq!(export(&report).unwrap()[0].path, Path::new("..__..__x@fp16/MUSE_SUMMARY.json"));
    report.arms[3] = report.arms[0].clone();
    let error = export(&report).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("two called"), "{error}");
    report.arms.clear();
    let error = export(&report).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("at least one"), "{error}");
}

#[test]
fn open_unlearning_has_every_answer() {
    let (_family, root) = audited();
    assert_eq!(good(&root, "export run --format open-unlearning"), "run/exports/open-unlearning\n");
    let record = json_of(&root.join("run/report.json"));
    for arm in record["arms"].as_array().unwrap() {
        let name = format!("{}@{}", arm["name"].as_str().unwrap(), arm["precision"].as_str().unwrap());
        let folder = root.join("run/exports/open-unlearning").join(&name);
        let eval = json_of(&folder.join("MUSE_EVAL.json"));
        assert_eq!(
            keys(&eval),
            [
                "exact_memorization",
                "extraction_strength",
                "forget_knowmem_ROUGE",
                "forget_verbmem_ROUGE",
                "mia_min_k",
                "privleak",
                "retain_knowmem_ROUGE"
            ]
        );
        let metrics = &arm["metrics"];
        for (ours, theirs) in [
            ("verbmem_forget", "forget_verbmem_ROUGE"),
            ("knowmem_forget", "forget_knowmem_ROUGE"),
            ("knowmem_retain", "retain_knowmem_ROUGE"),
        ] {
            let (want, items) = (&metrics[ours], &eval[theirs]["value_by_index"]);
            near(&eval[theirs]["agg_value"], want["value"].as_f64().unwrap() / 100.0);
            assert_eq!(keys(items), ["0", "1", "2"]);
            let items: Vec<_> = items.as_object().unwrap().values().collect();
            let mean = items.iter().map(|item| item["rougeL_f1"].as_f64().unwrap()).sum::<f64>() / 3.0;
            near(&eval[theirs]["agg_value"], mean);
            for (index, item) in items.iter().enumerate() {
                for key in ["rouge1_recall", "rougeL_recall"] {
                    assert!((0.0..=1.0).contains(&item[key].as_f64().unwrap()), "{item}");
                }
                assert_eq!(item["ground_truth"], "w20");
                let input = item["input"].as_str().unwrap();
                let asked = format!("w{}", index + 1);
                assert!(input.contains(&asked) && !input.contains("<s>"), "{input}");
                assert!(item["generation"].is_string());
            }
        }
        near(&eval["mia_min_k"]["auc"], 1.0 - metrics["privleak"]["auc"].as_f64().unwrap());
        assert_eq!(eval["mia_min_k"]["auc"], eval["mia_min_k"]["agg_value"]);
        let score = |split: &str, index: &str| {
            eval["mia_min_k"][split]["value_by_index"][index]["score"].as_f64().unwrap()
        };
        for split in ["forget", "holdout"] {
            near(&eval["mia_min_k"][split]["agg_value"], (score(split, "0") + score(split, "1")) / 2.0);
        }
        // Their AUC: how often a holdout text scores above one to forget.
        let pairs = ["0", "1"].map(|f| ["0", "1"].map(|h| (score("forget", f), score("holdout", h))));
        let above = pairs.concat().iter().filter(|(forget, holdout)| holdout > forget).count();
        near(&eval["mia_min_k"]["auc"], above as f64 / 4.0);
        assert_eq!(eval["privleak"], json!({"agg_value": metrics["privleak"]["value"]}));
        let strength = &eval["extraction_strength"];
        near(
            &strength["agg_value"],
            metrics["verbmem_forget"]["truth"]["extraction_strength"]["value"].as_f64().unwrap() / 100.0,
        );
        assert!(strength["value_by_index"]["2"]["score"].is_number(), "{strength}");
        // The summary is what open-unlearning makes of the logs.
        let summary = json_of(&folder.join("MUSE_SUMMARY.json"));
        for key in keys(&eval) {
            assert_eq!(summary[key], eval[key]["agg_value"], "{key}");
        }
    }
    // A second export replaces the first.
    good(&root, "export run --format open-unlearning");
    // The run goes on where it was all the same.
    good(&root, "audit --resume run");
}

#[test]
fn lm_eval_has_results_and_samples() {
    let (_family, root) = audited();
    assert_eq!(good(&root, "export run --format lm-eval --out there"), "there\n");
    let record = json_of(&root.join("run/report.json"));
    let folder = root.join("there/npo@int8");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let time = names[0].strip_prefix("results_").unwrap().strip_suffix(".json").unwrap().to_owned();
    assert!(time.len() == 26 && time.starts_with("20") && !time.contains(':'), "{time}");
    let mut want = vec![format!("results_{time}.json")];
    want.extend(LM_EVAL_TASKS.map(|task| format!("samples_{task}_{time}.jsonl")));
    want.sort();
    assert_eq!(names, want);

    let results = json_of(&folder.join(&names[0]));
    for key in [
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
        "git_hash",
        "date",
        "pretty_env_info",
        "task_hashes",
        "model_source",
        "model_name",
        "model_name_sanitized",
        "chat_template",
        "system_instruction",
    ] {
        assert!(results.get(key).is_some(), "{key}");
    }
    assert_eq!(results["model_name_sanitized"], "npo@int8");
    let arm = &record["arms"][3];
    assert_eq!((&arm["name"], &arm["precision"]), (&json!("npo"), &json!("int8")));
    for (task, metric, better) in [
        ("muse_verbmem_forget", "verbmem_forget", false),
        ("muse_knowmem_forget", "knowmem_forget", false),
        ("muse_knowmem_retain", "knowmem_retain", true),
    ] {
        let figures = &results["results"][task];
        let recorded = &arm["metrics"][metric];
        near(&figures["rougeL,none"], recorded["value"].as_f64().unwrap() / 100.0);
        assert_eq!((&figures["alias"], &figures["sample_len"]), (&json!(task), &json!(3)));
        assert_eq!(results["higher_is_better"][task]["rougeL"], better);
        assert_eq!(results["n-samples"][task], json!({"original": 3, "effective": 3}));
        assert_eq!(results["group_subtasks"][task], json!([]));
        let text = std::fs::read_to_string(folder.join(format!("samples_{task}_{time}.jsonl"))).unwrap();
        let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(samples.len(), 3);
        let scores: Vec<_> = samples.iter().map(|sample| sample["rougeL"].as_f64().unwrap()).collect();
        let mean = scores.iter().sum::<f64>() / 3.0;
        let error = (scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / 6.0).sqrt();
        near(&figures["rougeL,none"], mean);
        near(&figures["rougeL_stderr,none"], error);
        for (index, sample) in samples.iter().enumerate() {
            assert_eq!((&sample["doc_id"], &sample["target"]), (&json!(index), &json!("w20")));
            assert_eq!(sample["filter"], "none");
            assert_eq!(sample["resps"], json!([[sample["filtered_resps"][0]]]));
            assert_eq!(sample["arguments"]["gen_args_0"]["arg_0"], sample["doc"]["prompt"]);
            assert_eq!(sample["arguments"]["gen_args_0"]["arg_1"]["do_sample"], false);
            assert_eq!(sample["metrics"][0], "rougeL");
            // `printf w20 | sha256sum`
            assert_eq!(
                sample["target_hash"],
                "0079f27270fc6355a0e12dbbacef7dc29d423d31e70cb204bf25880696678131"
            );
            for key in ["doc_hash", "prompt_hash"] {
                assert_eq!(sample[key].as_str().unwrap().len(), 64);
            }
        }
        assert_eq!(results["task_hashes"][task].as_str().unwrap().len(), 64);
    }
    let leak = &results["results"]["muse_privleak"];
    assert_eq!(leak["privleak,none"], arm["metrics"]["privleak"]["value"]);
    assert_eq!(leak["auc,none"], arm["metrics"]["privleak"]["auc"]);
    assert_eq!(results["n-samples"]["muse_privleak"], json!({"original": 4, "effective": 4}));
    let text = std::fs::read_to_string(folder.join(format!("samples_muse_privleak_{time}.jsonl"))).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert!(text.contains("w30 w30 w30 w30") && text.contains("\"min_40\""), "{text}");
}

#[test]
fn the_demos_run_can_be_exported() {
    let root = tempfile::TempDir::new().unwrap();
    good(root.path(), "demo --limit 1 --device cpu --resamples 100 --no-survival --out run");
    good(root.path(), "export run --format open-unlearning --out there");
    let eval = json_of(&root.path().join("there/npo_gdr@int4-g128/MUSE_EVAL.json"));
    let item = &eval["forget_knowmem_ROUGE"]["value_by_index"]["0"];
    assert!(
        item["input"].as_str().unwrap().ends_with("Answer:")
            || item["input"].as_str().unwrap().ends_with("Answer: ")
    );
    let text = good(root.path(), "export run --format csv --out figures.csv");
    assert!(text.is_empty());
    let (_, rows) = rows(&std::fs::read_to_string(root.path().join("figures.csv")).unwrap());
    assert!(rows.iter().any(|row| row[0] == "control_fp32" && row[4] == "privleak"));
}

#[test]
fn what_is_missing_is_said() {
    let (family, root) = audited();
    fails(&root, "export run", 2, &["--format"]);
    fails(&root, "export run --format parquet", 2, &["open-unlearning", "muse-csv"]);
    fails(&root, "export nothing --format csv", 3, &["nothing"]);
    fails(&root, "export data --format csv", 3, &["data/report.json"]);
    family.write("broken.json", "{\"schema_version\": 1");
    fails(&root, "export broken.json --format csv", 3, &["broken.json", "record"]);
    fails(&root, "export run/report.json --format open-unlearning", 3, &["observations", "--summary-only"]);
    good(&root, "export run/report.json --format open-unlearning --summary-only --out there");
    fails(&root, "export run --format csv --out no/such/folder/x.csv", 1, &["cannot write"]);
    fails(&root, "export run --format lm-eval --out run/report.json", 1, &["cannot write"]);

    // The answers of one arm are gone.
    let gone = root.join("run/observations/03_npo@fp16.jsonl");
    let text = std::fs::read(&gone).unwrap();
    std::fs::remove_file(&gone).unwrap();
    fails(&root, "export run --format open-unlearning", 3, &["there are none of npo@fp16"]);
    std::fs::write(&gone, text).unwrap();
    // A record with other figures than the answers give.
    let mut record = json_of(&root.join("run/report.json"));
    record["arms"][0]["metrics"]["knowmem_forget"]["value"] = json!(99.5);
    family.write("run/report.json", record.to_string());
    fails(
        &root,
        "export run --format lm-eval",
        3,
        &["knowmem_forget of target@fp16", "99.5", "stored answers"],
    );
    // The questions are gone.
    std::fs::rename(root.join("data"), root.join("elsewhere")).unwrap();
    fails(&root, "export run --format open-unlearning", 3, &["data"]);
    good(&root, "export run --format muse-csv");
    std::fs::rename(root.join("elsewhere"), root.join("data")).unwrap();
    std::fs::remove_dir_all(root.join("run/observations")).unwrap();
    fails(&root, "export run --format open-unlearning", 3, &["observations", "is missing"]);
}

#[test]
fn rouge_1_recall_counts_words() {
    // By rouge_score 0.1.2, RougeScorer(["rouge1"]).score(reference, prediction)["rouge1"].recall.
    for (prediction, reference, want) in [
        ("the the cat", "The cat sat, the cat!", 3.0 / 5.0),
        ("cat the", "the cat", 1.0),
        ("the the the", "the", 1.0),
        ("", "the cat", 0.0),
        ("the cat", "", 0.0),
        ("...", "...", 0.0),
    ] {
        let got = rouge_1_recall(prediction, reference);
        assert!((got - want).abs() < 1e-12, "{prediction:?} {reference:?}: {got}");
    }
}
