//! Kept and stochastic rounding: against NumPy, against a plain sort, and what must hold on the demo's matrices.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::adapters;
use undertext::checkpoint::Checkpoint;
use undertext::gpu::Commands;
use undertext::kernels::{Packer, Stored, Want, registry};
use undertext::quant::{
    Draw, Kept, KeptRow, Moments, Packed, Rounding, Rows, Scheme, Share, decode, encode, keep, matched,
    neighbour, round, stochastic,
};

fn quantizing() -> impl Iterator<Item = Scheme> {
    Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full())
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/models").join(name)).unwrap()
}

/// Both checkpoints' layer matrices: target, unlearned, rows, columns.
fn matrices(unlearned: &str) -> Vec<(Vec<f32>, Vec<f32>, usize, usize)> {
    let (target, unlearned) = (open("target"), open(unlearned));
    let names = target.tensors().names();
    let projections = names.iter().filter(|name| name.ends_with("proj.weight"));
    let read = |checkpoint: &Checkpoint, name: &str| {
        let (_, shape) = checkpoint.tensors().describe(name).unwrap();
        (checkpoint.tensors().read(name, shape).unwrap().to_f32(), shape.to_vec())
    };
    let pairs = projections.map(|name| {
        let ((t, shape), (u, _)) = (read(&target, name), read(&unlearned, name));
        (t, u, shape[0], shape[1])
    });
    pairs.collect()
}

/// `tests/golden/quant/kept.json`; the script beside it explains the fields.
#[derive(Deserialize)]
struct Golden {
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    name: String,
    rows: usize,
    cols: usize,
    target: String,
    unlearned: String,
    /// By scheme, then by share.
    kept: BTreeMap<String, BTreeMap<String, String>>,
}

fn hex(text: &str, digits: usize) -> Vec<u32> {
    let number = |digits| u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    text.as_bytes().chunks(digits).map(number).collect()
}

fn floats(text: &str) -> Vec<f32> {
    hex(text, 8).into_iter().map(f32::from_bits).collect()
}

fn codes(packed: &Packed) -> Vec<u32> {
    (0..packed.rows * packed.cols).map(|index| packed.code(index)).collect()
}

#[test]
fn kept_codes_equal_numpy() {
    let golden: Golden = serde_json::from_str(include_str!("golden/quant/kept.json")).unwrap();
    let (mut compared, mut moved) = (0, 0);
    for Pair { name, rows, cols, target, unlearned, kept } in golden.pairs {
        let (t, u) = (floats(&target), floats(&unlearned));
        for (scheme, shares) in kept {
            let scheme: Scheme = scheme.parse().unwrap();
            for (share, want) in shares {
                let got = keep(scheme, &t, &u, rows, cols, share.parse().unwrap());
                let want = hex(&want, scheme.bits() as usize / 4);
                let differ = codes(&got.packed).iter().zip(&want).filter(|(got, want)| got != want).count();
                assert_eq!(differ, 0, "{name} {scheme} at {share}: of {} codes", want.len());
                assert_eq!(rows * cols, want.len());
                compared += want.len();
                moved += got.rows.iter().map(|row| row.moved).sum::<u64>();
            }
        }
    }
    assert!(compared > 10_000 && moved > 1000, "{moved} of {compared} moved");
}

/// Survival lands on the goal: over all matrices, and in nine rows of ten.
#[test]
fn survival_lands_on_the_goal() {
    for model in ["npo_gdr", "ga_gdr"] {
        let matrices = matrices(model);
        for scheme in quantizing() {
            for share in [0.3, 0.9, 1.0] {
                // One step of int8 is too short to take half of an update back.
                if scheme == Scheme::Int8 && share < 0.9 {
                    continue;
                }
                let (mut all, mut weights) = (KeptRow::default(), 0);
                let (mut rows, mut near) = (0_u32, 0_u32);
                for (t, u, n, k) in &matrices {
                    weights += t.len();
                    for row in keep(scheme, t, u, *n, *k, share).rows {
                        all.merge(&row);
                        if let Some(survival) = row.survival() {
                            rows += 1;
                            near += u32::from((survival - f64::from(share)).abs() <= 0.05);
                        }
                    }
                }
                let survival = all.survival().unwrap();
                let place = format!(
                    "{model} {scheme} at {share}: nearest {:.3}, kept {survival:.4}; {:.2} % moved; {near} of {rows} rows near",
                    all.nearest_survival().unwrap(),
                    100.0 * all.moved as f64 / weights as f64
                );
                println!("{place}");
                assert!((survival - f64::from(share)).abs() <= 0.01, "{place}");
                assert!(f64::from(near) >= 0.9 * f64::from(rows), "{place}");
            }
        }
    }
}

