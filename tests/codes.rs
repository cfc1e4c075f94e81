//! Codes and survival between two checkpoints: against NumPy, against PyTorch, and what must hold for any weights.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::Value;
use undertext::audit::{Codes, CodesPlan, TensorChange, compare_codes, compare_codes_on};
use undertext::gpu::{DeviceChoice, Gpu};
use undertext::kernels::{Comparer, Stored};
use undertext::quant::{Change, Scheme, change};
use undertext::report;

use crate::adapters;

/// `tests/golden/codes/change.json`; the script beside it explains the fields.
#[derive(Deserialize)]
struct Golden {
    demo: BTreeMap<String, BTreeMap<String, Figures>>,
    edges: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    name: String,
    rows: usize,
    cols: usize,
    target: String,
    unlearned: String,
    schemes: BTreeMap<String, Figures>,
}

#[derive(Deserialize)]
struct Figures {
    weights: u64,
    changed: u64,
    code_changed: u64,
    scale_changed: u64,
    value_changed: u64,
    absorbed: u64,
    zero_target: u64,
    zero_unlearned: u64,
    update: f64,
    update_from_zero: f64,
    kept: f64,
    quantized: f64,
    mean: f64,
    predicted_flips: f64,
    max: f64,
    quantiles: BTreeMap<String, f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/codes/change.json")).unwrap()
}

fn quantizing() -> Vec<Scheme> {
    Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()).collect()
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/models")
}

fn plan(unlearned: &str, schemes: Vec<Scheme>) -> CodesPlan {
    let (target, unlearned) = (models().join("target"), models().join(unlearned));
    CodesPlan { target, unlearned, schemes, quantize_head: false }
}

fn demo(unlearned: &str, schemes: Vec<Scheme>) -> Codes {
    compare_codes(plan(unlearned, schemes), &mut |_, _| Ok(())).unwrap()
}

/// Most that two orders of adding `n` f64 terms can differ, whose magnitudes add up to `magnitude`.
fn summing(n: u64, magnitude: f64) -> f64 {
    n as f64 * f64::EPSILON * magnitude
}

/// Counts exactly, sums to the rounding of their additions, quantiles to the width of a bin.
fn assert_equals(got: &Change, want: &Figures, place: &str) {
    let counts = [
        got.weights,
        got.changed,
        got.code_changed,
        got.scale_changed,
        got.value_changed,
        got.absorbed,
        got.zero_target,
        got.zero_unlearned,
        got.steps.count(),
    ];
    let wanted = [
        want.weights,
        want.changed,
        want.code_changed,
        want.scale_changed,
        want.value_changed,
        want.absorbed,
        want.zero_target,
        want.zero_unlearned,
        want.weights,
    ];
    assert_eq!(counts, wanted, "{place}");
    let weights = want.weights;
    // By Cauchy and Schwarz, the magnitudes in <a, b> add up to at most |a| |b|.
    let product = (want.update * want.quantized).sqrt();
    for (name, got, want, magnitude) in [
        ("update", got.update, want.update, want.update),
        ("update_from_zero", got.update_from_zero, want.update_from_zero, want.update),
        ("kept", got.kept, want.kept, product),
        ("quantized", got.quantized, want.quantized, want.quantized),
        ("mean", got.steps.mean().unwrap(), want.mean, want.mean),
        ("predicted", got.steps.predicted_flips().unwrap(), want.predicted_flips, want.predicted_flips),
        ("max", got.steps.max().unwrap(), want.max, 0.0),
    ] {
        // serde_json reads a decimal to within an ulp.
        let bound = summing(weights, magnitude) + f64::EPSILON * want.abs();
        assert!((got - want).abs() <= bound, "{place}: {name} is {got}, NumPy's {want}, bound {bound:e}");
    }
    for (share, &want) in &want.quantiles {
        let got = got.steps.quantile(share.parse().unwrap()).unwrap();
        // A bin's middle is within 1 / 128 of its ends.
        assert!((got - want).abs() <= want / 128.0, "{place}: quantile {share} is {got}, NumPy's {want}");
    }
}

#[test]
fn rare_groups_equal_numpy() {
    let golden = golden();
    assert!(golden.edges.iter().any(|pair| pair.name == "groups"));
    for pair in golden.edges {
        let (target, unlearned) = (floats(&pair.target), floats(&pair.unlearned));
        assert_eq!(pair.schemes.len(), quantizing().len());
        for scheme in quantizing() {
            let got = change(scheme, &target, &unlearned, pair.rows, pair.cols);
            assert_equals(&got, &pair.schemes[scheme.name()], &format!("{} {scheme}", pair.name));
        }
    }
}

