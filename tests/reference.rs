//! The CPU pass: against transformers' outputs, and against itself.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and knows how small its numbers are"
)]

use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tempfile::TempDir;
use undertext::checkpoint::Checkpoint;
use undertext::engine::{Ask, Engine, Observation, Options, Task};
use undertext::error::Error;
use undertext::model::{
    Batch, Capacity, Counters, Each, Folded, Forward, Lockstep, PAGE, Phase, Place, Reference, Wanted,
};
use undertext::quant::{self, Precision, Scheme};

use crate::adapters;
use crate::support::{engine_of, llama, run_one};

/// Grouped heads, a head width that is not `d / h`, llama3 scaling, biases, untied head.
pub(crate) const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 104,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 77, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64},
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": true, "mlp_bias": false,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
}"#;
pub(crate) const VOCAB: usize = 77;

pub(crate) type Weights = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Weights for [`CONFIG`], large enough that attention and gates are far from trivial.
pub(crate) fn weights() -> Weights {
    let (d, f, queries, keys) = (48, 104, 96, 32);
    let mut list = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, d]),
        ("model.norm.weight".to_owned(), vec![d]),
        ("lm_head.weight".to_owned(), vec![VOCAB, d]),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            list.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        for (name, rows) in [("q", queries), ("k", keys), ("v", keys)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, d]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[d, queries]);
        add("mlp.gate_proj.weight", &[f, d]);
        add("mlp.up_proj.weight", &[f, d]);
        add("mlp.down_proj.weight", &[d, f]);
    }
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    list.into_iter()
        .map(|(name, shape)| {
            let centre = if name.contains("norm") { 1.0 } else { 0.0 };
            let values = (0..shape.iter().product()).map(|_| centre + 0.4 * next()).collect();
            (name, shape, values)
        })
        .collect()
}

fn write(dir: &Path, config: &str, weights: &Weights) {
    std::fs::write(dir.join("config.json"), config).unwrap();
    let views = weights.iter().map(|(name, shape, values)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// A checkpoint in a directory that lives as long as it does.
pub(crate) fn checkpoint(config: &str, weights: &Weights) -> (TempDir, Arc<Checkpoint>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, weights);
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    (dir, checkpoint)
}

fn reference(config: &str, weights: &Weights, precision: Precision, quantize_head: bool) -> Reference {
    Reference::load(&checkpoint(config, weights).1, precision, quantize_head, 1024).unwrap()
}

pub(crate) fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 31 + i * 7 + seed * 13) % VOCAB as u32).collect()
}

