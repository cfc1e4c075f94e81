//! Many arms in lockstep, resident and streamed, against each arm alone; and how memory is planned.

use std::sync::Arc;

use tempfile::TempDir;
use undertext::Error;
use undertext::checkpoint::Checkpoint;
use undertext::engine::{Ask, Budget, Engine, Given, MemoryPlan, Needs, Observation, Options, Task};
use undertext::gpu::{DeviceChoice, Gpu, Tuning};
use undertext::kernels::{Finish, KvFormat, MatOperands, Matvec, Packer, Stored};
use undertext::model::{Layout, Llama, Lockstep, Pass, Residence, Source};
use undertext::quant::{Precision, Scheme};

use crate::adapters;
use crate::reference::{CONFIG, Weights, checkpoint, tasks, tokens, weights, whole};
use crate::support::{SmallRoom, layout, llama, observe_all, source, streamed};

const INT8: Precision = Precision::nearest(Scheme::Int8);
const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 32 });

/// What plans are made with here.
fn given(halvings: u32) -> Given {
    Given { quantize_head: false, kv: KvFormat::F32, halvings }
}

/// A checkpoint whose weights differ from [`weights`] in one tensor.
fn edited(tensor: &str) -> Weights {
    let mut weights = weights();
    let (_, _, values) = weights.iter_mut().find(|(name, ..)| name == tensor).unwrap();
    values.iter_mut().step_by(3).for_each(|value| *value *= 1.5);
    weights
}

/// Two checkpoints that differ in one matrix of the second layer, and one that differs in its head.
fn family() -> Vec<(TempDir, Arc<Checkpoint>)> {
    let edits = ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"];
    let mut family = vec![checkpoint(CONFIG, &weights())];
    family.extend(edits.map(|tensor| checkpoint(CONFIG, &edited(tensor))));
    family
}

fn sources(family: &[(TempDir, Arc<Checkpoint>)]) -> Vec<Source> {
    let precisions = [Precision::Full, INT8, INT4];
    family.iter().flat_map(|(_, checkpoint)| precisions.map(|p| source(checkpoint, p))).collect()
}

fn alone(gpu: &Arc<Gpu>, sources: &[Source]) -> Vec<Vec<Observation>> {
    let arm = |source: &Source| {
        let model = llama(gpu, &source.checkpoint, source.precision, false, 1024);
        observe_all(model, Options::default(), &tasks()).remove(0)
    };
    sources.iter().map(arm).collect()
}

#[test]
fn arms_in_lockstep_answer_as_each_alone() {
    let family = family();
    let sources = sources(&family);
    for gpu in adapters::all() {
        let want = alone(gpu, &sources);
        let told = |layout: Layout| {
            let model = Llama::new(gpu, &sources, false, layout).unwrap();
            observe_all(model, Options::default(), &tasks())
        };
        let name = adapters::name(gpu);
        assert!(want[0] != want[3] && want[0] != want[6] && want[0] != want[2], "{name}: the arms differ");
        assert!(told(layout(1024)) == want, "{name}: resident");
        assert!(told(streamed(true, false, 1024)) == want, "{name}: streamed, two blocks at a time");
        assert!(told(streamed(false, true, 512)) == want, "{name}: streamed, one block, streams on the host");

        // Other batches, other room, no sharing, one task at a time.
        let small = |tokens, wanted, pages, layout| {
            let model = Llama::new(gpu, &sources, false, layout).unwrap();
            let options = Options { share_prefixes: pages % 2 == 0, ..Options::default() };
            observe_all(SmallRoom::new(model, tokens, wanted, pages), options, &tasks())
        };
        assert!(small(7, 3, 7, layout(1024)) == want, "{name}: small batches");
        assert!(small(45, 33, 12, streamed(true, false, 1024)) == want, "{name}: small batches, streamed");
        let one = Options { one_at_a_time: true, ..Options::default() };
        let model = Llama::new(gpu, &sources, false, layout(1024)).unwrap();
        assert!(observe_all(model, one, &tasks()) == want, "{name}: one at a time");
    }
}

