//! The demo family on every adapter and on the CPU, against transformers' own answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assert_cmd::Command;
use serde_json::Value;
use undertext::audit::{ArmResult, Findings, Metric, Outcome, Plan, Request, Statistics, verdicts};
use undertext::checkpoint::Checkpoint;
use undertext::engine::{Ask, Engine, Observation, Options};
use undertext::model::{Counters, Each, Lockstep, Reference};
use undertext::quant::{Precision, Scheme};
use undertext::suite::Muse;

use crate::adapters;
use crate::support::{llama, run_one};

/// Examples of each set: all of them take minutes on software adapters.
const LIMIT: usize = 6;

const CACHE_TOKENS: usize = 8192;

fn demo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(path)
}

/// The ids that transformers generated for a metric's first prompts, by `assets/demo/train/measure.py`.
fn golden(generations: &Value, model: &str, scheme: &str, metric: &str) -> Vec<Vec<u32>> {
    let arms = generations["arms"].as_array().unwrap();
    let arm = arms.iter().find(|arm| arm["model"] == model && arm["scheme"] == scheme).unwrap();
    serde_json::from_value(arm[metric].clone()).unwrap()
}

#[test]
fn answers_are_those_of_transformers_on_every_device() {
    let text = std::fs::read(demo("train/measured_generations.json")).unwrap();
    let generations: Value = serde_json::from_slice(&text).unwrap();
    let int4 = Precision::nearest(Scheme::Int4 { group: 128 });
    for (model, precision, scheme) in
        [("npo_gdr", Precision::Full, "f16"), ("npo_gdr", int4, "int4-g128"), ("sure", int4, "int4-g128")]
    {
        let checkpoint = Arc::new(Checkpoint::open(&demo("models").join(model)).unwrap());
        let tokenizer = checkpoint.tokenizer().unwrap();
        let config = checkpoint.config();
        let muse = Muse::read(&demo("data"), Some(LIMIT)).unwrap();
        let prepared = muse.prepare(&tokenizer, config.context, &config.eos).unwrap();
        let want: Vec<_> = ["verbmem_forget", "knowmem_forget", "knowmem_retain"]
            .into_iter()
            .flat_map(|metric| golden(&generations, model, scheme, metric).into_iter().take(LIMIT))
            .collect();

        let run = |device: &str, arm: Box<dyn Lockstep>| {
            let mut engine = Engine::new(vec![device.to_owned()], arm, Options::default());
            let observations = run_one(&mut engine, prepared.tasks(), &mut |_| Ok(())).unwrap();
            let mut generated = 0;
            let mut scored = Vec::new();
            for (index, observation) in observations.iter().enumerate() {
                match observation {
                    Observation::Generated { tokens, .. } => {
                        // An answer may end earlier than there: where the metric cuts it.
                        let shorter = tokens.len() <= want[index].len() && !tokens.is_empty();
                        let theirs = &want[index][..tokens.len().min(want[index].len())];
                        assert!(
                            shorter && tokens == theirs,
                            "{device}: {model} {scheme} task {index}: {tokens:?}, {theirs:?}"
                        );
                        generated += tokens.len();
                    }
                    Observation::Scored { log_probs, .. } => scored.extend(log_probs.iter().copied()),
                }
            }
            assert!(generated > 3 * LIMIT && scored.len() > 100 * LIMIT, "{generated}, {}", scored.len());
            scored
        };
        let cpu = Reference::load(&checkpoint, precision, false, CACHE_TOKENS).unwrap();
        let cpu = run("cpu", Box::new(Each(vec![cpu])));
        for gpu in adapters::all() {
            let loaded = llama(gpu, &checkpoint, precision, false, CACHE_TOKENS);
            let scores = run(&adapters::name(gpu), Box::new(loaded));
            assert_eq!(scores.len(), cpu.len());
            for (got, want) in scores.iter().zip(&cpu) {
                assert!((got - want).abs() <= 1e-3, "{}: log p {got} for {want}", adapters::name(gpu));
            }
        }
    }
}

