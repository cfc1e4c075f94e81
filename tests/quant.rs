//! The host codec against bitsandbytes, NumPy and exact arithmetic.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use serde::Deserialize;
use undertext::quant::scale::{self, TINY, code_of_magnitude, divide, settle};
use undertext::quant::{Packed, Scheme, decode, encode, table};

/// `tests/golden/quant/codecs.json`; the script beside it explains the fields.
#[derive(Deserialize)]
struct Golden {
    tables: Tables,
    matrices: Vec<Matrix>,
}

#[derive(Deserialize)]
struct Tables {
    fp4: String,
    nf4: String,
}

#[derive(Deserialize)]
struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    weights: String,
    schemes: std::collections::BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    scales: String,
    codes: String,
    #[serde(default)]
    values: String,
    #[serde(default)]
    kernel_codes: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/quant/codecs.json")).expect("the golden file is valid")
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

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A small generator (xorshift64*): fixed numbers without a dependency.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// In -1..1, on a grid of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.next() >> 7) as f32 * 2.0_f32.powi(-24) - 1.0
    }

    fn matrix(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit() * self.unit().abs() * 0.1).collect()
    }
}

const QUANTIZING: [Scheme; 8] = [
    Scheme::Int8,
    Scheme::Int4 { group: 32 },
    Scheme::Int4 { group: 64 },
    Scheme::Int4 { group: 128 },
    Scheme::Int4Asym { group: 128 },
    Scheme::Int4Row,
    Scheme::Fp4B64,
    Scheme::Nf4B64,
];

#[test]
fn every_quantizing_scheme_is_tested() {
    let all: Vec<_> = Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()).collect();
    assert_eq!(all, QUANTIZING);
    for matrix in golden().matrices {
        assert!(
            QUANTIZING.iter().all(|scheme| matrix.schemes.contains_key(scheme.name())),
            "{}",
            matrix.name
        );
    }
}

/// Scales equal NumPy's bit for bit. Codes do, too, except where the quotient lies within rounding
/// of a half: NumPy rounds the quotient, we round the product. Those are counted here.
#[test]
fn affine_schemes_equal_numpy() {
    let (mut codes_seen, mut ties) = (0, 0);
    for matrix in golden().matrices {
        let weights = floats(&matrix.weights);
        for scheme in QUANTIZING.into_iter().filter(|s| !matches!(s, Scheme::Fp4B64 | Scheme::Nf4B64)) {
            let expected = &matrix.schemes[scheme.name()];
            let packed = encode(scheme, &weights, matrix.rows, matrix.cols);
            assert_eq!(bits(&packed.scales), hex(&expected.scales, 8), "{} {scheme}: scales", matrix.name);

            let want = hex(&expected.codes, scheme.bits() as usize / 4);
            let grouping = scheme.grouping(matrix.rows, matrix.cols).unwrap();
            for (index, (got, want)) in codes(&packed).into_iter().zip(want).enumerate() {
                codes_seen += 1;
                if got == want {
                    continue;
                }
                let step = packed.scales[grouping.of(index) * scheme.values_per_group()];
                let quotient = f64::from(weights[index]) / f64::from(step);
                let from_half = (quotient.abs().fract() - 0.5).abs() / quotient.abs();
                // One rounding in each of the quotient and the product: two half ulps.
                let near = f64::from(f32::EPSILON);
                assert!(from_half <= near, "{} {scheme} {index}: {got} for {want}, {quotient}", matrix.name);
                ties += 1;
            }
        }
    }
    println!("{ties} ties of {codes_seen} codes differ from NumPy");
    assert_eq!((codes_seen, ties), (WEIGHTS * 6, TIES_NUMPY));
}

const WEIGHTS: usize = 5 * 200 + 3 * 128 + 7 * 72 + 2 * 128 + 4 * 264;
const TIES_NUMPY: usize = 11;

