//! Whole passes: a prompt, one sequence's new tokens, many sequences' new tokens.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tempfile::TempDir;
use undertext::checkpoint::{Checkpoint, Config};
use undertext::engine::{Ask, Engine, Observation, Options, Task};
use undertext::gpu::Gpu;
use undertext::kernels::{FOLD_CHUNK, KvFormat, Matrix};
use undertext::model::{Layout, Llama, PAGE, Residence, Share, Source};
use undertext::quant::{Precision, Scheme};

use crate::roofline::{Load, Roofline, SAMPLES, Samples, Table, is_measuring};

/// Tokens of the prompt that is timed.
const PROMPT: usize = 256;
/// Tokens of the prompts whose continuations are timed.
const SHORT_PROMPT: usize = 16;
/// New tokens that are timed.
const NEW: usize = 16;
/// Sequences that are continued, one alone and many together.
const SEQUENCES: [usize; 2] = [1, 16];

const PRECISIONS: [Precision; 3] =
    [Precision::Full, Precision::nearest(Scheme::Int8), Precision::nearest(Scheme::Int4 { group: 128 })];

/// A model at a precision, and how long it takes: the one place that knows how a model is run.
struct Subject {
    engine: Engine<Llama>,
    config: Config,
}

impl Subject {
    fn load(gpu: &Arc<Gpu>, directory: &Path, precision: Precision) -> Self {
        let checkpoint = Arc::new(Checkpoint::open(directory).expect("a checkpoint"));
        let config = checkpoint.config().clone();
        let pages = |sequences: usize, tokens: usize| sequences * tokens.div_ceil(PAGE);
        let pages = pages(1, PROMPT + 1).max(pages(SEQUENCES[1], SHORT_PROMPT + NEW + 1));
        let share = Share { batches: 1, pages };
        let layout = Layout {
            tokens: 1024,
            score: share,
            generate: share,
            residence: Residence::Resident,
            kv: KvFormat::F16,
            spill: false,
            head_rows: config.vocab_size.next_multiple_of(FOLD_CHUNK),
        };
        let sources = [Source::new(&checkpoint, precision)];
        let llama = Llama::new(gpu, &sources, false, layout).expect("a device that holds it");
        let engine = Engine::new(vec!["bench".to_owned()], llama, Options::default());
        let mut subject = Self { engine, config };
        // The first pass reads the weights and chooses kernels.
        subject.generate(1, SHORT_PROMPT, 2);
        subject
    }

    /// Wall time of continuing `sequences` prompts of `prompt` tokens, all different from the first token on, by `new`
    /// tokens each.
    fn generate(&mut self, sequences: usize, prompt: usize, new: usize) -> Duration {
        let vocab = self.config.vocab_size;
        let id = |sequence: usize, place: usize| {
            u32::try_from((1 + 31 * sequence + 97 * place) % vocab).expect("a token id")
        };
        let task = |sequence| Task {
            tokens: (0..prompt).map(|place| id(sequence, place)).collect(),
            ask: Ask::Generate { max_new: new, stop: Vec::new() },
        };
        let tasks: Vec<_> = (0..sequences).map(task).collect();
        let start = Instant::now();
        let arms = self.engine.run(&tasks, &mut |_| Ok(())).expect("a working device");
        let elapsed = start.elapsed();
        for observation in arms.into_iter().flat_map(|arm| arm.expect("finite logits")) {
            let Observation::Generated { tokens, .. } = observation else {
                unreachable!("nothing is scored")
            };
            assert_eq!(tokens.len(), new);
        }
        elapsed
    }
}