/// The whole text as one prefill batch, every row wanted, its pages scattered.
pub(crate) fn whole(tokens: &[u32]) -> Batch {
    let table: Vec<u32> = (0..tokens.len().div_ceil(PAGE) as u32).map(|page| (page * 7 + 3) % 64).collect();
    let place = |p: usize| {
        let slot = table[p / PAGE] * PAGE as u32 + (p % PAGE) as u32;
        Place { position: p as u32, slot, table: 0, pad: 0 }
    };
    Batch {
        phase: Phase::Prefill,
        tokens: tokens.to_vec(),
        places: (0..tokens.len()).map(place).collect(),
        wanted: (0..tokens.len() as u32).map(|row| Wanted { row, given: 0 }).collect(),
        table,
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A model that pretends to be smaller than it is.
pub(crate) struct Small<F>(pub(crate) F, pub(crate) Capacity);

impl<F: Forward> Forward for Small<F> {
    fn capacity(&self) -> Capacity {
        self.1
    }

    fn forward(&mut self, batch: &Batch) -> undertext::Result<Vec<Folded>> {
        self.0.forward(batch)
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }
}

pub(crate) fn tasks() -> Vec<Task> {
    let preamble = tokens(5, 3 * PAGE + 5);
    let mut tasks: Vec<_> = (0..6)
        .map(|i| Task {
            tokens: [preamble.clone(), tokens(i, 3 + 5 * i as usize)].concat(),
            ask: Ask::Generate { max_new: 3 + 2 * i as usize, stop: vec![2] },
        })
        .collect();
    tasks.extend((0..5).map(|i| Task::score(tokens(20 + i, 2 + 17 * i as usize))));
    // Answers after the same preamble; the first asks for part of that too.
    tasks.extend((0..4).map(|i| Task {
        tokens: [preamble.clone(), tokens(30 + i, 4 + 6 * i as usize)].concat(),
        ask: Ask::Score { from: 2 * PAGE + 9 * i as usize },
    }));
    tasks
}

#[test]
fn observations_are_bit_identical_in_any_batch() {
    let tasks = tasks();
    let weights = weights();
    let run = |capacity, share_prefixes, tasks: &[Task]| {
        let model = reference(CONFIG, &weights, Precision::Full, false);
        let options = Options { share_prefixes, ..Options::default() };
        run_one(&mut engine_of(Small(model, capacity), options), tasks, &mut |_| Ok(())).unwrap()
    };
    let roomy = Capacity { tokens: 1024, wanted: 1024, pages: 64 };
    let want = run(roomy, true, &tasks);
    let rows = want.iter().map(|observation| match observation {
        Observation::Generated { log_probs, .. } | Observation::Scored { log_probs, .. } => log_probs.len(),
    });
    assert!(rows.sum::<usize>() > 150);
    assert_eq!(run(roomy, false, &tasks), want, "without sharing");
    for (tokens, wanted, pages) in [(1, 1, 7), (7, 3, 7), (45, 33, 12)] {
        for share in [false, true] {
            let got = run(Capacity { tokens, wanted, pages }, share, &tasks);
            assert_eq!(got, want, "{tokens} tokens, {wanted} wanted, {pages} pages, sharing {share}");
        }
    }
    let reversed: Vec<_> = tasks.iter().rev().cloned().collect();
    let mut got = run(roomy, true, &reversed);
    got.reverse();
    assert_eq!(got, want, "reversed");
}

/// Prefill and decode take products in blocks of different heights, so bits may differ; sums do not.
#[test]
fn generated_tokens_score_as_they_were_generated() {
    let mut engine = engine_of(reference(CONFIG, &weights(), Precision::Full, false), Options::default());
    let prompt = tokens(1, 21);
    let ask = Ask::Generate { max_new: 30, stop: vec![] };
    let generated = run_one(&mut engine, &[Task { tokens: prompt.clone(), ask }], &mut |_| Ok(())).unwrap();
    let Observation::Generated { tokens, log_probs } = &generated[0] else { unreachable!() };
    let text = [prompt.clone(), tokens.clone()].concat();
    let scored = run_one(&mut engine, &[Task::score(text)], &mut |_| Ok(())).unwrap();
    let Observation::Scored { log_probs: again, argmax, .. } = &scored[0] else { unreachable!() };
    assert_eq!(argmax[prompt.len() - 1..], tokens[..]);
    for (a, b) in log_probs.iter().zip(&again[prompt.len() - 1..]) {
        assert!((a - b).abs() <= 1e-4, "{a} generated, {b} scored");
    }
    let counters = engine.counters();
    assert_eq!((counters.tokens_generated, counters.tokens_scored), (30, 50));
    assert_eq!(counters.weight_passes, 1 + 29 + 1);
    assert!(counters.seconds.generate > 0.0 && counters.seconds.score > 0.0 && counters.seconds.load > 0.0);
    assert!(counters.disk_bytes > 4 * 48 * 104 * 2 * 3);
}

#[test]
fn folded_answers_are_the_folded_logits() {
    let mut model = reference(CONFIG, &weights(), Precision::Full, false);
    let ids = tokens(3, 70);
    let mut batch = whole(&ids);
    for (wanted, given) in batch.wanted.iter_mut().zip(&ids[1..]) {
        wanted.given = *given;
    }
    let logits = model.logits(&batch).unwrap();
    assert_eq!(logits.len(), 70 * VOCAB);
    let folded = model.forward(&batch).unwrap();
    for ((row, folded), wanted) in logits.chunks_exact(VOCAB).zip(&folded).zip(&batch.wanted) {
        let log_sum_exp = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        // exp's argument is rounded once (an ulp of the range, 2^5), its value and the result once each.
        assert!((f64::from(folded.log_sum_exp) - log_sum_exp).abs() <= 64.0 * f64::from(f32::EPSILON));
        assert_eq!(folded.given_logit, row[wanted.given as usize]);
        assert_eq!(folded.max_logit, row[folded.argmax as usize]);
        assert!(row.iter().all(|logit| *logit <= folded.max_logit));
    }
}

/// Quantizing is what the codec does to the matrices of the layers, and to nothing else.
#[test]
fn a_quantized_arm_is_the_full_one_on_decoded_weights() {
    let batch = whole(&tokens(4, 40));
    let plain = reference(CONFIG, &weights(), Precision::Full, false).logits(&batch).unwrap();
    for scheme in [Scheme::Int8, Scheme::Int4 { group: 32 }, Scheme::Nf4B64] {
        for quantize_head in [false, true] {
            let mut decoded = weights();
            for (name, shape, values) in &mut decoded {
                if name.ends_with("proj.weight") || (quantize_head && name == "lm_head.weight") {
                    *values = quant::decode(&quant::encode(scheme, values, shape[0], shape[1]));
                }
            }
            let precision = Precision::nearest(scheme);
            let got = reference(CONFIG, &weights(), precision, quantize_head).logits(&batch).unwrap();
            let want = reference(CONFIG, &decoded, Precision::Full, false).logits(&batch).unwrap();
            assert_eq!(bits(&got), bits(&want), "{scheme}, head {quantize_head}");
            assert_ne!(bits(&got), bits(&plain), "{scheme}, head {quantize_head}");
        }
    }
}

/// A tied head is the embedding; quantized, it is a copy, and the embedding's rows stay as stored.
#[test]
fn a_tied_head_is_quantized_apart_from_the_embedding() {
    let tied = CONFIG.replace(r#""tie_word_embeddings": false"#, r#""tie_word_embeddings": true"#);
    let mut own = weights();
    let embedding = own[0].2.clone();
    own[2].2.clone_from(&embedding);
    let batch = whole(&tokens(6, 33));
    let logits = |config: &str, weights: &Weights, precision, head| {
        bits(&reference(config, weights, precision, head).logits(&batch).unwrap())
    };
    let without: Weights = own.iter().filter(|(name, ..)| name != "lm_head.weight").cloned().collect();
    for precision in [Precision::Full, Precision::nearest(Scheme::Int8)] {
        for head in [false, true] {
            assert_eq!(logits(&tied, &without, precision, head), logits(CONFIG, &own, precision, head));
        }
    }
    let int8 = Precision::nearest(Scheme::Int8);
    assert_ne!(logits(&tied, &without, int8, false), logits(&tied, &without, int8, true));
}

#[test]
fn biases_are_used_where_they_are() {
    let batch = whole(&tokens(7, 20));
    let logits =
        |weights: &Weights| reference(CONFIG, weights, Precision::Full, false).logits(&batch).unwrap();
    let plain = logits(&weights());
    // An output bias of zeros changes nothing, another one does.
    let mut with_o = weights();
    with_o.push(("model.layers.1.self_attn.o_proj.bias".to_owned(), vec![48], vec![0.0; 48]));
    assert_eq!(logits(&with_o), plain);
    with_o.last_mut().unwrap().2[5] = 1.0;
    assert_ne!(logits(&with_o), plain);
    for name in ["q", "v"] {
        let mut changed = weights();
        let bias = changed
            .iter_mut()
            .find(|(tensor, ..)| tensor.ends_with(&format!("0.self_attn.{name}_proj.bias")));
        bias.unwrap().2[3] += 0.5;
        assert_ne!(logits(&changed), plain, "{name}");
    }
}

/// A cache of f16 changes logits by what rounding keys and values can, and nothing else about the pass.
#[test]
fn keys_and_values_are_kept_in_f16_if_asked() {
    let ids = tokens(8, 60);
    let load = |kv_f16| reference(CONFIG, &weights(), Precision::Full, false).with_kv_f16(kv_f16);
    let plain = load(false).logits(&whole(&ids)).unwrap();
    let rounded = load(true).logits(&whole(&ids)).unwrap();
    assert_ne!(bits(&plain), bits(&rounded));
    let range = plain.iter().fold(0.0_f32, |range, logit| range.max(logit.abs()));
    for (a, b) in plain.iter().zip(&rounded) {
        // A unit of f16 is 2^-11; two layers of peaky attention make a few dozen of it.
        assert!((a - b).abs() <= range * 32.0 / 2048.0, "{a} in f32, {b} in f16");
    }
    // The first part once in the cache, the rest continues it bit for bit.
    let (mut model, mut first, mut rest) = (load(true), whole(&ids), whole(&ids));
    first.tokens.truncate(23);
    first.places.truncate(23);
    first.wanted.clear();
    rest.tokens.drain(..23);
    rest.places.drain(..23);
    rest.wanted.truncate(37);
    assert!(model.logits(&first).unwrap().is_empty());
    assert_eq!(bits(&model.logits(&rest).unwrap()), bits(&rounded[23 * VOCAB..]));
}

#[test]
fn a_batch_does_not_depend_on_the_threads() {
    let batch = whole(&tokens(9, 75));
    for precision in [Precision::Full, Precision::nearest(Scheme::Int4 { group: 32 })] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut model = reference(CONFIG, &weights(), precision, false);
                (bits(&model.logits(&batch).unwrap()), model.forward(&batch).unwrap())
            })
        };
        assert_eq!(run(1), run(3), "{precision}");
    }
}