#[test]
fn every_tensor_is_read_once_and_what_is_alike_is_held_once() {
    let Some(gpu) = adapters::all().first() else { return };
    let open = || Arc::new(Gpu::open(&DeviceChoice::Index(gpu.info().index.unwrap())).unwrap());
    let family = family();
    let all = sources(&family);
    let stored = 4 * weights().iter().map(|(_, _, values)| values.len() as u64).sum::<u64>();
    let batches = [whole(&tokens(1, 40))];
    let pass = |sources: &[Source], layout: Layout, times: u64| {
        let mut model = Llama::new(&open(), sources, false, layout).unwrap();
        let answers: Vec<_> = (0..times).map(|_| model.run(Pass::Score(&batches)).unwrap()).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        (model.counters(), answers.into_iter().next().unwrap())
    };
    let (three, _) = pass(&all, layout(1024), 2);
    assert_eq!(three.disk_bytes, 3 * stored, "three files, once, however many arms and passes");
    let (first, _) = pass(&all[..3], layout(1024), 2);
    // Of the other two checkpoints a matrix each is their own.
    let embedding = 4 * 77 * 48;
    let own = 4 * (104 * 48 + 77 * 48);
    let activations = three.upload_bytes - first.upload_bytes - own;
    assert!(activations < 3 * embedding, "{activations} bytes more than the two matrices");
    assert_eq!(three.weight_passes, 2);

    // Streamed, every pass reads everything once more; what is known to be alike is read once for all.
    let (once, answers) = pass(&all, streamed(true, false, 1024), 1);
    assert_eq!(once.disk_bytes, 3 * stored);
    let (twice, again) = pass(&all, streamed(true, false, 1024), 2);
    assert!(answers == again);
    let more = twice.disk_bytes - once.disk_bytes;
    // The embedding stays on the host.
    let body = stored - embedding;
    assert_eq!(more, body + own, "one whole body and two matrices");
}

/// Arms that are the same up to a layer are computed once up to there.
#[test]
fn arms_fork_where_their_weights_differ() {
    let Some(gpu) = adapters::all().first() else { return };
    let index = gpu.info().index.unwrap();
    let family = family();
    let batches = [whole(&tokens(1, 40))];
    let count = |sources: &[Source]| {
        let gpu = Arc::new(Gpu::open(&DeviceChoice::Index(index)).unwrap());
        let mut model = Llama::new(&gpu, sources, false, layout(1024)).unwrap();
        model.run(Pass::Score(&batches)).unwrap();
        let before = model.counters().dispatches;
        model.run(Pass::Score(&batches)).unwrap();
        model.counters().dispatches - before
    };
    // A machine that has other things to do makes its device look slow, and launches are cut: the fewest of some tries, each
    // on a device that nothing is known of, as soon as they were seen twice.
    let launches = |sources: &[Source]| {
        let mut fewest = count(sources);
        for _ in 0..6 {
            let again = count(sources);
            if again == fewest {
                break;
            }
            fewest = fewest.min(again);
        }
        fewest
    };
    let full = |index: usize| source(&family[index].1, Precision::Full);
    let one = launches(&[full(0)]);
    // Its gate is shared, its up is not: they do not lie together.
    let feed_forward = 5;
    let head = 3;
    assert_eq!(launches(&[full(0), full(0)]), one, "the same twice");
    assert_eq!(launches(&[full(0), full(1)]), one + feed_forward + head, "from the last half layer on");
    assert_eq!(launches(&[full(0), full(2)]), one + head, "in the head alone");
    assert_eq!(launches(&[full(0), full(1), full(2)]), one + feed_forward + 2 * head);
    let int8 = source(&family[0].1, INT8);
    // Which of them lie together depends on the scheme.
    let alone = launches(&[source(&family[0].1, INT8)]);
    assert_eq!(launches(&[full(0), int8]), one + alone, "from the first block on");
}