/// Benches a model at every precision: the one that `UNDERTEXT_BENCH_MODEL` names, or a synthetic one.
pub(crate) fn bench(criterion: &mut Criterion, gpu: &Arc<Gpu>, roofline: &Roofline) {
    let directory = Directory::find();
    let path = directory.path();
    let mut group = criterion.benchmark_group("model");
    group.sample_size(SAMPLES).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(2));
    let mut table = Table::new(roofline, "model");
    for precision in PRECISIONS {
        // Loaded by the first bench that no filter leaves out.
        let subject = RefCell::new(None);
        let timed = |run: &mut dyn FnMut(&mut Subject) -> Duration| {
            run(subject.borrow_mut().get_or_insert_with(|| Subject::load(gpu, path, precision)))
        };
        let config = Checkpoint::open(path).expect("a checkpoint").config().clone();
        let weights = Weights::of(&config, precision);

        let label = format!("{}/prefill t={PROMPT}", precision);
        let samples = Samples::default();
        group.throughput(Throughput::Elements(PROMPT as u64));
        group.bench_function(BenchmarkId::from_parameter(&label), |bencher| {
            bencher.iter_custom(|iterations| {
                let elapsed =
                    (0..iterations).map(|_| timed(&mut |subject| subject.generate(1, PROMPT, 1))).sum();
                samples.note(elapsed, iterations)
            });
        });
        table.add(&label, weights.load(PROMPT, 1, 1), Some((PROMPT as f64, "tokens/s")), &samples);

        for sequences in SEQUENCES {
            let label = format!("{}/decode s={sequences}", precision);
            let samples = Samples::default();
            let tokens = sequences * NEW;
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_function(BenchmarkId::from_parameter(&label), |bencher| {
                bencher.iter_custom(|iterations| {
                    // The first new token is the prompt's: what the others take is the difference.
                    let decode = |subject: &mut Subject| {
                        let all = subject.generate(sequences, SHORT_PROMPT, NEW + 1);
                        all.saturating_sub(subject.generate(sequences, SHORT_PROMPT, 1))
                    };
                    let elapsed: Duration = (0..iterations).map(|_| timed(&mut { decode })).sum();
                    samples.note(elapsed.max(Duration::from_nanos(1)), iterations)
                });
            });
            let load = weights.load(tokens, tokens, NEW);
            table.add(&label, load, Some((tokens as f64, "tokens/s")), &samples);
        }
    }
    group.finish();
    table.print();
    if is_measuring() {
        eprintln!("model: {}", directory.describe());
    }
}

/// What a pass has to read and multiply, without the attention's own share.
#[derive(Clone, Copy, Debug)]
struct Weights {
    /// Weights of the layers and of the head.
    layers: usize,
    head: usize,
    /// Bytes of both.
    bytes: u64,
}

impl Weights {
    fn of(config: &Config, precision: Precision) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let shapes = [(queries, d), (keys, d), (keys, d), (d, queries), (f, d), (f, d), (d, f)];
        // As f16: for a roofline, near enough to what a checkpoint may store.
        let scheme = precision.scheme(Scheme::F16);
        let layer_bytes: u64 = shapes.iter().map(|(n, k)| Matrix::bytes_of(scheme, *n, *k)).sum();
        Self {
            layers: config.layers * shapes.iter().map(|(n, k)| n * k).sum::<usize>(),
            head: config.vocab_size * d,
            bytes: config.layers as u64 * layer_bytes + Matrix::bytes_of(Scheme::F16, config.vocab_size, d),
        }
    }

    /// Of `tokens` through the layers and `rows` through the head, reading all weights `passes` times.
    fn load(self, tokens: usize, rows: usize, passes: usize) -> Load {
        let flops = 2.0 * (tokens as f64 * self.layers as f64 + rows as f64 * self.head as f64);
        Load { flops, bytes: passes as f64 * self.bytes as f64 }
    }
}

/// Where the model is.
enum Directory {
    Given(PathBuf),
    Made(TempDir),
}

impl Directory {
    fn find() -> Self {
        match std::env::var_os("UNDERTEXT_BENCH_MODEL") {
            Some(path) => Self::Given(path.into()),
            None => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                write_model(directory.path());
                Self::Made(directory)
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Made(directory) => directory.path(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Given(path) => path.display().to_string(),
            Self::Made(_) => "random weights in SmolLM2-135M's widths, 4 layers, 4096 tokens, f16".to_owned(),
        }
    }
}

/// Writes a Llama of SmolLM2-135M's widths with random f16 weights, fewer layers and a smaller vocabulary.
fn write_model(directory: &Path) {
    let (d, f, layers, v, heads, kv, e) = (576, 1536, 4, 4096, 9, 3, 64);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": e,
        "vocab_size": v, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": 0, "torch_dtype": "float16",
    });
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![v, d]), ("model.norm.weight".to_owned(), vec![d])];
    for layer in 0..layers {
        let of_layer = [
            ("input_layernorm", vec![d]),
            ("post_attention_layernorm", vec![d]),
            ("self_attn.q_proj", vec![heads * e, d]),
            ("self_attn.k_proj", vec![kv * e, d]),
            ("self_attn.v_proj", vec![kv * e, d]),
            ("self_attn.o_proj", vec![d, heads * e]),
            ("mlp.gate_proj", vec![f, d]),
            ("mlp.up_proj", vec![f, d]),
            ("mlp.down_proj", vec![d, f]),
        ];
        let name = |module| format!("model.layers.{layer}.{module}.weight");
        shapes.extend(of_layer.map(|(module, shape)| (name(module), shape)));
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensors: Vec<_> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let centre = if name.contains("norm") { 1.0 } else { 0.0 };
            let count = shape.iter().product();
            let values: Vec<u8> =
                (0..count).flat_map(|_| half::f16::from_f32(centre + 0.05 * next()).to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors"))
        .expect("room for a model");
    std::fs::write(directory.join("config.json"), config.to_string()).expect("room for a config");
}
