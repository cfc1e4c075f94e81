//! Both passes against transformers' logits in float32, for every golden checkpoint.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and shows its figures if asked"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;
use undertext::checkpoint::Checkpoint;
use undertext::model::{Batch, Reference};
use undertext::quant::Precision;

use crate::adapters;
use crate::llama::largest_difference;
use crate::reference::whole;
use crate::support::llama;

/// Most that logits may differ, as a share of the golden logits' range: the project's promise.
const TOLERANCE: f32 = 1e-3;

/// Room in the cache for the longest golden sequence; also what `whole` lays its pages out in.
const CACHE_TOKENS: usize = 1024;

/// Compares what `answer` says on every golden sequence and precision. Returns how many logits were compared.
fn compare(
    checkpoint: &Path,
    golden: &Path,
    mut answer: impl FnMut(&Arc<Checkpoint>, Precision, &Batch) -> Vec<(String, Vec<f32>)>,
) -> usize {
    let record: Value = serde_json::from_slice(&std::fs::read(golden.join("logits.json")).unwrap()).unwrap();
    let file = std::fs::read(golden.join("logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(checkpoint).unwrap());
    let vocab = checkpoint.config().vocab_size;

    let mut compared = 0;
    for (name, tensor) in file.iter() {
        let (precision, sequence) = name.split_once('/').unwrap();
        let sequence: usize = sequence.parse().unwrap();
        let tokens: Vec<u32> = serde_json::from_value(record["sequences"][sequence].clone()).unwrap();
        let want: Vec<f32> =
            tensor.data().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        assert_eq!(tensor.shape(), [want.len() / vocab, vocab], "{name}");

        for (who, got) in answer(&checkpoint, precision.parse().unwrap(), &whole(&tokens)) {
            // The golden file may keep the last positions only.
            let got = &got[tokens.len() * vocab - want.len()..];
            let difference = largest_difference(got, &want);
            println!("{name}, {who}: {difference:.1e} of the range");
            assert!(difference <= TOLERANCE, "{name}, {who}: {difference:e} of the range");
            for (position, (got, want)) in got.chunks_exact(vocab).zip(want.chunks_exact(vocab)).enumerate() {
                assert_eq!(argmax(got), argmax(want), "{name}, {who}, kept position {position}");
            }
            compared += got.len();
        }
    }
    compared
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// A golden folder and the checkpoint it was made from; how many logits it keeps.
struct Golden {
    checkpoint: &'static str,
    folder: &'static str,
    logits: usize,
}

const GOLDENS: [Golden; 2] = [
    // Every feature of the architecture at random weights: all positions of sequences of 1, 17 and 45 tokens at
    // three precisions.
    Golden {
        checkpoint: "tests/golden/model/tiny_llama",
        folder: "tests/golden/model/tiny_llama",
        logits: (1 + 17 + 45) * 3 * 320,
    },
    // A trained model: the last 8 positions of two passages and a ten-shot question, by
    // `make_logits.py assets/demo/models/target demo_target --scheme int8 --scheme int4-g128
    // --prompts demo_target/prompts.json --last 8`.
    Golden {
        checkpoint: "assets/demo/models/target",
        folder: "tests/golden/model/demo_target",
        logits: 3 * 8 * 3 * 1280,
    },
];

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn cpu_pass_is_transformers() {
    for Golden { checkpoint, folder, logits } in GOLDENS {
        let compared =
            compare(&in_repository(checkpoint), &in_repository(folder), |checkpoint, precision, batch| {
                let mut model = Reference::load(checkpoint, precision, false, CACHE_TOKENS).unwrap();
                vec![("cpu".to_owned(), model.logits(batch).unwrap())]
            });
        assert_eq!(compared, logits, "{folder}");
    }
}

#[test]
fn gpu_pass_is_transformers() {
    for Golden { checkpoint, folder, logits } in GOLDENS {
        let compared =
            compare(&in_repository(checkpoint), &in_repository(folder), |checkpoint, precision, batch| {
                let logits = |gpu| {
                    let mut model = llama(gpu, checkpoint, precision, false, CACHE_TOKENS);
                    (adapters::name(gpu), model.logits(batch).unwrap().remove(0))
                };
                adapters::all().iter().map(logits).collect()
            });
        assert_eq!(compared, adapters::all().len() * logits, "{folder}");
    }
}