/// absmax equals bitsandbytes' bit for bit, and codes do except on exact ties: its backends take
/// `weight * (1 / absmax)`, and its CPU backend takes a tie's lower neighbour (not that nearer 0) and
/// drops the sign of what becomes 0. Both kinds are counted.
#[test]
fn tables_equal_bitsandbytes() {
    let (mut ties_cpu, mut zeros_cpu, mut ties_kernel, mut zeros_kernel) = (0, 0, 0, 0);
    for matrix in golden().matrices {
        let weights = floats(&matrix.weights);
        for scheme in [Scheme::Fp4B64, Scheme::Nf4B64] {
            let expected = &matrix.schemes[scheme.name()];
            let packed = encode(scheme, &weights, matrix.rows, matrix.cols);
            let decoded = decode(&packed);
            let values = floats(&expected.values);
            let place = |index: usize| format!("{} {scheme} {index}", matrix.name);
            let cpu = hex(&expected.codes, 1);
            let kernel = hex(&expected.kernel_codes, 1);

            for (block, (got, want)) in packed.scales.iter().zip(floats(&expected.scales)).enumerate() {
                // bitsandbytes gives a ragged last block of zeros an absmax of 1e-38.
                assert!(*got == want || (*got == 0.0 && want <= 1e-38), "{} absmax", place(block));
            }
            for (index, got) in codes(&packed).into_iter().enumerate() {
                let weight = table::round_to_bf16(weights[index]);
                let absmax = packed.scales[index / table::BLOCK];
                if got != kernel[index] {
                    // Beside a huge absmax, a tiny weight times the reciprocal underflows and loses its sign.
                    let zero = got == 8 && kernel[index] == 0;
                    assert!(
                        zero || is_fp4_tie(weight, absmax),
                        "{}: {got} for {}",
                        place(index),
                        kernel[index]
                    );
                    zeros_kernel += usize::from(zero);
                    ties_kernel += usize::from(!zero);
                }
                if got == cpu[index] {
                    assert_eq!(decoded[index].to_bits(), values[index].to_bits(), "{}: value", place(index));
                } else if decoded[index] == 0.0 && values[index] == 0.0 {
                    zeros_cpu += 1;
                } else {
                    assert!(is_fp4_tie(weight, absmax), "{}: {got} for {}", place(index), cpu[index]);
                    ties_cpu += 1;
                }
            }
        }
    }
    println!(
        "CPU backend: {ties_cpu} ties and {zeros_cpu} zeros differ; kernel: {ties_kernel} and {zeros_kernel}"
    );
    assert_eq!((ties_cpu, zeros_cpu, ties_kernel, zeros_kernel), (29, 289, 32, 24));
}

/// Whether `|weight| / absmax` is exactly a midpoint of two FP4 values, in exact arithmetic: bf16 has
/// 8 bits and the numerators 9, so the products are exact in f64.
fn is_fp4_tie(weight: f32, absmax: f32) -> bool {
    let (weight, absmax) = (f64::from(weight).abs(), f64::from(absmax));
    [1.0, 33.0, 80.0, 112.0, 160.0, 224.0, 320.0].iter().any(|n| weight * 384.0 == absmax * n)
}

/// Every pair of bf16 mantissas, over exponents that reach beyond the least threshold: our rule and the
/// kernel's expression agree except on exact ties.
#[test]
fn tables_agree_with_the_kernels_expression_on_every_ratio() {
    let nearest = |x: f32, thresholds: &[f32]| thresholds.iter().filter(|&&t| x > t).count();
    let (mut pairs, mut ties) = (0, 0);
    for absmax in (128..256).map(|mantissa| mantissa as f32) {
        let reciprocal = 1.0 / absmax;
        for (mantissa, exponent) in (128..256).flat_map(|mantissa| (0..12).map(move |e| (mantissa, e))) {
            let magnitude = mantissa as f32 * 2.0_f32.powi(-exponent);
            for weight in [magnitude, -magnitude] {
                if magnitude > absmax {
                    continue;
                }
                pairs += 1;
                let x = weight * reciprocal;
                assert_eq!(
                    table::nf4_code(weight, absmax) as usize,
                    nearest(x, &table::NF4_THRESHOLDS),
                    "nf4 {weight} / {absmax}"
                );
                let sign = if weight < 0.0 { 8 } else { 0 };
                let fp4 = table::FP4_ORDER[nearest(x.abs(), &table::FP4_THRESHOLDS)] | sign;
                if table::fp4_code(weight, absmax) != fp4 {
                    assert!(is_fp4_tie(weight, absmax), "fp4 {weight} / {absmax}");
                    ties += 1;
                }
            }
        }
    }
    println!("{ties} of {pairs} ratios, all exact ties, differ from the kernel's expression");
    assert_eq!((pairs, ties), (376_960, 76));
}

