//! Problems for the kernel, and its f64 twin.

use super::found::Tally;
use super::{LEVELS, Operands, PARTS, PIECE, SUMS, TALLIES, WG, record, source};
use crate::error::Result;
use crate::gpu::{Commands, Gpu};
use crate::kernels::case::{ULP, noise, rounding, unwritten};
use crate::kernels::pack::{STORED, awkward_weights, stored};
use crate::kernels::{Case, Output, Part, Prepared, Want, Work};
use crate::quant::{self, Packed, Scheme};

pub(in crate::kernels) fn cases() -> Vec<Case> {
    let [f32, f16, bf16] = STORED;
    let mut cases = Vec::new();
    for scheme in Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()) {
        // Each dtype on each side; ragged groups, ragged pieces, several workgroups.
        let some: [([Scheme; 2], _, _); 4] =
            [([f32, f16], 9, 72), ([f16, bf16], 1, 8), ([bf16, f32], 17, 256), ([f32, f16], 33, 1000)];
        cases.extend(some.into_iter().map(|(dtypes, n, k)| case(scheme, dtypes, n, k, false)));
    }
    for scheme in [Scheme::Int8, Scheme::Int4 { group: 128 }, Scheme::Nf4B64] {
        cases.push(case(scheme, [f16, f16], 512, 2048, true));
    }
    cases
}

fn case(scheme: Scheme, dtypes: [Scheme; 2], n: usize, k: usize, timed: bool) -> Case {
    let bits: u32 = dtypes.iter().map(|dtype| dtype.bits() + scheme.bits()).sum();
    let [t, u] = dtypes;
    Case {
        name: format!("change/{scheme} from {t} to {u} n={n} k={k}"),
        work: Work::Bytes((n * k * bits as usize / 8) as u64),
        timed,
        prepare: Box::new(move |gpu| prepare(gpu, scheme, dtypes, n, k)),
    }
}

/// One side: as stored, and in the scheme.
struct Side {
    weights: Vec<f32>,
    packed: Packed,
    values: Vec<f32>,
}

/// The weights of both sides, and what the scheme makes of them.
fn sides(scheme: Scheme, dtypes: [Scheme; 2], n: usize, k: usize) -> [(Vec<u8>, Side); 2] {
    let target = awkward_weights(11, n, k);
    // Unchanged weights, small and large updates, a group that was zeros and one that becomes zeros.
    let update = noise(12, n * k);
    let moved = |(index, weight): (usize, &f32)| match (index % 5, index / k % 7) {
        (_, 6) if index % k < 64 => 0.0,
        (0 | 1, _) => *weight,
        (2, _) => weight + 1e-4 * update[index],
        _ => weight + 0.1 * update[index],
    };
    let unlearned: Vec<f32> = target.iter().enumerate().map(moved).collect();
    let side = |dtype, weights: &[f32]| {
        let bytes = stored(dtype, weights);
        let words = bytemuck::pod_collect_to_vec(&bytes);
        let weights = quant::decode(&Packed { scheme: dtype, rows: n, cols: k, words, scales: vec![] });
        let packed = quant::encode(scheme, &weights, n, k);
        let values = quant::decode(&packed);
        (bytes, Side { weights, packed, values })
    };
    [side(dtypes[0], &target), side(dtypes[1], &unlearned)]
}

