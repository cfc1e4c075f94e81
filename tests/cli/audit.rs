//! `undertext audit` and `undertext demo`.

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bad::poison;
use super::{AUDIT, family, good, json_of, one_line, stderr, stdout, undertext};

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

    let line = format!("{AUDIT} --limit 2 --precision int8 --json=report.json");
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
    let line = format!("{AUDIT} --limit 3 --precision int8 --json=report.json --fail-on");
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
    let output = undertext(&family, &format!("{AUDIT} --limit 1 --json=report.json --html report.html"));
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
fn a_report_that_cannot_be_written_is_found_out_first() {
    let family = family();
    let output = undertext(&family, &format!("{AUDIT} --json=no/such/directory/report.json"));
    one_line(&output, 1, &["cannot write", "report.json"]);
    assert!(!stderr(&output).contains("[1/"), "{}", stderr(&output));
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