/// Codes move by one step or not at all, scales stay, a row without an update stays, blocks of rows leave no trace.
#[test]
fn kept_rounding_moves_single_steps() {
    let matrices = matrices("npo_gdr");
    let (t, mut u, n, k) = matrices.into_iter().nth(3).unwrap();
    u[..k].copy_from_slice(&t[..k]);
    for scheme in quantizing() {
        let nearest = encode(scheme, &u, n, k);
        let Kept { packed, rows } = keep(scheme, &t, &u, n, k, 0.9);
        assert_eq!(packed.scales, nearest.scales, "{scheme}");
        let mut moved = vec![0; n];
        for index in 0..n * k {
            let (old, new) = (nearest.code(index), packed.code(index));
            if old != new {
                moved[index / k] += 1;
                let delta = u[index] - t[index];
                let steps = [true, false].map(|up| neighbour(scheme, old, up));
                assert!(delta != 0.0 && steps.contains(&Some(new)), "{scheme} {index}: {old} to {new}");
            }
        }
        assert_eq!(moved, rows.iter().map(|row| row.moved).collect::<Vec<_>>(), "{scheme}");
        assert_eq!((moved[0], rows[0].survival()), (0, None), "{scheme}");

        let half = n / 2 * k;
        let parts = [0..half, half..n * k].map(|range| {
            let part = keep(scheme, &t[range.clone()], &u[range.clone()], range.len() / k, k, 0.9);
            decode(&part.packed)
        });
        assert_eq!(parts.concat(), decode(&packed), "{scheme}");
    }
}

#[test]
fn neighbours_are_the_next_values() {
    for scheme in quantizing() {
        let weights: Vec<f32> = (0..64).map(|index| (index as f32 - 31.5) / 31.5).collect();
        let mut packed = encode(scheme, &weights, 1, 64);
        // Every code, at the same scale.
        let count = 1_u32 << scheme.bits();
        let value = |packed: &mut Packed, code: u32| {
            packed.words[0] = code;
            decode(packed)[0]
        };
        let unused =
            |code: u32| scheme == Scheme::Int8 && code == 0x80 || scheme == Scheme::Fp4B64 && code == 8;
        let mut ladder: Vec<_> =
            (0..count).filter(|&code| !unused(code)).map(|code| (value(&mut packed, code), code)).collect();
        ladder.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (place, &(_, code)) in ladder.iter().enumerate() {
            let at = |place: Option<usize>| place.and_then(|place| ladder.get(place)).map(|step| step.1);
            assert_eq!(neighbour(scheme, code, true), at(Some(place + 1)), "{scheme} {code}");
            assert_eq!(neighbour(scheme, code, false), at(place.checked_sub(1)), "{scheme} {code}");
        }
    }
    // -0 has the neighbours of 0.
    assert_eq!([true, false].map(|up| neighbour(Scheme::Fp4B64, 8, up)), [Some(1), Some(9)]);
}