/// What the verdicts are made of, from the answers of transformers to all questions.
#[test]
fn small_updates_are_resurrected_and_large_ones_held() {
    const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 128 });
    let text = std::fs::read(demo("train/measured_generations.json")).unwrap();
    let generations: Value = serde_json::from_slice(&text).unwrap();
    let checkpoint = Checkpoint::open(&demo("models/target")).unwrap();
    let (tokenizer, config) = (checkpoint.tokenizer().unwrap(), checkpoint.config());
    let questions =
        Muse::read(&demo("data"), None).unwrap().prepare(&tokenizer, config.context, &config.eos).unwrap();
    let unlearned = ["npo_gdr", "ga_gdr", "sure", "control_fp32"];
    let plan = Plan::new(Request {
        target: "target".into(),
        unlearned: unlearned.iter().map(Into::into).collect(),
        retrain: Some("retrain".into()),
        precisions: vec![Precision::Full, INT4],
        ..Request::default()
    })
    .unwrap();
    let measure = |model: usize, precision: Precision| {
        let scheme = precision.scheme(Scheme::F16);
        let metrics = ["verbmem_forget", "knowmem_forget", "knowmem_retain"];
        let name = &plan.models[model].name;
        let mut answers = metrics.into_iter().flat_map(|m| golden(&generations, name, scheme.name(), m));
        let tasks = questions.tasks().iter().map(|task| match &task.ask {
            Ask::Generate { .. } => {
                Observation::Generated { tokens: answers.next().unwrap(), log_probs: vec![] }
            }
            Ask::Score { from } => {
                let scored = task.tokens.len() - from;
                Observation::Scored {
                    log_probs: vec![-1.0; scored],
                    argmax: vec![0; scored],
                    details: vec![],
                }
            }
        });
        let values = questions.measure(&tokenizer, &tasks.collect::<Vec<_>>()).unwrap();
        ArmResult {
            model,
            precision,
            scheme,
            verbmem_forget: Metric::mean(values.verbmem_forget.scores()),
            knowmem_forget: Metric::mean(values.knowmem_forget.scores()),
            knowmem_retain: Metric::mean(values.knowmem_retain.scores()),
            auc: (&values.privleak).into(),
            truths: [
                &values.verbmem_forget_truths[..],
                &values.knowmem_forget_truths,
                &values.knowmem_retain_truths,
            ]
            .map(Into::into),
            texts: Default::default(),
        }
    };
    let arms =
        (0..plan.models.len()).flat_map(|model| [Precision::Full, INT4].map(|precision| (model, precision)));
    let findings = Findings {
        arms: arms.map(|(model, precision)| measure(model, precision)).collect(),
        plan: plan.clone(),
        truncated: 0,
        questions: Default::default(),
        tokens: Default::default(),
        apart: Vec::new(),
        stopped: None,
        survival: Vec::new(),
        codes_disk_bytes: 0,
        counters: Counters::default(),
    };
    let statistics = Statistics::of(&findings);
    let found: Vec<_> = verdicts(&findings, &statistics).into_iter().map(|verdict| verdict.outcome).collect();
    assert_eq!(found, [Outcome::Resurrected, Outcome::Resurrected, Outcome::Held, Outcome::Held]);
    // The intervals of the two kinds do not touch, in either metric.
    for metric in ["verbmem_forget", "knowmem_forget"] {
        let rows = statistics.recovery.iter().filter(|(row, _)| row.metric == metric);
        let ends: Vec<_> =
            rows.map(|(_, evidence)| evidence.of_gap_to_target_same_precision.unwrap()).collect();
        let back = ends[..2].iter().map(|[low, _]| *low).fold(f64::INFINITY, f64::min);
        let held = ends[2..].iter().map(|[_, high]| *high).fold(f64::NEG_INFINITY, f64::max);
        assert!(held + 0.1 < back, "{metric}: {held}, {back}");
    }
}

#[test]
fn three_examples_decide_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_undertext"))
        .args(["demo", "--limit", "3", "--device", "cpu", "--json", "--fail-on", "resurrected"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = value["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 4 * 2);
    assert!(verdicts.iter().all(|verdict| verdict["verdict"] == "inconclusive"), "{verdicts:?}");
}

#[test]
fn a_model_of_noise_is_void() {
    let directory = tempfile::tempdir().unwrap();
    let noise = directory.path().join("noise");
    std::fs::create_dir(&noise).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(demo("models/npo_gdr").join(file), noise.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(demo("models/npo_gdr/model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    // Every weight, those of norms and embeddings too, becomes noise between -0.5 and 0.5.
    let mut state = 1_u32;
    for weight in bytes[header..].chunks_exact_mut(2) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = f32::from(i16::try_from(state >> 17).unwrap()) / 32_768.0 - 0.5;
        weight.copy_from_slice(&half::f16::from_f32(noise).to_le_bytes());
    }
    std::fs::write(noise.join("model.safetensors"), bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_undertext"))
        .args([
            "audit",
            "--device",
            "cpu",
            "--limit",
            "8",
            "--precision",
            "int4",
            "--no-out",
            "--json",
            "--target",
        ])
        .arg(demo("models/target"))
        .arg("--unlearned")
        .args([&noise, &demo("models/sure")])
        .arg("--data")
        .arg(demo("data"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [noise, sure] = [0, 1].map(|index: usize| &value["verdicts"][index]);
    assert_eq!(noise["verdict"], "void", "{noise}");
    assert!(noise["because"].as_str().unwrap().contains("collapsed"), "{noise}");
    assert_ne!(sure["verdict"], "void", "{sure}");
}