#[test]
fn arms_of_different_architectures_are_refused() {
    let Some(gpu) = adapters::all().first() else { return };
    let (_a, first) = checkpoint(CONFIG, &weights());
    let (_b, other) =
        checkpoint(&CONFIG.replace("\"rms_norm_eps\": 1e-5", "\"rms_norm_eps\": 1e-6"), &weights());
    let arms = [source(&first, Precision::Full), source(&other, Precision::Full)];
    let error = Llama::new(gpu, &arms, false, layout(1024)).unwrap_err();
    assert!(matches!(error, Error::CheckpointsDiffer { .. }), "{error}");
    // A plan runs them one after the other.
    let budget = Budget { bytes: 1 << 30, source: "a test".to_owned(), binding: 128 << 20 };
    let plans = MemoryPlan::choose(&arms, given(0), &Needs::of(&tasks()), &budget).unwrap();
    assert_eq!(plans.iter().map(|plan| plan.arms.clone()).collect::<Vec<_>>(), [0..1, 1..2]);
}

/// As `--vram` says: resident where that fits, streamed where not, refused where nothing fits; what is held stays below.
#[test]
fn plans_keep_their_budget_and_their_word() {
    let family = family();
    let sources = sources(&family);
    let tasks = tasks();
    let needs = Needs::of(&tasks);
    let plan = |bytes: u64, halvings| {
        let budget = Budget { bytes, source: "a test".to_owned(), binding: 128 << 20 };
        MemoryPlan::choose(&sources, given(halvings), &needs, &budget)
    };
    let roomy = plan(1 << 30, 0).unwrap();
    assert_eq!((roomy.len(), roomy[0].arms.clone()), (1, 0..9));
    assert_eq!(roomy[0].layout.residence, Residence::Resident);
    let halved = plan(1 << 30, 1).unwrap();
    assert!(halved[0].layout.tokens < 1024 && halved[0].layout.tokens <= roomy[0].layout.tokens);
    let error = plan(1 << 20, 0).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("a test"), "{error}");

    // The smallest budget that is enough.
    let (mut low, mut least) = (1 << 20, 64 << 20);
    while least - low > 1 {
        let middle = u64::midpoint(low, least);
        if plan(middle, 0).is_ok() { least = middle } else { low = middle }
    }
    let mut residences = Vec::new();
    for gpu in adapters::all() {
        let want = alone(gpu, &sources);
        for bytes in [64 << 20, least + 400_000, least] {
            let mut got = Vec::new();
            for plan in plan(bytes, 0).unwrap() {
                assert!(plan.peak <= bytes, "{} of {bytes}", plan.peak);
                let gpu = Gpu::open(&DeviceChoice::Index(gpu.info().index.unwrap())).unwrap();
                let gpu = Arc::new(gpu.with_watched_memory());
                gpu.limit_uploads(plan.uploads);
                residences.push(plan.layout.residence);
                let arms = &sources[plan.arms.clone()];
                let model = Llama::new(&gpu, arms, false, plan.layout).unwrap();
                let names = plan.arms.clone().map(|arm| arm.to_string()).collect();
                let mut engine = Engine::new(names, model, Options::default());
                got.extend(engine.run(&tasks, &mut |_| Ok(())).unwrap().into_iter().map(Result::unwrap));
                let counters = engine.counters();
                let held = counters.peak_device_bytes.max(counters.peak_allocated_bytes);
                assert!(held > 0 && held <= plan.peak, "{held} held, {} planned", plan.peak);
                // Stop tokens may end a run early; nothing makes it longer.
                assert!(counters.weight_passes <= plan.predicted.passes, "{:?} {counters:?}", plan.predicted);
                assert!(counters.disk_bytes <= plan.predicted.disk_bytes + 4 * 77 * 48 * 3);
            }
            assert!(got == want, "{}: {bytes} bytes", adapters::name(gpu));
        }
    }
    if !adapters::all().is_empty() {
        assert!(residences.contains(&Residence::Resident));
        assert!(residences.iter().any(|residence| *residence != Residence::Resident), "{residences:?}");
    }
}