/// Right on average, to either neighbour only, the same for any cut into blocks, other codes for another seed or name.
#[test]
fn stochastic_rounding_is_right_on_average() {
    let (_, u, n, k) = matrices("npo_gdr").into_iter().next().unwrap();
    for scheme in quantizing() {
        let draw = Draw::new(7, "a");
        let (packed, moved) = stochastic(scheme, &u, n, k, draw, 0);
        let nearest = encode(scheme, &u, n, k);
        assert!(moved > 0 && packed.scales == nearest.scales, "{scheme}");
        let (values, old) = (decode(&packed), decode(&nearest));
        let (mut error, mut squares, mut differ) = (0.0, 0.0, 0);
        for (index, ((&new, &old), &weight)) in values.iter().zip(&old).zip(&u).enumerate() {
            differ += u64::from(new != old);
            // What lies beyond the last value stays there.
            if weight == old || neighbour(scheme, nearest.code(index), weight > old).is_some() {
                let wrong = f64::from(new) - f64::from(weight);
                (error, squares) = (error + wrong, squares + wrong * wrong);
            }
        }
        // A sum of independent errors of mean 0; 4 standard deviations.
        assert!(f64::abs(error) < 4.0 * f64::sqrt(squares), "{scheme}: {error} of {squares}");
        assert_eq!(differ, moved, "{scheme}");

        let half = n / 2 * k;
        let parts = [0..half, half..n * k].map(|range| {
            let rows = range.len() / k;
            decode(&stochastic(scheme, &u[range.clone()], rows, k, draw, range.start as u64).0)
        });
        assert_eq!(parts.concat(), values, "{scheme}");
        for other in [Draw::new(8, "a"), Draw::new(7, "b")] {
            assert_ne!(stochastic(scheme, &u, n, k, other, 0).0, packed, "{scheme}");
        }
    }
}

/// The numbers are part of the format: the same on every machine, for ever.
#[test]
fn draws_are_fixed_and_even() {
    let draw = Draw::new(1, "model.layers.0.mlp.up_proj.weight");
    let mean = (0..1 << 16).map(|index| f64::from(draw.at(index))).sum::<f64>() / f64::from(1 << 16);
    assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0_f64).sqrt() / 256.0, "{mean}");
    let bits: Vec<_> = [0, 1, 1 << 32].into_iter().map(|index| draw.at(index).to_bits()).collect();
    assert_eq!(bits, FIRST_DRAWS, "{bits:x?}");
}

const FIRST_DRAWS: [u32; 3] = [0x3f29_8b49, 0x3d0d_02f0, 0x3f19_8c15];

#[test]
fn the_device_keeps_as_the_host() {
    let kernel = registry().into_iter().find(|kernel| kernel.name == "keep").unwrap();
    for gpu in adapters::all() {
        for case in (kernel.cases)().into_iter().filter(|case| !case.timed) {
            let prepared = (case.prepare)(gpu).unwrap();
            let mut commands = Commands::new();
            (prepared.record)(&mut commands);
            commands.submit(gpu).unwrap();
            for output in &prepared.outputs {
                let want = (output.want)();
                let got = gpu.read::<u32>(&output.buffer, want.len()).unwrap();
                let wrong =
                    got.iter().zip(&want).filter(|(got, want)| Want::Exactly(**got) != **want).count();
                assert_eq!(wrong, 0, "{} on {}: of {} words", case.name, adapters::name(gpu), want.len());
            }
        }
    }
}

/// The demo's matrices, which differ in shape and end inside a block of rows.
#[test]
fn matrices_are_rounded_on_the_device_as_on_the_host() {
    let matrices = matrices("npo_gdr");
    for gpu in adapters::all() {
        let mut packer = Packer::always_on_device();
        for (scheme, rounding) in [
            (Scheme::Int4 { group: 128 }, Rounding::Kept(Share::USUAL)),
            (Scheme::Nf4B64, Rounding::Kept(Share::ALL)),
            (Scheme::Int4Asym { group: 128 }, Rounding::Stochastic(3)),
            (Scheme::Int8, Rounding::Aligned),
        ] {
            for (t, u, n, k) in &matrices[..9] {
                let (n, k) = (*n, *k);
                let stored = |weights| Stored {
                    name: "w",
                    dtype: Scheme::F32,
                    bytes: bytemuck::cast_slice::<f32, u8>(weights),
                    n,
                    k,
                };
                let matrix = Packer::allocate(gpu, "w", scheme, n, k).unwrap();
                packer.round_into(gpu, &matrix, rounding, stored(&u[..]), Some(stored(&t[..])), 0).unwrap();
                let what = Rows { weights: u, target: Some(t), rows: n, cols: k, tensor: "w", first: 0 };
                let want = round(scheme, rounding, what).packed;
                let part = &matrix.parts[0];
                let place = format!("{scheme} {rounding} on {}", adapters::name(gpu));
                assert_eq!(gpu.read::<u32>(&part.weights, want.words.len()).unwrap(), want.words, "{place}");
                assert_eq!(gpu.read::<f32>(&part.scales, want.scales.len()).unwrap(), want.scales, "{place}");
            }
        }
    }
}