#[test]
fn tables_are_those_of_bitsandbytes() {
    let tables = golden().tables;
    assert_eq!(bits(&table::FP4[..8]), hex(&tables.fp4, 8)[..8]);
    // bitsandbytes writes the 0 of its negative half without a sign.
    assert_eq!(table::FP4[8..].to_vec(), floats(&tables.fp4)[8..].to_vec());
    assert_eq!(bits(&table::NF4), hex(&tables.nf4, 8));
    // Each threshold lies at the midpoint of its neighbours, within the digits that the kernel writes.
    let ascending = table::FP4_ORDER.map(|code| table::FP4[code as usize]);
    for (values, thresholds) in
        [(&ascending[..], &table::FP4_THRESHOLDS[..]), (&table::NF4, &table::NF4_THRESHOLDS)]
    {
        for (pair, threshold) in values.windows(2).zip(thresholds) {
            assert!((f32::midpoint(pair[0], pair[1]) - threshold).abs() < 5e-7, "{pair:?} {threshold}");
        }
    }
}

/// The correctly rounded quotient `x 2^doublings / divisor` as (mantissa of 24 bits, exponent), on u128.
fn exact_quotient(x: f32, divisor: u32, doublings: u32) -> f32 {
    let mantissa = u128::from(x.to_bits() & 0x7f_ffff | 0x80_0000) << (64 + doublings);
    let exponent = (x.to_bits() >> 23) as i32 - 150 - 64;
    let divisor = u128::from(divisor);
    // Cut so that the quotient has 24 bits, then round on the exact remainder.
    let shift = (mantissa / divisor).ilog2() - 23;
    let (unit, mut kept) = (divisor << shift, mantissa / (divisor << shift));
    let twice = 2 * (mantissa - kept * unit);
    if twice > unit || (twice == unit && kept & 1 == 1) {
        kept += 1;
    }
    (kept as f64 * 2.0_f64.powi(exponent + shift as i32)) as f32
}

#[test]
fn division_is_correctly_rounded() {
    let mut noise = Noise(7);
    for (divisor, doublings) in [(127, 0), (15, 1), (15, 0), (8, 0), (1, 0), (128, 0), (3, 1)] {
        for round in 0..400_000_u32 {
            // Exponents from TINY's to 2^120, and small steps from a power of two in every fourth.
            let exponent = 37 + noise.next() % 210;
            let mantissa = if round % 4 == 0 { noise.next() % 512 } else { noise.next() % (1 << 23) };
            let x = f32::from_bits(exponent << 23 | mantissa);
            let got = divide(x, divisor, doublings);
            assert_eq!(
                got.to_bits(),
                exact_quotient(x, divisor, doublings).to_bits(),
                "{x:e} {divisor} {doublings}"
            );
            // f32's own division rounds correctly on the host.
            let doubled = x * (1 << doublings) as f32;
            assert_eq!(got.to_bits(), (doubled / divisor as f32).to_bits(), "{x:e} {divisor} {doublings}");
        }
    }
}

#[test]
fn division_takes_what_is_tiny_for_zero() {
    let below = f32::from_bits(TINY.to_bits() - 1);
    for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, below] {
        assert_eq!(divide(x, 127, 0).to_bits(), 0, "{x:e}");
    }
    assert_eq!(divide(TINY, 127, 0), TINY / 127.0);
    assert!(divide(TINY, 128, 0) * 0.5 > f32::MIN_POSITIVE, "every edge is a normal number");
}

/// The code by its definition: the least that satisfies the condition.
fn code_by_definition(magnitude: f32, step: f32) -> u32 {
    let holds = |code: u32| {
        let edge = (code as f32 + 0.5) * step;
        magnitude < edge || (magnitude == edge && code.is_multiple_of(2))
    };
    (0..).find(|&code| holds(code)).unwrap()
}

