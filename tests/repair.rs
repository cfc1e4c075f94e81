//! Arms in roundings that keep the update: as written checkpoints, on devices, and in a report.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use undertext::audit::{Format, Plan, QuantizePlan, Request, quantize};
use undertext::checkpoint::{Checkpoint, Draft};
use undertext::model::{Batch, Llama, Lockstep, Pass, Reference, Source};
use undertext::quant::{Precision, Rounding, Scheme, Share};

use crate::adapters;
use crate::llama::largest_difference;
use crate::reference::{tokens, whole};
use crate::support::{layout, streamed};

const INT4: Scheme = Scheme::Int4 { group: 128 };

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/demo/models").join(name)
}

fn open(name: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&path(name)).unwrap())
}

fn batch() -> Batch {
    whole(&tokens(1, 40))
}

fn logits(source: &Source, quantize_head: bool) -> Vec<f32> {
    Reference::load_source(source, quantize_head, 1024).unwrap().logits(&batch()).unwrap()
}

const ROUNDINGS: [Rounding; 3] = [Rounding::Kept(Share::USUAL), Rounding::Aligned, Rounding::Stochastic(7)];

#[test]
fn an_arm_is_the_checkpoint_that_is_written() {
    let (target, npo) = (open("target"), open("npo_gdr"));
    let mut seen = vec![logits(&Source::new(&npo, Precision::nearest(INT4)), false)];
    for rounding in ROUNDINGS {
        let root = TempDir::new().unwrap();
        let out = root.path().join("out");
        let draft = Draft::new(&out).unwrap();
        let plan = QuantizePlan {
            model: path("npo_gdr"),
            target: Some(path("target")),
            scheme: INT4,
            rounding,
            calibrate: None,
            format: Format::Dequantized,
        };
        quantize(plan, &draft, &mut |_, _, _| Ok(())).unwrap();
        draft.publish().unwrap();
        let written = Arc::new(Checkpoint::open(&out).unwrap());
        let want = logits(&Source::new(&written, Precision::Full), false);
        let source = Source::new(&npo, Precision::Quantized(INT4, rounding)).with_target(&target);
        let got = logits(&source, false);
        assert!(got == want, "{rounding}: the written checkpoint answers otherwise");
        assert!(seen.iter().all(|other| *other != got), "{rounding} is another rounding's answer");
        seen.push(got);
        // What looks at an update must be told where it leads from, on any device.
        let without = Source::new(&npo, Precision::Quantized(INT4, rounding));
        let refused = [
            Reference::load_source(&without, false, 1024).map(drop),
            adapters::all()
                .first()
                .map_or(Ok(()), |gpu| Llama::new(gpu, &[without], false, layout(1024)).map(drop)),
        ];
        for (result, there) in refused.into_iter().zip([true, !adapters::all().is_empty()]) {
            assert_eq!(result.is_err(), rounding.needs_target() && there, "{rounding} without a target");
            assert!(result.err().is_none_or(|error| error.exit_code() == 2), "{rounding}");
        }
    }
    let own = Source::new(&npo, "int4+keep".parse().unwrap()).with_target(&npo);
    assert!(logits(&own, false) == seen[0], "without an update nothing moves");
}

#[test]
fn devices_round_arms_as_the_cpu_does() {
    let (target, npo) = (open("target"), open("npo_gdr"));
    let precision = |rounding| Precision::Quantized(INT4, rounding);
    let mut sources: Vec<_> =
        ROUNDINGS.map(|rounding| Source::new(&npo, precision(rounding)).with_target(&target)).into();
    sources.push(Source::new(&npo, Precision::nearest(INT4)));
    let batches = [batch()];
    for gpu in adapters::all() {
        let name = adapters::name(gpu);
        let run = |sources: &[Source], layout| {
            let mut model = Llama::new(gpu, sources, true, layout).unwrap();
            let first = model.run(Pass::Score(&batches)).unwrap();
            // Streamed, the second pass takes what the first one rounded.
            assert!(model.run(Pass::Score(&batches)).unwrap() == first, "{name}: twice");
            first
        };
        let together = run(&sources, layout(1024));
        assert!(run(&sources, streamed(true, false, 1024)) == together, "{name}: streamed");
        let with_target = [&sources[..], &[Source::new(&target, Precision::nearest(INT4))]].concat();
        assert!(run(&with_target, layout(1024))[..4] == together[..], "{name}: beside the target");
        for (arm, source) in sources.iter().enumerate() {
            let alone = run(std::slice::from_ref(source), layout(1024));
            assert!(alone[0] == together[arm], "{name}: {} alone", source.precision);
            // Codes are the same, so that only the order of sums differs: measured at most 3.4e-7 of the range.
            // Any other rounding is at least a tenth of the range away.
            let mut model = Llama::new(gpu, std::slice::from_ref(source), true, layout(1024)).unwrap();
            let got = model.logits(&batch()).unwrap().remove(0);
            let difference = largest_difference(&got, &logits(source, true));
            assert!(difference <= 1e-6, "{name}: {} {difference:e} of the range", source.precision);
            for other in sources.iter().filter(|other| other.precision != source.precision) {
                let apart = largest_difference(&got, &logits(other, true));
                assert!(apart > 1e-2, "{name}: {} is {apart:e} from {}", source.precision, other.precision);
            }
        }
    }
}

