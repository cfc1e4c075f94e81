//! bitsandbytes' FP4 and NF4 tables and thresholds.
//!
//! Constants from `csrc/kernels.cu` of bitsandbytes (`dQuantizeFP4`, `dQuantizeNF4` and their
//! dequantizing tables). bitsandbytes compares `weight * (1 / absmax)` with a threshold; here
//! `weight` is compared with `threshold * absmax`, one correctly rounded product that every device
//! repeats. On bf16 weights the two can differ only where `weight / absmax` is a threshold exactly (n / 24
//! for FP4), where bitsandbytes' own backends differ from each other, and in the sign of an FP4 zero.

use super::scale::{TINY, absmax};

/// Weights that share an absmax.
pub const BLOCK: usize = 64;

/// Value of each FP4 code over its block's absmax. Bit 3 is the sign.
pub const FP4: [f32; 16] = [
    0.0,
    5.208_333_3e-3, // 1 / 192
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -5.208_333_3e-3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Ascending; a magnitude takes the FP4 code [`FP4_ORDER`]`[number of thresholds it exceeds]`.
pub const FP4_THRESHOLDS: [f32; 7] =
    [0.002_604_17, 0.085_937_5, 0.208_333_33, 0.291_666_67, 0.416_666_7, 0.583_333, 0.833_333_3];

/// The FP4 codes without sign, by ascending value.
pub const FP4_ORDER: [u32; 8] = [0b000, 0b001, 0b110, 0b111, 0b100, 0b101, 0b010, 0b011];

/// Value of each NF4 code over its block's absmax, ascending.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Ascending; the NF4 code is the number of thresholds that the weight exceeds.
pub const NF4_THRESHOLDS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_43,
    -0.234_607_4,
    -0.137_911_73,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_77,
    0.389_312_53,
    0.501_663_4,
    0.642_786_9,
    0.861_478_4,
];

/// Rounds a finite value to bf16, half to even, on its bits.
#[must_use]
pub fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// The FP4 code of a bf16 weight: `|weight| > threshold * absmax`, strictly; bit 3 if it is below 0.
#[must_use]
pub fn fp4_code(weight: f32, absmax: f32) -> u32 {
    let above = FP4_THRESHOLDS.iter().filter(|&&threshold| weight.abs() > threshold * absmax).count();
    // On the bits, because a device may take a subnormal for 0. The sign of -0 does not count.
    let sign = u32::from(weight.to_bits() > 0x8000_0000);
    FP4_ORDER[above] | sign << 3
}

/// The NF4 code of a bf16 weight: how often `weight > threshold * absmax`, strictly.
#[must_use]
pub fn nf4_code(weight: f32, absmax: f32) -> u32 {
    NF4_THRESHOLDS.iter().map(|&threshold| u32::from(weight > threshold * absmax)).sum()
}

/// Codes of one block, and its absmax; 0 (and nothing emitted) for a block of zeros.
///
/// The weights are rounded to bf16 first.
pub(super) fn block(
    weights: &[f32],
    code: impl Fn(f32, f32) -> u32,
    mut emit: impl FnMut(usize, u32),
) -> f32 {
    let mut rounded = [0.0; BLOCK];
    let rounded = &mut rounded[..weights.len()];
    for (rounded, &weight) in rounded.iter_mut().zip(weights) {
        *rounded = round_to_bf16(weight);
    }
    let absmax = absmax(rounded);
    if absmax < TINY {
        return 0.0;
    }
    for (index, &weight) in rounded.iter().enumerate() {
        emit(index, code(weight, absmax));
    }
    absmax
}