/// Any candidate within one of the code settles to it, on edges, beside edges and between.
#[test]
fn settling_does_not_depend_on_the_candidate() {
    let mut noise = Noise(11);
    let mut on_an_edge = 0;
    for _ in 0..3_000 {
        let step = f32::from_bits((60 + noise.next() % 100) << 23 | (noise.next() % (1 << 23)));
        for half_steps in 0..30_u32 {
            let near = if half_steps < 16 { half_steps } else { noise.next() % 256 };
            let center = (near as f32 * 0.5 * step).to_bits();
            for offset in [-2_i32, -1, 0, 1, 2, 5_000] {
                let magnitude = f32::from_bits(center.saturating_add_signed(offset));
                let code = code_by_definition(magnitude, step);
                on_an_edge += usize::from(magnitude == (code as f32 + 0.5) * step);
                for candidate in code.saturating_sub(1)..=code + 1 {
                    assert_eq!(
                        settle(magnitude, candidate, step),
                        code,
                        "{magnitude:e} / {step:e} from {candidate}"
                    );
                }
                // A reciprocal is allowed 2.5 ulp; give it 8.
                let reciprocal = 1.0 / step;
                for error in -8..=8 {
                    let reciprocal = f32::from_bits(reciprocal.to_bits().saturating_add_signed(error));
                    assert_eq!(
                        code_of_magnitude(magnitude, step, reciprocal),
                        code,
                        "{magnitude:e} / {step:e}"
                    );
                }
            }
        }
    }
    assert!(on_an_edge > 10_000, "only {on_an_edge} magnitudes lay on an edge");
}

#[test]
fn rounding_to_bf16_equals_half() {
    let mut noise = Noise(13);
    for _ in 0..200_000 {
        let value = f32::from_bits(noise.next());
        if value.is_finite() {
            assert_eq!(table::round_to_bf16(value).to_bits(), half::bf16::from_f32(value).to_f32().to_bits());
        }
    }
    // Halves go to even.
    assert_eq!(table::round_to_bf16(f32::from_bits(0x3f80_8000)).to_bits(), 0x3f80_0000);
    assert_eq!(table::round_to_bf16(f32::from_bits(0x3f81_8000)).to_bits(), 0x3f82_0000);
}

#[test]
fn full_precision_keeps_every_value_of_its_dtype() {
    // All finite 16-bit patterns, 8 columns.
    let patterns = 0..=u16::MAX;
    let f16: Vec<_> =
        patterns.clone().map(half::f16::from_bits).filter(|v| v.is_finite()).map(f32::from).collect();
    let bf16: Vec<_> = patterns.map(half::bf16::from_bits).filter(|v| v.is_finite()).map(f32::from).collect();
    let f32s = Noise(17).matrix(64);
    for (scheme, weights) in [(Scheme::F16, f16), (Scheme::Bf16, bf16), (Scheme::F32, f32s)] {
        let packed = encode(scheme, &weights, weights.len() / 8, 8);
        assert!(packed.scales.is_empty());
        assert_eq!(packed.words.len(), weights.len() / scheme.per_word());
        assert_eq!(bits(&decode(&packed)), bits(&weights), "{scheme}");
    }
}

/// Layouts as `Packed` documents them, on a matrix whose codes are known.
#[test]
fn words_hold_the_lowest_weight_in_the_lowest_bits() {
    let ramp: Vec<f32> = (0..8).map(|w| w as f32 - 7.0).collect();
    let int8 = encode(Scheme::Int8, &[-127.0, -1.0, 0.0, 1.0, 2.0, 64.0, 126.0, 127.0], 1, 8);
    assert_eq!(int8.words, [0x0100_ff81, 0x7f7e_4002]);
    assert_eq!(int8.scales, [1.0]);
    // absmax 7 / 8: step 0.875, codes rhe(-8, -6.86, -5.71, -4.57, -3.43, -2.29, -1.14, 0).
    let row = encode(Scheme::Int4Row, &ramp, 1, 8);
    assert_eq!(row.words, [pack([-8, -7, -6, -5, -3, -2, -1, 0])]);
    // Range 7: step 7 / 15, zero point 15, codes 15 + rhe(w * 15 / 7).
    let asym = encode(Scheme::Int4Asym { group: 128 }, &ramp, 1, 8);
    assert_eq!(asym.words, [pack([0, 2, 4, 6, 9, 11, 13, 15])]);
    assert_eq!(asym.scales, [7.0 / 15.0, 15.0]);
    // Over absmax 7: -1, -.857, -.714, -.571, -.429, -.286, -.143, 0.
    let nf4 = encode(Scheme::Nf4B64, &ramp, 1, 8);
    assert_eq!(nf4.words, [pack([0, 0, 1, 2, 3, 4, 5, 7])]);
    let fp4 = encode(Scheme::Fp4B64, &ramp, 1, 8);
    assert_eq!(fp4.words, [pack([11, 11, 10, 13, 13, 15, 14, 0])]);
}