#[test]
fn demo_equals_numpy() {
    let golden = golden();
    let codes = demo("npo_gdr", quantizing());
    for (index, scheme) in quantizing().into_iter().enumerate() {
        let want = &golden.demo[scheme.name()];
        let of = |wanted: &dyn Fn(&TensorChange) -> bool| codes.sum(index, wanted);
        assert_equals(&of(&|_| true), &want["total"], scheme.name());
        assert_equals(&of(&|tensor| tensor.layer == Some(2)), &want["layer 2"], scheme.name());
        assert_equals(&of(&|tensor| tensor.module == "o_proj"), &want["o_proj"], scheme.name());
    }
}

/// The demo's own record, made with PyTorch when its models were measured.
///
/// Its update is a difference rounded to f32, ours is exact. A relative error of 2^-24 in each element of the update d
/// moves <dQ, d> by at most 2^-24 |dQ| |d|, and <d, d> twice that of |d|²: together 2^-24 (norm ratio + 2 survival),
/// beside the rounding of the f64 additions.
#[test]
fn demo_survival_equals_pytorch() {
    let measured: Value =
        serde_json::from_slice(&std::fs::read(models().join("../train/measured.json")).unwrap()).unwrap();
    let schemes = [Scheme::Int8, Scheme::Int4 { group: 32 }, Scheme::Int4 { group: 128 }];
    let mut compared = 0;
    for model in ["npo_gdr", "ga_gdr", "sure", "control_fp32"] {
        let codes = demo(model, schemes.to_vec());
        for (index, scheme) in schemes.into_iter().enumerate() {
            let arms = measured["arms"].as_array().unwrap();
            let arm =
                arms.iter().find(|arm| arm["model"] == model && arm["scheme"] == scheme.name()).unwrap();
            let got = codes.sum(index, |_| true);
            let equal = arm["equal_codes"].as_f64().unwrap() * got.weights as f64;
            assert_eq!(got.weights - got.code_changed, equal.round() as u64, "{model} {scheme}");
            let (survival, norm) = (got.survival().unwrap(), got.norm_ratio().unwrap());
            let want = arm["survival"].as_f64().unwrap();
            let bound =
                (norm + 2.0 * survival) * 2.0_f64.powi(-24) + 2.0 * summing(got.weights, norm.max(1.0));
            assert!(
                (survival - want).abs() <= bound,
                "{model} {scheme}: {survival}, PyTorch's {want}, {bound:e}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
}

#[test]
fn figures_do_not_depend_on_the_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| demo("sure", quantizing()).tensors)
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

/// A small generator (xorshift64*): fixed numbers in -1..1 without a dependency.
fn noise(mut state: u64, len: usize) -> Vec<f32> {
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as u32;
        bits as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// An update far larger than the steps survives: a value moves by at most half a step, so the survival is within
/// (step of t + step of u) / 2 * sum |d| / sum d^2 of 1; a step is at most 1 / 127 here.
#[test]
fn fine_quantization_keeps_a_large_update() {
    let (rows, cols) = (64, 256);
    let (target, unlearned) = (noise(1, rows * cols), noise(2, rows * cols));
    let delta = || target.iter().zip(&unlearned).map(|(t, u)| f64::from(u - t));
    let bound = delta().map(f64::abs).sum::<f64>() / delta().map(|d| d * d).sum::<f64>() / 127.0;
    assert!(bound < 0.01);
    let change = change(Scheme::Int8, &target, &unlearned, rows, cols);
    let survival = change.survival().unwrap();
    assert!((survival - 1.0).abs() <= bound, "{survival}, {bound}");
    // |dQ| differs from |d| by at most |dQ - d|, no element of which is above 1 / 127.
    let bound = (change.weights as f64).sqrt() / 127.0 / change.update.sqrt();
    assert!((change.norm_ratio().unwrap() - 1.0).abs() <= bound);
}

#[test]
fn no_update_has_no_survival() {
    let weights = noise(3, 16 * 64);
    for scheme in quantizing() {
        let change = change(scheme, &weights, &weights, 16, 64);
        assert_eq!((change.changed, change.code_changed, change.value_changed), (0, 0, 0), "{scheme}");
        assert_eq!((change.scale_changed, change.absorbed), (0, 0), "{scheme}");
        assert_eq!((change.survival(), change.norm_ratio()), (None, None), "{scheme}");
        assert_eq!((change.absorbed_share(), change.movement_from_zero()), (None, None), "{scheme}");
        assert_eq!((change.steps.mean(), change.steps.quantile(0.99)), (Some(0.0), Some(0.0)), "{scheme}");
    }
    let nothing = Change::default();
    assert_eq!((nothing.share(0), nothing.steps.mean(), nothing.steps.quantile(0.5)), (None, None, None));
}

/// Targets at 0 and at ±1, the absmax; the update of 0.002 is inside every scheme's bin of zero (FP4's ends at 0.0026).
#[test]
fn an_update_inside_the_zero_bin_is_lost() {
    let (rows, cols) = (16, 128);
    let edge = |index: usize| index.is_multiple_of(32);
    let sign = |index: usize| if index.is_multiple_of(3) { 1.0 } else { -1.0 };
    let target: Vec<f32> =
        (0..rows * cols).map(|index| if edge(index) { sign(index) } else { 0.0 }).collect();
    let moved = |index: usize, weight: f32| if edge(index) { weight } else { 0.002 * sign(index + 1) };
    let unlearned: Vec<f32> =
        target.iter().enumerate().map(|(index, &weight)| moved(index, weight)).collect();
    for scheme in quantizing() {
        let change = change(scheme, &target, &unlearned, rows, cols);
        assert_eq!(change.survival(), Some(0.0), "{scheme}");
        assert_eq!(change.norm_ratio(), Some(0.0), "{scheme}");
        assert_eq!(change.absorbed_share(), Some(1.0), "{scheme}");
        assert_eq!(change.movement_from_zero(), Some(1.0), "{scheme}");
        assert_eq!((change.code_changed, change.scale_changed), (0, 0), "{scheme}");
        assert_eq!(change.zero_unlearned, (rows * cols - rows * 4) as u64, "{scheme}");
    }
}

/// Eight rows are whole blocks of every scheme, so their order is only the order of additions.
#[test]
fn the_order_of_row_blocks_does_not_matter() {
    let (rows, cols) = (64, 136);
    let target = noise(4, rows * cols);
    let unlearned: Vec<f32> =
        target.iter().zip(noise(5, rows * cols)).map(|(weight, noise)| weight + 0.05 * noise).collect();
    let shuffled = |weights: &[f32]| -> Vec<f32> {
        let blocks: Vec<_> = weights.chunks(8 * cols).collect();
        (0..blocks.len()).flat_map(|block| blocks[block * 5 % blocks.len()].to_vec()).collect()
    };
    for scheme in quantizing() {
        let one = change(scheme, &target, &unlearned, rows, cols);
        let two = change(scheme, &shuffled(&target), &shuffled(&unlearned), rows, cols);
        let counts = |change: &Change| {
            let flips = [change.code_changed, change.scale_changed, change.value_changed, change.absorbed];
            (flips, change.zero_target, change.zero_unlearned, change.steps.quantile(0.5), change.steps.max())
        };
        assert_eq!(counts(&one), counts(&two), "{scheme}");
        let close = |a: f64, b: f64, magnitude| (a - b).abs() <= summing(one.weights, magnitude);
        assert!(close(one.update, two.update, one.update), "{scheme}");
        assert!(close(one.quantized, two.quantized, one.quantized), "{scheme}");
        assert!(close(one.kept, two.kept, (one.update * one.quantized).sqrt()), "{scheme}");
    }
}

#[test]
fn the_text_reads_the_survival() {
    let codes = demo("npo_gdr", vec![Scheme::Int8, Scheme::Int4 { group: 128 }]);
    let text = report::codes_text(&report::codes::Codes::from(&codes), report::Style::PLAIN);
    assert!(text.contains("42 % of 786432 quantized weights changed"), "{text}");
    assert!(text.contains("100 % of the update survives int8: expect nothing to come back."), "{text}");
    let words = "7 % of the update survives int4-g128: expect the forgotten knowledge back.";
    assert!(text.contains(words), "{text}");
    // One map, of the scheme in which least survives.
    assert!(text.contains("Survival in int4-g128 by layer and module (of others"), "{text}");
    assert!(!text.contains("Survival in int8"), "{text}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let row = text.lines().map(words).find(|words| words.first().is_some_and(|word| word == "3")).unwrap();
    assert_eq!(row.len(), 9, "{text}");
    assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
}

/// The edges' bits.
fn floats(text: &str) -> Vec<f32> {
    let bits = |digits| u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    text.as_bytes().chunks(8).map(|digits| f32::from_bits(bits(digits))).collect()
}

/// Most that a device's sum may be off, relative to the host's.
const CLOSE: f64 = 1e-6;

/// Counts as the host's, the histogram's with them; sums within [`CLOSE`] of the host's, `kept` of `magnitude`.
fn assert_same(got: &Change, want: &Change, magnitude: f64, place: &str) {
    let counts = |change: &Change| {
        let flips = [change.changed, change.code_changed, change.scale_changed, change.value_changed];
        (change.weights, flips, change.absorbed, change.zero_target, change.zero_unlearned)
    };
    assert_eq!(counts(got), counts(want), "{place}");
    assert_eq!(got.steps.counts(), want.steps.counts(), "{place}");
    for (name, got, want, magnitude) in [
        ("update", got.update, want.update, want.update),
        ("update_from_zero", got.update_from_zero, want.update_from_zero, want.update_from_zero),
        ("kept", got.kept, want.kept, magnitude),
        ("quantized", got.quantized, want.quantized, want.quantized),
        ("mean", got.steps.mean().unwrap(), want.steps.mean().unwrap(), want.steps.mean().unwrap()),
        (
            "predicted",
            got.steps.predicted_flips().unwrap(),
            want.steps.predicted_flips().unwrap(),
            want.steps.predicted_flips().unwrap(),
        ),
        ("max", got.steps.max().unwrap(), want.steps.max().unwrap(), want.steps.max().unwrap()),
    ] {
        let bound = CLOSE * magnitude.abs();
        assert!((got - want).abs() <= bound, "{place}: {name} is {got}, the host's {want}, bound {bound:e}");
    }
}

/// One test at a time works on the devices: a launch of another one on a busy machine could keep wgpu's GL backend waiting
/// for longer than it does (6 s).
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares on every device and on the host; gives the largest relative difference of a sum over the whole model.
fn compare_everywhere(plan: &CodesPlan) -> f64 {
    let mut largest = 0.0_f64;
    let host = compare_codes(plan.clone(), &mut |_, _| Ok(())).unwrap();
    assert_eq!(host.host_weights, host.sum(0, |_| true).weights);
    for gpu in adapters::all() {
        let name = format!("{}: {}", adapters::name(gpu), plan.unlearned.display());
        let device = compare_codes_on(gpu, plan.clone(), &mut |_, _| Ok(())).unwrap();
        assert_eq!((&device.device, device.host_weights), (gpu.info(), 0), "{name}");
        assert_eq!(device.as_stored, host.as_stored, "{name}");
        for (index, scheme) in plan.schemes.iter().enumerate() {
            for (got, want) in device.tensors.iter().zip(&host.tensors) {
                assert_eq!((got.layer, got.module, got.shape), (want.layer, want.module, want.shape));
                let want = &want.changes[index];
                // By Cauchy and Schwarz at least the sum of the magnitudes.
                let magnitude = (want.update * want.quantized).sqrt();
                assert_same(&got.changes[index], want, magnitude, &format!("{name} {scheme} {}", got.module));
            }
            let (got, want) = (device.sum(index, |_| true), host.sum(index, |_| true));
            // Over the whole model, the sum with terms of both signs is as close to itself.
            assert_same(&got, &want, want.kept, &format!("{name} {scheme}"));
            let sums = |sum: &Change| {
                let ratios = [sum.steps.mean().unwrap(), sum.steps.predicted_flips().unwrap()];
                [sum.update, sum.update_from_zero, sum.kept, sum.quantized, ratios[0], ratios[1]]
            };
            for (got, want) in sums(&got).into_iter().zip(sums(&want)) {
                largest = largest.max((got - want).abs() / want.abs());
            }
        }
    }
    largest
}

#[test]
fn devices_find_what_the_host_finds() {
    let _turn = turn();
    for model in ["npo_gdr", "ga_gdr"] {
        let largest = compare_everywhere(&plan(model, quantizing()));
        println!("{model}: sums within {largest:.1e} of the host's");
    }
}

#[test]
fn devices_find_what_the_host_finds_in_the_head_too() {
    let _turn = turn();
    for model in ["sure", "control_fp32"] {
        let plan = CodesPlan { quantize_head: true, ..plan(model, quantizing()) };
        println!("{model}: sums within {:.1e} of the host's", compare_everywhere(&plan));
    }
}

/// A demo checkpoint with every tensor stored as `dtype`; bf16 by cutting the f32.
fn stored_as(model: &str, dtype: safetensors::Dtype) -> tempfile::TempDir {
    use safetensors::tensor::TensorView;
    let (from, to) = (models().join(model), tempfile::TempDir::new().unwrap());
    for file in std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, to.path().join(file.file_name().unwrap())).unwrap();
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let converted: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let halves = tensor.data().as_chunks().0.iter();
            let floats = halves.map(|half| half::f16::from_le_bytes(*half).to_f32().to_le_bytes());
            let keep = if dtype == safetensors::Dtype::BF16 { 2 } else { 0 };
            let bytes: Vec<u8> = floats.flat_map(|float| float.into_iter().skip(keep)).collect();
            (name, tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views = converted
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(to.path().join("model.safetensors"), bytes).unwrap();
    to
}

#[test]
fn devices_take_two_dtypes() {
    let _turn = turn();
    let wide = stored_as("npo_gdr", safetensors::Dtype::F32);
    let short = stored_as("target", safetensors::Dtype::BF16);
    let schemes = vec![Scheme::Int8, Scheme::Int4 { group: 32 }, Scheme::Fp4B64];
    let same = CodesPlan { quantize_head: true, ..plan("npo_gdr", schemes) };
    let mixed = CodesPlan { unlearned: wide.path().to_path_buf(), ..same.clone() };
    assert!(compare_everywhere(&mixed) <= CLOSE);
    assert!(compare_everywhere(&CodesPlan { target: short.path().to_path_buf(), ..mixed.clone() }) <= CLOSE);
    // The same values in another dtype are the same figures.
    for gpu in adapters::all() {
        let [a, b] =
            [&mixed, &same].map(|plan| compare_codes_on(gpu, plan.clone(), &mut |_, _| Ok(())).unwrap());
        assert_eq!(a.tensors, b.tensors, "{}", adapters::name(gpu));
    }
}

/// What one block gives on a device.
fn on_device(
    gpu: &Gpu,
    schemes: &[Scheme],
    [target, unlearned]: [&[f32]; 2],
    n: usize,
    k: usize,
) -> Option<Vec<Change>> {
    let mut comparer = Comparer::new(schemes);
    let [target, unlearned] = [target, unlearned].map(|weights| Stored {
        name: "edge",
        dtype: Scheme::F32,
        bytes: bytemuck::cast_slice(weights),
        n,
        k,
    });
    comparer.add(gpu, target, unlearned).unwrap();
    comparer.finish(gpu).unwrap().remove(0)
}

#[test]
fn rare_groups_are_the_same_on_devices() {
    let _turn = turn();
    let floor = || Arc::new(Gpu::open_with_floor_limits(&DeviceChoice::Best).unwrap());
    let floor = adapters::all().first().map(|_| floor());
    for gpu in adapters::all().iter().chain(&floor) {
        for pair in golden().edges {
            let (target, unlearned) = (floats(&pair.target), floats(&pair.unlearned));
            let found = on_device(gpu, &quantizing(), [&target, &unlearned], pair.rows, pair.cols).unwrap();
            for (scheme, got) in quantizing().into_iter().zip(found) {
                let want = change(scheme, &target, &unlearned, pair.rows, pair.cols);
                let place = format!("{}: {} {scheme}", adapters::name(gpu), pair.name);
                assert_same(&got, &want, want.kept, &place);
            }
        }
    }
}

/// What f32 products do not hold is left to the host: weights near f32's ends, updates whose squares underflow.
#[test]
fn devices_leave_extremes_to_the_host() {
    let _turn = turn();
    let (rows, cols) = (16, 128);
    let weights = noise(7, rows * cols);
    let moved = |size: f32| -> Vec<f32> {
        weights.iter().zip(noise(8, rows * cols)).map(|(weight, noise)| weight + size * noise).collect()
    };
    let scaled = |scale: f32| -> [Vec<f32>; 2] {
        [&weights, &moved(0.1)].map(|weights| weights.iter().map(|weight| weight * scale).collect())
    };
    for gpu in adapters::all() {
        for scheme in [Scheme::Int8, Scheme::Int4Asym { group: 128 }, Scheme::Nf4B64] {
            let held =
                |pair: &[Vec<f32>; 2]| on_device(gpu, &[scheme], [&pair[0], &pair[1]], rows, cols).is_some();
            assert!(held(&scaled(1.0)) && held(&scaled(1e-6)) && held(&scaled(1e6)), "{scheme}");
            assert!(!held(&scaled(1e37)) && !held(&scaled(1e25)) && !held(&scaled(1e-25)), "{scheme}");
        }
    }
}
