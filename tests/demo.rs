//! The demo family on every adapter and on the CPU, against transformers' own answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use undertext::checkpoint::Checkpoint;
use undertext::engine::{Engine, Observation, Options};
use undertext::model::{Each, Lockstep, Reference};
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
    let int4 = Precision::Quantized(Scheme::Int4 { group: 128 });
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