fn pack(codes: [i32; 8]) -> u32 {
    codes.iter().rev().fold(0, |word, code| word << 4 | code.cast_unsigned() & 15)
}

#[test]
fn groups_of_zeros_and_of_tiny_weights_are_zeros() {
    let tiny = TINY / 4.0; // the range of tiny and -tiny is still below TINY
    for scheme in QUANTIZING {
        for weights in [vec![0.0; 3 * 136], vec![-0.0; 3 * 136], [tiny, -tiny].repeat(3 * 68)] {
            let packed = encode(scheme, &weights, 3, 136);
            assert!(packed.words.iter().all(|&word| word == 0), "{scheme}");
            assert!(packed.scales.iter().all(|scale| scale.to_bits() == 0), "{scheme}");
            assert!(decode(&packed).iter().all(|&weight| weight == 0.0), "{scheme}");
        }
    }
}

/// The error is at most half a step where nothing is clamped or shifted, so codes, scales, groups and
/// decoding belong together, over ragged shapes.
#[test]
fn decoding_gives_the_nearest_value() {
    let mut noise = Noise(19);
    for (rows, cols) in [(1, 8), (3, 24), (5, 200), (2, 4096), (300, 64), (1, 16_640)] {
        let weights = noise.matrix(rows * cols);
        for scheme in QUANTIZING {
            let packed = encode(scheme, &weights, rows, cols);
            let grouping = scheme.grouping(rows, cols).unwrap();
            let per_group = scheme.values_per_group();
            assert_eq!(packed.scales.len(), grouping.count * per_group);
            for (index, (&weight, decoded)) in weights.iter().zip(decode(&packed)).enumerate() {
                let scale = packed.scales[grouping.of(index) * per_group];
                let steps = match scheme {
                    Scheme::Int4Row => 1.0, // absmax itself is 8 steps
                    // Half the widest gap of the tables, over absmax.
                    Scheme::Fp4B64 | Scheme::Nf4B64 => 1.0 / 6.0,
                    // Two roundings of half a step: the weight's and the zero point's, at the range's ends.
                    Scheme::Int4Asym { .. } => 1.0,
                    _ => 0.5,
                };
                // Half ulps of the scale, of the edge and of the decoded product; 2^-8 where the source is
                // rounded to bf16 first.
                let rounding = if steps < 0.5 { 1.0 / 256.0 } else { 2.0_f32.powi(-22) };
                let bound = steps * scale + rounding * weight.abs();
                assert!(
                    (weight - decoded).abs() <= bound,
                    "{scheme} [{rows}, {cols}] {index}: {weight} {decoded}"
                );
            }
        }
    }
}

#[test]
fn the_sign_of_an_fp4_zero_is_that_of_a_number_below_zero() {
    let signs =
        [0.0, -0.0, 1e-3, -1e-3, f32::from_bits(1), -f32::from_bits(1)].map(|w| table::fp4_code(w, 1.0));
    assert_eq!(signs, [0, 0, 0, 8, 0, 8]);
}

#[test]
fn an_empty_matrix_is_empty() {
    for scheme in Scheme::ALL {
        let packed = encode(scheme, &[], 0, 64);
        assert!(packed.words.is_empty() && packed.scales.is_empty() && decode(&packed).is_empty());
    }
}

#[test]
#[should_panic(expected = "multiple of 8")]
fn columns_that_do_not_fill_words_are_a_bug() {
    let _ = encode(Scheme::Int8, &[0.0; 12], 1, 12);
}

#[test]
fn extreme_weights_do_not_panic() {
    let weights = [f32::MAX, f32::MIN, 1.0, 0.0, -1.0, f32::MIN_POSITIVE, 1e38, -1e38];
    for scheme in Scheme::ALL {
        let packed = encode(scheme, &weights, 1, 8);
        assert!(decode(&packed).len() == 8, "{scheme}");
    }
    assert_eq!(scale::absmax(&weights), f32::MAX);
    // Checkpoints refuse such weights before they come here; still, no panic.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for scheme in Scheme::ALL {
            let packed = encode(scheme, &[bad, 1.0, -1.0, 0.0, bad, 2.0, 3.0, 4.0], 1, 8);
            assert!(decode(&packed).len() == 8, "{scheme}");
        }
    }
}
