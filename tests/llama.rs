//! The GPU pass against the CPU pass, and against itself, on every adapter.

use std::sync::Arc;

use undertext::engine::{Observation, Options, Task};
use undertext::gpu::{DeviceChoice, Gpu};
use undertext::model::{Each, Lockstep, Pass, Reference};
use undertext::quant::{Precision, Scheme};

use crate::adapters;
use crate::reference::{CONFIG, VOCAB, checkpoint, tasks, tokens, weights, whole};
use crate::support::{SmallRoom, llama, observe_all};

fn every_precision() -> impl Iterator<Item = Precision> {
    let quantizing = Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full());
    [Precision::Full].into_iter().chain(quantizing.map(Precision::nearest))
}

/// The largest |difference| as a share of the range of `want`.
pub(crate) fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let (low, high) =
        want.iter().fold((f32::MAX, f32::MIN), |(low, high), logit| (logit.min(low), logit.max(high)));
    let differences = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    // NaN would be lost by max: it must count as the worst.
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { d.max(max) }) / (high - low)
}

#[test]
fn logits_are_those_of_the_cpu_pass() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    let batch = whole(&tokens(4, 70));
    for precision in every_precision() {
        for quantize_head in [false, true] {
            let want = Reference::load(&checkpoint, precision, quantize_head, 1024);
            let want = want.unwrap().logits(&batch).unwrap();
            for gpu in adapters::all() {
                let mut model = llama(gpu, &checkpoint, precision, quantize_head, 1024);
                let got = model.logits(&batch).unwrap().remove(0);
                let difference = largest_difference(&got, &want);
                let what = format!("{precision}, head {quantize_head}, {}", adapters::name(gpu));
                // Weights are the same to the last bit, so only the order of sums differs: two layers of
                // products of at most 104 terms. Measured: below 2e-6.
                assert!(difference <= 2e-5, "{what}: {difference:e} of the range");
                // The folded answers are those of these logits.
                let pass = Pass::Score(std::slice::from_ref(&batch));
                for (row, folded) in got.chunks_exact(VOCAB).zip(&model.run(pass).unwrap()[0]) {
                    let top = row.iter().copied().fold(f32::MIN, f32::max);
                    assert_eq!(folded.max_logit.to_bits(), top.to_bits(), "{what}");
                    assert_eq!(row[folded.argmax as usize].to_bits(), top.to_bits(), "{what}");
                    assert_eq!(folded.given_logit.to_bits(), row[0].to_bits(), "{what}");
                }
            }
        }
    }
}

fn observe<L: Lockstep>(model: L, share_prefixes: bool, tasks: &[Task]) -> Vec<Observation> {
    observe_all(model, Options { share_prefixes, ..Options::default() }, tasks).remove(0)
}

#[test]
fn observations_are_bit_identical_in_any_batch() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    let precision = Precision::nearest(Scheme::Int4 { group: 32 });
    let tasks = tasks();
    for gpu in adapters::all() {
        let load = || llama(gpu, &checkpoint, precision, false, 1024);
        let want = observe(load(), true, &tasks);
        for (tokens, wanted, pages, share) in [(1024, 1024, 64, false), (7, 3, 7, true), (45, 33, 12, false)]
        {
            let got = observe(SmallRoom::new(load(), tokens, wanted, pages), share, &tasks);
            assert_eq!(got, want, "{}: {tokens} {wanted} {pages} {share}", adapters::name(gpu));
        }
        let reversed: Vec<_> = tasks.iter().rev().cloned().collect();
        let mut got = observe(load(), true, &reversed);
        got.reverse();
        assert_eq!(got, want, "{}: reversed", adapters::name(gpu));
    }
}