/// What a matrix multiplies, as a plain double loop: error of the outputs and survival, from the definition.
#[test]
fn matched_rounding_keeps_the_update_and_moves_the_outputs_less() {
    let matrices = matrices("npo_gdr");
    for scheme in
        [Scheme::Int4 { group: 128 }, Scheme::Int4Asym { group: 128 }, Scheme::Nf4B64, Scheme::Fp4B64]
    {
        let (t, u, n, k) = &matrices[2];
        let (n, k) = (*n, *k);
        // Inputs that go together: a few directions and some noise.
        let inputs: Vec<Vec<f64>> = (0..96)
            .map(|token| {
                let wave =
                    |column: usize, period: usize| ((token * (column + period)) as f64 / period as f64).sin();
                (0..k)
                    .map(|column| 2.0 * wave(column, 37) + wave(column % 11, 5) + 0.1 * wave(column, 3))
                    .collect()
            })
            .collect();
        let share = 0.825;
        let got = matched(scheme, t, u, [n, k], &moments_of(&inputs, k), share);
        let plain = keep(scheme, t, u, n, k, share);
        let error = |kept: &Kept| {
            let values = decode(&kept.packed);
            let mut sum = 0.0;
            for row in 0..n {
                let range = row * k..(row + 1) * k;
                let wrong = range.map(|i| {
                    let wanted = f64::from(t[i]) + f64::from(share) * (f64::from(u[i]) - f64::from(t[i]));
                    f64::from(values[i]) - wanted
                });
                let wrong: Vec<_> = wrong.collect();
                for x in &inputs {
                    sum += x.iter().zip(&wrong).map(|(a, b)| a * b).sum::<f64>().powi(2);
                }
            }
            sum
        };
        let (ours, theirs) = (error(&got), error(&plain));
        assert!(ours < 0.5 * theirs, "{scheme}: error {ours} against {theirs}");
        let mut all = KeptRow::default();
        let (mut rows, mut near) = (0_u32, 0_u32);
        for (row, plain) in got.rows.iter().zip(&plain.rows) {
            all.merge(row);
            assert_eq!((row.update, row.nearest), (plain.update, plain.nearest));
            if let Some(survival) = row.survival() {
                // What nearest rounding keeps anyway is not taken back.
                let goal = row.nearest_survival().unwrap().clamp(f64::from(share), 1.0);
                rows += 1;
                near += u32::from((survival - goal).abs() <= 0.05);
            }
        }
        assert!(rows > 0 && f64::from(near) >= 0.9 * f64::from(rows), "{scheme}: {near} of {rows} rows near");
        assert!(all.survival().unwrap() >= f64::from(share) - 0.01, "{scheme}: {:?}", all.survival());
        let squares = |column: usize| inputs.iter().map(|x| x[column] * x[column]).sum::<f64>();
        let mean = (0..k).map(squares).sum::<f64>() / k as f64;
        // Damped as the moments are.
        let by_column: Vec<_> = (0..k).map(|column| squares(column) / mean + 0.01).collect();
        assert_rescaled(&got, u, &by_column);
        assert!(
            got == matched(scheme, t, u, [n, k], &moments_of(&inputs, k), share),
            "{scheme}: twice the same"
        );
    }
}

/// What the search may multiply a group's scale by.
const FACTORS: [f32; 11] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6];

/// Distances that differ by less than this part are one. A weight over its scale, at most 8 / 0.6 steps, is rounded to f32 twice:
/// 2^-19 of a step; a distance at a tie is half a step.
const TIE: f64 = 1.0 + 4.0 / 524_288.0;

