//! `undertext localize`, by itself and into a run's report.

use serde_json::{Value, json};

use super::{Family, family, good, json_of, one_line, stderr, stdout, undertext};

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

const RUN: &str = "audit --target $/target --unlearned $/npo $/ga --data $/data --precision fp16,int4-g128 --limit 3 \
                   --resamples 100 --device cpu --out $/run";

fn report(family: &Family) -> Value {
    serde_json::from_slice(&std::fs::read(family.path("run/report.json")).unwrap()).unwrap()
}

#[test]
fn a_finding_goes_into_the_report_and_stays_there() {
    let family = family();
    good(&undertext(&family, RUN));
    let before = report(&family);
    let line = "localize --into $/run --unlearned npo --by block,layer --resamples 100 --device cpu";
    let output = undertext(&family, &format!("{line} --json"));
    let found = json_of(&output);
    assert!(stderr(&output).contains("note: added to "), "{}", stderr(&output));
    assert_eq!(
        [&found["model"], &found["n"]],
        [&json!("npo"), &json!(6)],
        "of as many examples as the run's"
    );
    let after = report(&family);
    assert_eq!(after["localizations"], json!([found]));
    let without = |mut report: Value| {
        report.as_object_mut().unwrap().remove("localizations");
        report
    };
    assert_eq!(without(after.clone()), before, "nothing else has changed");
    // A record with it is still one by the schema, which knows what it is.
    let schema = serde_json::from_str(good(&undertext(&family, "report --schema"))).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(validator.is_valid(&after), "{:?}", validator.iter_errors(&after).next());
    let mut spoiled = after.clone();
    spoiled["localizations"][0]["n"] = json!(-1);
    assert!(!validator.is_valid(&spoiled));
    let page = || std::fs::read_to_string(family.path("run/report.html")).unwrap();
    let made = page();
    assert!(made.contains("<summary>npo at int4-g128, 6 answers</summary>"));

    // From the record alone, and by a run that goes on.
    good(&undertext(&family, "report $/run"));
    assert!(page() == made);
    let resumed = undertext(&family, "audit --resume $/run");
    good(&resumed);
    assert_eq!(report(&family)["localizations"], after["localizations"]);
    assert!(page().contains("<summary>npo at int4-g128, 6 answers</summary>"));

    // Another model's stands beside it, the same again in its place. Paths do as well as names.
    good(&undertext(&family, &line.replace("npo", "$/ga")));
    good(&undertext(&family, &line.replace("block,layer", "layer")));
    let both = report(&family);
    let all = both["localizations"].as_array().unwrap();
    assert_eq!([&all[0]["model"], &all[1]["model"]], ["npo", "ga"]);
    let kinds =
        |found: &Value| found["variants"].as_array().unwrap().iter().filter(|v| v["kind"] == "block").count();
    assert_eq!([kinds(&all[0]), kinds(&all[1])], [0, 7]);

    // With other weights the run is another, and what was localized in it of no use.
    std::fs::copy(family.path("retrain/model.safetensors"), family.path("npo/model.safetensors")).unwrap();
    one_line(&undertext(&family, line), 3, &["the weights of npo", "/run was made with"]);
    assert_eq!(report(&family), both);
    let resumed = undertext(&family, "audit --resume $/run");
    good(&resumed);
    let dropped = "the weights of npo have changed: what was localized in npo at int4-g128 is left out";
    assert!(stderr(&resumed).contains(dropped), "{}", stderr(&resumed));
    assert_eq!(report(&family)["localizations"], json!([all[1]]));
}

#[test]
fn a_finding_goes_into_no_other_run() {
    let family = family();
    good(&undertext(&family, RUN));
    let before = std::fs::read(family.path("run/report.json")).unwrap();
    std::fs::create_dir(family.path("empty")).unwrap();
    for (line, code, parts) in [
        ("--into $/run", 2, ["--unlearned", "which model of the run: npo, ga"]),
        ("--into $/run --unlearned $/retrain", 2, ["--into", "retrain; this one has npo, ga"]),
        ("--into $/run --unlearned npo --target $/retrain", 2, ["--into", "a run with the target"]),
        ("--into $/run --unlearned npo --data $/other", 2, ["--into", "a run with the questions"]),
        ("--into $/empty --unlearned npo", 3, ["empty", "plan.toml"]),
        ("--into $/none --unlearned npo", 3, ["none", "plan.toml"]),
    ] {
        let output = undertext(&family, &format!("localize {line} --device cpu"));
        one_line(&output, code, &parts);
        assert!(stdout(&output).is_empty(), "{line}");
    }
    assert_eq!(std::fs::read(family.path("run/report.json")).unwrap(), before);
    let output = undertext(&family, "localize --target $/target --data $/data --device cpu");
    assert_eq!(output.status.code(), Some(2), "without a run, all three are needed: {}", stderr(&output));
}