#[test]
fn missing_tensors_are_named() {
    for missing in [
        "lm_head.weight",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
    ] {
        let weights: Weights = weights().into_iter().filter(|(name, ..)| name != missing).collect();
        let (_dir, checkpoint) = checkpoint(CONFIG, &weights);
        let error = Reference::load(&checkpoint, Precision::Full, false, 64).unwrap_err();
        assert!(matches!(&error, Error::TensorMissing { tensor, .. } if tensor == missing), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
}

#[test]
fn what_is_beyond_vocabulary_or_cache_is_an_error() {
    let mut model = reference(CONFIG, &weights(), Precision::Full, false);
    let mut batch = whole(&[1, 2, 77]);
    assert!(matches!(model.logits(&batch), Err(Error::TokenId { id: 77, vocab: VOCAB, .. })));
    batch = whole(&[1, 2, 3]);
    batch.wanted[1].given = 99;
    assert!(matches!(model.forward(&batch), Err(Error::TokenId { id: 99, .. })));
    batch = whole(&[1, 2, 3]);
    batch.places[2].slot = 1024;
    assert!(matches!(model.forward(&batch), Err(Error::Shape { got: 1024, .. })));
    assert_eq!(model.counters().weight_passes, 0);
}

/// Greedy continuations by transformers in f32; see the golden file's script.
#[test]
#[ignore = "needs SmolLM2-135M-Instruct as a checkpoint directory: UNDERTEXT_SMOLLM2=DIR"]
fn smollm2_continues_as_in_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2/greedy.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let dir = std::env::var("UNDERTEXT_SMOLLM2").expect("UNDERTEXT_SMOLLM2 names the checkpoint");
    let checkpoint = Arc::new(Checkpoint::open(dir.as_ref()).unwrap());
    let cases = golden["cases"].as_array().unwrap();
    let task = |case: &serde_json::Value| Task {
        tokens: ids(&case["prompt_ids"]),
        ask: Ask::Generate { max_new: ids(&case["token_ids"]).len(), stop: vec![] },
    };
    let tasks: Vec<_> = cases.iter().map(task).collect();
    let check = |device: &str, model: Box<dyn Lockstep>| {
        let mut engine = Engine::new(vec!["smollm2".to_owned()], model, Options::default());
        let observations = run_one(&mut engine, &tasks, &mut |_| Ok(())).unwrap();
        for (case, observation) in cases.iter().zip(&observations) {
            let Observation::Generated { tokens, .. } = observation else { unreachable!() };
            let want = ids(&case["token_ids"]);
            let differs = tokens.iter().zip(&want).position(|(got, want)| got != want);
            let margin = &case["margins"][differs.unwrap_or(0)];
            assert_eq!(differs, None, "{device}, {}: margin {margin}", case["prompt"]);
        }
        println!("{device}: {:?}", engine.counters());
    };
    let cpu = Reference::load(&checkpoint, Precision::Full, false, 2048).unwrap();
    check("cpu", Box::new(Each(vec![cpu])));
    for gpu in adapters::all() {
        let model = llama(gpu, &checkpoint, Precision::Full, false, 2048);
        check(&adapters::name(gpu), Box::new(model));
    }
}