/// How far every weight is from what each 4-bit code stands for at the scales of `packed`.
fn distances(packed: &Packed, weights: &[f32]) -> Vec<[f64; 16]> {
    let mut all = vec![[0.0; 16]; weights.len()];
    for code in 0..16_u32 {
        let mut alike = packed.clone();
        alike.words.fill(code * 0x1111_1111);
        for ((all, value), &weight) in all.iter_mut().zip(decode(&alike)).zip(weights) {
            all[code as usize] = (f64::from(value) - f64::from(weight)).abs();
        }
    }
    all
}

fn least(distances: &[f64; 16]) -> f64 {
    distances.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Every group has the factor at which its nearest codes err least, each weight's square by that of its column; moved codes are
/// those that nearest rounding does not have.
fn assert_rescaled(got: &Kept, weights: &[f32], by_column: &[f64]) {
    let Packed { scheme, rows, cols, .. } = got.packed;
    let near = encode(scheme, weights, rows, cols);
    let grouping = scheme.grouping(rows, cols).unwrap();
    let each = near.scales.len() / grouping.count;
    let errors = |factor: f32| -> Vec<f64> {
        let mut tried = near.clone();
        tried.scales.iter_mut().step_by(each).for_each(|scale| *scale *= factor);
        let mut errors = vec![0.0; grouping.count];
        for (place, found) in distances(&tried, weights).iter().enumerate() {
            errors[grouping.of(place)] += least(found).powi(2) * by_column[place % cols];
        }
        errors
    };
    let all = FACTORS.map(errors);
    let mut smaller = 0;
    for (group, (own, first)) in got.packed.scales.chunks(each).zip(near.scales.chunks(each)).enumerate() {
        let factor =
            FACTORS.iter().position(|factor| first[0] * factor == own[0]).expect("one of the factors");
        let best = all.iter().map(|errors| errors[group]).fold(f64::INFINITY, f64::min);
        assert!(all[factor][group] <= best * TIE * TIE, "{scheme} {group}: {} {best}", all[factor][group]);
        assert_eq!(own[1..], first[1..], "zero points stay");
        smaller += usize::from(factor > 0);
    }
    assert!(smaller > 0, "{scheme}: no group has another scale");
    for (row, kept) in got.rows.iter().enumerate() {
        let from = row * cols..(row + 1) * cols;
        let moved = from.filter(|&place| near.code(place) != got.packed.code(place)).count() as u64;
        assert_eq!(moved, kept.moved, "{scheme} {row}");
    }
}

fn moments_of(inputs: &[Vec<f64>], k: usize) -> Moments {
    let mut sums = vec![0.0; k * k];
    for x in inputs {
        for (i, a) in x.iter().enumerate() {
            x.iter().enumerate().for_each(|(j, b)| sums[i * k + j] += a * b);
        }
    }
    Moments::new(k, sums)
}

/// With independent inputs and nothing to keep, the nearest codes have the least error, at scales that err less in every group;
/// rows may not have any update at all.
#[test]
fn matched_rounding_without_an_update_is_nearest() {
    let (_, u, n, k) = &matrices("npo_gdr")[0];
    let (n, k) = (*n, *k);
    let alone = |index: usize| f64::from(u8::from(index.is_multiple_of(k + 1)));
    for sums in [(0..k * k).map(alone).collect(), vec![0.0; k * k]] {
        let got = matched(Scheme::Int4 { group: 32 }, u, u, [n, k], &Moments::new(k, sums), 0.9);
        assert_rescaled(&got, u, &vec![1.0; k]);
        // f32 rounding calls some weights a tie that f64 does not: there either code is the nearest.
        let values = decode(&got.packed);
        for (i, found) in distances(&got.packed, u).iter().enumerate() {
            assert!(
                f64::from((values[i] - u[i]).abs()) <= least(found) * 1.000_001,
                "{i}: {} {found:?}",
                values[i]
            );
        }
        assert!(got.rows.iter().all(|row| row.update == 0.0 && row.survival().is_none()));
        let other = |(i, found): &(usize, [f64; 16])| found[got.packed.code(*i) as usize] > least(found);
        let ties = distances(&got.packed, u).into_iter().enumerate().filter(other).count();
        assert!(ties < n * k / 100, "{ties} ties");
    }
}