/// A matrix of more than 128 MiB on a device that binds no more.
#[test]
fn a_matrix_larger_than_a_binding_lies_in_parts() {
    let (n, k) = (16_500, 4096);
    let value = |i: usize| half::f16::from_f32(((i * 7919) % 509) as f32 / 254.0 - 1.0);
    let weights: Vec<half::f16> = (0..n * k).map(value).collect();
    let x: Vec<f32> = (0..k).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
    let stored = Stored { name: "w", dtype: Scheme::F16, bytes: bytemuck::cast_slice(&weights), n, k };
    for gpu in adapters::all() {
        let Ok(gpu) = Gpu::open_with_floor_limits(&DeviceChoice::Index(gpu.info().index.unwrap())) else {
            continue;
        };
        assert!(2 * n as u64 * k as u64 > gpu.max_binding_bytes(), "it must not fit one binding");
        let matrices = Packer::default().pack(&gpu, &[Scheme::F16, Scheme::Int8], stored).unwrap();
        assert_eq!(matrices.iter().map(|matrix| matrix.parts.len()).collect::<Vec<_>>(), [2, 1]);
        let edge = matrices[0].parts[1].rows.start;
        let x_buffer = gpu.upload("x", &x).unwrap();
        let y = gpu.alloc("y", 4 * n as u64).unwrap();
        for matrix in &matrices {
            let mut commands = undertext::gpu::Commands::new();
            let operands = MatOperands {
                x: &x_buffer,
                bias: None,
                y: &y,
                t: 1,
                first_row: 0,
                n,
                stride: n,
                first_column: 0,
            };
            let matvec = Matvec::tuned(&gpu, matrix, n, Finish::default()).unwrap();
            matvec.record(&mut commands, matrix, operands);
            commands.submit(&gpu).unwrap();
            let y: Vec<f32> = gpu.read(&y, n).unwrap();
            for row in [0, edge - 1, edge, n - 1] {
                let products = weights[row * k..][..k].iter().zip(&x);
                let want: f64 = products.clone().map(|(w, x)| f64::from(w.to_f32()) * f64::from(*x)).sum();
                let size: f64 = products.map(|(w, x)| f64::from(w.to_f32() * x).abs()).sum();
                // int8 is off by half a step of 1/127 a weight at most; f32 sums by far less.
                let bound = if matrix.scheme == Scheme::F16 { 1e-5 * size } else { 8.0 * k as f64 / 254.0 };
                let got = f64::from(y[row]);
                assert!((got - want).abs() <= bound, "{} row {row}: {got} for {want}", matrix.scheme);
            }
        }
    }
}

#[test]
fn who_norms_before_a_product_does_not_show() {
    let checkpoint = &family()[0].1;
    for index in 0..adapters::all().len() {
        let folder = TempDir::new().unwrap();
        let kept = folder.path().join("kernels.json");
        let run = || {
            let gpu = Gpu::open(&DeviceChoice::Index(index)).unwrap();
            let gpu = Arc::new(gpu.with_tuning(Tuning::Afresh, None));
            gpu.keep_choices(&kept);
            let model = llama(&gpu, checkpoint, INT4, false, 1024);
            let before = gpu.dispatches();
            let answers = observe_all(model, Options::default(), &tasks());
            let chosen: Vec<_> = gpu.chosen_kernels().into_iter().collect();
            (answers, chosen, gpu.dispatches() - before)
        };
        run();
        let text = std::fs::read_to_string(&kept).unwrap();
        let as_chosen = |name: &str| {
            std::fs::write(&kept, text.replace("\"apart\"", name).replace("\"within\"", name)).unwrap();
            run()
        };
        let ((apart, _, launches), (within, chosen, fewer)) =
            (as_chosen("\"apart\""), as_chosen("\"within\""));
        let norms = chosen.iter().filter(|(class, _)| class.starts_with("norm/"));
        assert!(norms.clone().count() > 0 && norms.clone().all(|(_, name)| name == "within"), "{chosen:?}");
        assert!(fewer < launches, "{fewer} launches, {launches} with the norm apart");
        assert!(apart == within, "{}", adapters::name(&adapters::all()[index]));
    }
}