#[test]
fn plans_run_doses_for_unlearned_models_only() {
    let request = |precisions: &[&str], doses: &[f64]| Request {
        target: "t".into(),
        unlearned: vec!["u".into()],
        retrain: Some("r".into()),
        data: "d".into(),
        precisions: precisions.iter().map(|precision| precision.parse().unwrap()).collect(),
        doses: doses.iter().map(|share| Share::new(*share).unwrap()).collect(),
        ..Request::default()
    };
    let arms = |plan: &Plan| {
        plan.arms()
            .map(|(model, precision)| format!("{}@{precision}", plan.models[model].name))
            .collect::<Vec<_>>()
    };
    let plan = Plan::new(request(&["fp16", "int8", "int4"], &[0.5, 0.9])).unwrap();
    assert_eq!(
        arms(&plan),
        [
            "t@fp16",
            "t@int8",
            "t@int4-g128",
            "u@fp16",
            "u@int8",
            "u@int4-g128",
            "u@int4-g128+keep=0.5",
            "u@int4-g128+keep=0.9",
            "r@fp16",
            "r@int8",
            "r@int4-g128",
        ]
    );
    assert!(plan.notices.is_empty(), "{:?}", plan.notices);
    // What others are run at is added.
    let plan = Plan::new(request(&["fp16", "nf4-b64+aligned"], &[])).unwrap();
    assert_eq!(
        arms(&plan),
        ["t@fp16", "t@nf4-b64", "u@fp16", "u@nf4-b64", "u@nf4-b64+aligned", "r@fp16", "r@nf4-b64"]
    );
    assert_eq!(plan.notices, ["nf4-b64 is added to --precision, to hold nf4-b64+aligned against"]);
    let error = Plan::new(request(&["int8"], &[0.9])).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[test]
fn the_report_says_what_repair_brings_and_costs() {
    let models = path("");
    let models = models.to_str().unwrap();
    let line = format!(
        "audit --target {models}/target --unlearned {models}/npo_gdr {models}/sure --data {models}/../data --limit 3 \
         --device cpu --precision int4,int4+stochastic=1 --repair --keep auto --dose 0.25"
    );
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_undertext"))
        .args(line.split_whitespace())
        .arg("--json")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let repairs = report["repairs"].as_array().unwrap();
    assert_eq!(repairs.len(), 2 * (9 + 1), "nine doses and a stochastic rounding of two models");
    for repair in repairs {
        let name = &repair["precision"];
        let survival = repair["survival"].as_f64().unwrap();
        if let Some(keep) = repair["keep"].as_f64() {
            assert!((survival - keep).abs() < 0.01, "{name}: {survival}");
        }
        let (moved, weights) = (repair["moved"].as_u64().unwrap(), repair["weights"].as_u64().unwrap());
        assert!(moved > 0 && moved < weights, "{name}: {moved} of {weights}");
        assert_eq!(repair["nearest"], "int4-g128");
        let retain = &repair["changes"][2];
        assert_eq!(retain["metric"], "knowmem_retain");
        let value = |precision: &Value| {
            let arms = report["arms"].as_array().unwrap();
            let own = |arm: &&Value| arm["name"] == repair["unlearned"] && arm["precision"] == *precision;
            arms.iter().find(own).unwrap()["metrics"]["knowmem_retain"]["value"].as_f64().unwrap()
        };
        for (key, other) in [("from_nearest", "int4-g128"), ("from_full", "fp16")] {
            let change = retain[key]["value"].as_f64().unwrap();
            assert!((change - (value(name) - value(&other.into()))).abs() < 1e-9, "{name} {key}");
        }
    }
    // The chosen dose is the smallest that is enough.
    let chosen = report["chosen_doses"].as_array().unwrap();
    assert_eq!(chosen.len(), 2);
    let marked: Vec<_> = repairs.iter().filter(|repair| repair["chosen"] == true).collect();
    let doses: Vec<_> = chosen.iter().filter_map(|chosen| chosen["precision"].as_str()).collect();
    assert_eq!(marked.iter().filter_map(|repair| repair["precision"].as_str()).collect::<Vec<_>>(), doses);
    for repair in marked {
        let metric = |precision: &Value, metric: &str| {
            let arms = report["arms"].as_array().unwrap();
            let own = |arm: &&Value| arm["name"] == repair["unlearned"] && arm["precision"] == *precision;
            arms.iter().find(own).unwrap()["metrics"][metric].clone()
        };
        for name in ["verbmem_forget", "knowmem_forget"] {
            let limit = metric(&"fp16".into(), name)["ci95"][1].as_f64().unwrap();
            assert!(metric(&repair["precision"], name)["value"].as_f64().unwrap() <= limit, "{name}");
        }
    }
    let sure = repairs.iter().find(|repair| repair["unlearned"] == "sure").unwrap();
    assert_eq!(sure["nothing_to_repair"], false, "0.94 is just below what is good enough");
}