fn prepare(gpu: &Gpu, scheme: Scheme, dtypes: [Scheme; 2], n: usize, k: usize) -> Result<Prepared> {
    let sides = sides(scheme, dtypes, n, k);
    let mut raws = Vec::new();
    let mut parts = Vec::new();
    for (bytes, Side { packed, .. }) in &sides {
        raws.push(gpu.upload("raw", bytes)?);
        let (weights, scales) = (gpu.upload("codes", &packed.words)?, gpu.upload("scales", &packed.scales)?);
        parts.push(Part { rows: 0..n, weights, scales });
    }
    // Tallies are added to; a run of the bench after the first adds the same again.
    let tallies = gpu.upload("tallies", &vec![0u32; TALLIES])?;
    let sums = unwritten(gpu, "sums", (n * k).div_ceil(PIECE) * PARTS * SUMS)?;
    let pipeline = gpu.pipeline(&source(scheme, dtypes))?;
    let [target, unlearned] = sides.map(|(_, side)| std::rc::Rc::new(side));
    let (t, u) = (target.clone(), unlearned.clone());
    let outputs = vec![
        Output {
            name: "tallies",
            buffer: tallies.clone(),
            want: Box::new(move || want_tallies(scheme, &t, &u, n, k)),
        },
        Output {
            name: "sums",
            buffer: sums.clone(),
            want: Box::new(move || want_sums(scheme, &target, &unlearned, n, k)),
        },
    ];
    let record = move |commands: &mut Commands| {
        let operands = Operands {
            raw: [&raws[0], &raws[1]],
            packed: [&parts[0], &parts[1]],
            tallies: &tallies,
            sums: &sums,
        };
        record(commands, &pipeline, operands, n, k);
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// Roundings of a product's term and of its way through the tree.
const PRODUCT: usize = 3 + LEVELS;

fn want_tallies(scheme: Scheme, target: &Side, unlearned: &Side, n: usize, k: usize) -> Vec<Want> {
    let change = quant::change(scheme, &target.weights, &unlearned.weights, n, k);
    let mut want = vec![Want::Exactly(0); TALLIES];
    let count = |count: u64| Want::Exactly(u32::try_from(count).unwrap_or(u32::MAX));
    for (want, bin) in want.iter_mut().zip(change.steps.counts()).skip(1) {
        *want = count(*bin);
    }
    for (tally, found) in [
        (Tally::Changed, change.changed),
        (Tally::CodeChanged, change.code_changed),
        (Tally::ScaleChanged, change.scale_changed),
        (Tally::ValueChanged, change.value_changed),
        (Tally::Absorbed, change.absorbed),
        (Tally::ZeroTarget, change.zero_target),
        (Tally::ZeroUnlearned, change.zero_unlearned),
    ] {
        want[tally.place()] = count(found);
    }
    let greatest = change.steps.max().unwrap_or_default();
    want[Tally::Greatest.place()] = Want::Near { value: greatest, bound: ratio_bound() * greatest };
    let weights = target.weights.iter().chain(&unlearned.weights);
    let largest = weights.fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    want[Tally::Largest.place()] = Want::Exactly(largest.to_bits());
    want
}

/// Of one ratio, relative: the difference and the step rounded, 2.5 ulp of a division.
fn ratio_bound() -> f64 {
    rounding(2) + 2.5 * ULP
}

fn want_sums(scheme: Scheme, target: &Side, unlearned: &Side, n: usize, k: usize) -> Vec<Want> {
    let Some(grouping) = scheme.grouping(n, k) else { unreachable!("a quantizing scheme") };
    let widths = quant::widths(scheme);
    let pieces = (n * k).div_ceil(PIECE);
    let mut sums = vec![[(0.0, 0.0); SUMS]; pieces * PARTS];
    for index in 0..n * k {
        let old = (f64::from(target.weights[index]), f64::from(target.values[index]));
        let new = (f64::from(unlearned.weights[index]), f64::from(unlearned.values[index]));
        let (delta, quantized) = (new.0 - old.0, new.1 - old.1);
        let scale = |side: &Side| side.packed.scales[grouping.of(index) * scheme.values_per_group()];
        let side = if scale(target) > 0.0 { target } else { unlearned };
        let width = widths.map_or(1.0, |widths| widths[side.packed.code(index) as usize]);
        let step = width * f64::from(scale(side));
        let ratio = if step > 0.0 { delta.abs() / step } else { 0.0 };
        let square = delta * delta;
        let from_zero = if old.1 == 0.0 { square } else { 0.0 };
        let products = [square, from_zero, quantized * delta, quantized * quantized, ratio, ratio.min(1.0)];
        let part = index / PIECE * PARTS + index / 8 % WG % PARTS;
        for (sum, term) in sums[part].iter_mut().zip(products) {
            sum.0 += term;
            sum.1 += term.abs();
        }
    }
    let (product, ratio) = (rounding(PRODUCT), ratio_bound() + rounding(LEVELS));
    let bounds = [product, product, product, product, ratio, ratio];
    // What underflows is at most the least normal number a term.
    let tiny = PIECE as f64 * f64::from(f32::MIN_POSITIVE);
    let want = |((value, magnitude), bound): (&(f64, f64), f64)| Want::Near {
        value: *value,
        bound: bound * magnitude + tiny,
    };
    sums.iter().flat_map(|sums| sums.iter().zip(bounds).map(want)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::COUNTS;

    /// Besides the numbers that are handed to the shader.
    #[test]
    fn the_shader_has_the_same_places() {
        let text = include_str!("../../../shaders/change.wgsl");
        assert!(text.contains(&format!("const SUMS: u32 = {SUMS}u;")));
        assert!(text.contains(&format!("const LARGEST: u32 = BINS + {}u;", Tally::Largest as usize)));
        assert!(text.contains(&format!("const TALLIES: u32 = BINS + {}u;", TALLIES - COUNTS)));
    }
}