/// Run it under `/usr/bin/time -v` to see what the host holds: a software adapter's device memory is part of that.
#[test]
#[ignore = "needs the checkpoint that assets/wide/make.py writes: UNDERTEXT_WIDE=DIR"]
fn wide_checkpoint_scores_in_a_gigabyte() {
    let dir = std::env::var("UNDERTEXT_WIDE").expect("UNDERTEXT_WIDE names the checkpoint");
    let checkpoint = Arc::new(Checkpoint::open(dir.as_ref()).unwrap());
    let arms = [Precision::Full, INT4].map(|precision| source(&checkpoint, precision));
    let ids: Vec<u32> = (0..257).map(|i| (i * i * 31 + 7 * i + 3) % 32_000).collect();
    let tasks = [Task::score(ids)];
    let gpu = Gpu::open(&DeviceChoice::Best).unwrap().with_watched_memory();
    let gpu = Arc::new(gpu);
    let budget = Budget { bytes: 1 << 30, source: "a test".to_owned(), binding: gpu.max_binding_bytes() };
    for plan in MemoryPlan::choose(&arms, given(0), &Needs::of(&tasks), &budget).unwrap() {
        println!("{plan:#?}");
        gpu.limit_uploads(plan.uploads);
        let model = Llama::new(&gpu, &arms[plan.arms.clone()], false, plan.layout).unwrap();
        let names = plan.arms.clone().map(|arm| arm.to_string()).collect();
        let mut engine = Engine::new(names, model, Options::default());
        for observations in engine.run(&tasks, &mut |_| Ok(())).unwrap() {
            let observations = observations.unwrap();
            let Observation::Scored { log_probs, .. } = &observations[0] else { unreachable!() };
            let mean = log_probs.iter().sum::<f32>() / 256.0;
            // Random weights: about as likely as any of the vocabulary.
            assert_eq!(log_probs.len(), 256);
            assert!((-12.0..-9.0).contains(&mean), "{mean}");
            println!("mean log p {mean}");
        }
        println!("{:#?}", engine.counters());
        let counters = engine.counters();
        assert!(counters.peak_device_bytes.max(counters.peak_allocated_bytes) <= budget.bytes);
    }
}

#[test]
#[ignore = "needs SmolLM2-135M-Instruct as a checkpoint directory: UNDERTEXT_SMOLLM2=DIR"]
fn smollm2_streamed_through_96_mib_answers_as_resident() {
    let dir = std::env::var("UNDERTEXT_SMOLLM2").expect("UNDERTEXT_SMOLLM2 names the checkpoint");
    let checkpoint = Arc::new(Checkpoint::open(dir.as_ref()).unwrap());
    let arms = [source(&checkpoint, Precision::Full)];
    let ids = |seed: u32, count: u32| (0..count).map(|i| (i * i * 31 + 7 * i + seed) % 49_152).collect();
    let generate = Ask::Generate { max_new: 4, stop: vec![] };
    let mut tasks: Vec<Task> = [70, 130].map(|n| Task::score(ids(n, n))).into();
    tasks.extend([9, 33].map(|n| Task { tokens: ids(n, n), ask: generate.clone() }));
    let mut answers = Vec::new();
    for bytes in [1 << 30, 96 << 20] {
        let gpu = Arc::new(Gpu::open(&DeviceChoice::Best).unwrap().with_watched_memory());
        let budget = Budget { bytes, source: "a test".to_owned(), binding: gpu.max_binding_bytes() };
        let given = Given { kv: KvFormat::F16, ..given(0) };
        let plans = MemoryPlan::choose(&arms, given, &Needs::of(&tasks), &budget).unwrap();
        let [plan] = plans.as_slice() else { panic!("{plans:?}") };
        gpu.limit_uploads(plan.uploads);
        let model = Llama::new(&gpu, &arms, false, plan.layout).unwrap();
        let mut engine = Engine::new(vec!["arm".to_owned()], model, Options::default());
        answers.push(engine.run(&tasks, &mut |_| Ok(())).unwrap().remove(0).unwrap());
        let counters = engine.counters();
        println!("{:?}: {counters:?}", plan.layout.residence);
        assert!(counters.peak_device_bytes.max(counters.peak_allocated_bytes) <= bytes);
        assert_eq!(plan.layout.residence == Residence::Resident, bytes > 96 << 20);
    }
    assert!(answers[0] == answers[1]);
}