#[test]
fn observations_are_those_of_the_cpu_pass() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    let tasks = tasks();
    let cpu = Reference::load(&checkpoint, Precision::Full, false, 1024).unwrap();
    let want = observe(Each(vec![cpu]), true, &tasks);
    for gpu in adapters::all() {
        let model = llama(gpu, &checkpoint, Precision::Full, false, 1024);
        for (got, want) in observe(model, true, &tasks).iter().zip(&want) {
            let (got_ids, got, want_ids, want) = match (got, want) {
                (
                    Observation::Generated { tokens, log_probs },
                    Observation::Generated { tokens: ids, log_probs: want },
                ) => (tokens, log_probs, ids, want),
                (
                    Observation::Scored { argmax, log_probs, .. },
                    Observation::Scored { argmax: ids, log_probs: want, .. },
                ) => (argmax, log_probs, ids, want),
                other => panic!("{other:?}"),
            };
            assert_eq!(got_ids, want_ids, "{}", adapters::name(gpu));
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-3, "{}: {got} for {want}", adapters::name(gpu));
            }
        }
    }
}

#[test]
fn the_smallest_limits_are_enough() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    let batch = whole(&tokens(4, 33));
    for gpu in adapters::all() {
        let choice = DeviceChoice::Index(gpu.info().index.unwrap());
        // OpenGL adapters may have less than WebGPU's floor in what compute does not use.
        let Ok(small) = Gpu::open_with_floor_limits(&choice) else {
            assert_eq!(gpu.info().backend, "gl");
            continue;
        };
        let logits =
            |gpu: &Arc<Gpu>| llama(gpu, &checkpoint, Precision::Full, false, 1024).logits(&batch).unwrap();
        assert_eq!(logits(&Arc::new(small)), logits(gpu), "{}", adapters::name(gpu));
    }
}

#[test]
fn counters_say_what_was_done() {
    let (_dir, checkpoint) = checkpoint(CONFIG, &weights());
    if adapters::all().is_empty() {
        return;
    }
    let passes = || {
        // A device of its own: it counts for all who use it.
        let gpu = Arc::new(Gpu::open(&DeviceChoice::Best).unwrap());
        let mut model = llama(&gpu, &checkpoint, Precision::Full, false, 1024);
        let batches = [whole(&tokens(1, 9))];
        model.run(Pass::Score(&batches)).unwrap();
        let first = model.counters();
        let stored: usize = weights().iter().map(|(_, _, values)| 4 * values.len()).sum();
        assert_eq!(first.disk_bytes, stored as u64, "every tensor once");
        let embedding = 4 * (VOCAB * 48) as u64;
        assert!(first.upload_bytes >= first.disk_bytes - embedding && first.peak_device_bytes > 0);
        assert_eq!((first.weight_passes, first.tokens_scored), (1, 0));
        let mut before = first.clone();
        let pass = |number| {
            model.run(Pass::Score(&batches)).unwrap();
            let after = model.counters();
            assert_eq!((after.weight_passes, after.disk_bytes), (number, first.disk_bytes));
            let added = (after.dispatches - before.dispatches, after.submissions - before.submissions);
            before = after;
            added
        };
        (2..7).map(pass).collect::<Vec<_>>()
    };
    // 8 kernels a layer, since q, k and v are joined, and gate, up and what gates; then the norm, one chunk of the
    // head and its fold. Two submissions: the layers, then the head.
    let want = vec![(2 * 8 + 3, 2); 5];
    // A device that others keep busy is handed less at once, by the clock: another try, in which again every pass must be exact.
    let tries: Vec<_> = (0..3).map(|_| passes()).take_while(|found| *found != want).collect();
    assert!(tries.len() < 3, "{tries:?}");
}

#[test]
fn a_model_too_large_for_the_device_is_refused_by_name() {
    let Some(gpu) = adapters::all().first() else { return };
    let too_large = gpu.max_binding_bytes() + 16;
    let error = gpu.alloc("model.layers.0.mlp.up_proj.weight", too_large).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("up_proj.weight") && text.contains(&too_large.to_string()), "{text}");
}
