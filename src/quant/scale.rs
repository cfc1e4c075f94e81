//! Scales by exact integer division, and codes settled by multiplication.
//!
//! Everything here is written so that a device can repeat it bit for bit. WGSL promises `/` only to
//! 2.5 ulp and may flush subnormals, so:
//!
//! - a scale is a quotient computed on the mantissa, as u32 integers ([`divide`]);
//! - a code is guessed with a reciprocal and then settled with correctly rounded products
//!   ([`settle`]), so the reciprocal's error cannot show;
//! - a group whose absmax (or range) is below [`TINY`] counts as zeros: scale 0, zero point 0, codes
//!   0. Then every scale, half step and threshold that is compared with is a normal number, and it
//!   does not matter whether the device flushes.
//!
//! Weights of 2^120 and above are outside the promise: they are encoded here, but a device's
//! reciprocal of such a scale may flush.

/// A group whose absmax (or range) is less than this counts as zeros; 2^-90, about 8e-28.
///
/// No trained weight is that small: the least positive f16 is 2^-24.
pub const TINY: f32 = f32::from_bits(37 << 23);

/// The integers of an affine scheme. The step between two codes is `absmax * 2^doublings / divisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The step's divisor, 1..=128.
    pub divisor: u32,
    /// How often the step is doubled: 1 makes `absmax / 7.5` out of `absmax / 15`.
    pub doublings: u32,
    /// Least code.
    pub min: i32,
    /// Greatest code.
    pub max: i32,
}

/// `int8`: absmax / 127.
pub const INT8: Grid = Grid { divisor: 127, doublings: 0, min: -127, max: 127 };
/// `int4-gN`: absmax / 7.5.
pub const INT4: Grid = Grid { divisor: 15, doublings: 1, min: -8, max: 7 };
/// `int4-row`: absmax / 8.
pub const INT4_ROW: Grid = Grid { divisor: 8, doublings: 0, min: -8, max: 7 };
/// `int4-asym-gN`: range / 15; codes and zero points.
pub const INT4_ASYM: Grid = Grid { divisor: 15, doublings: 0, min: 0, max: 15 };

/// `x * 2^doublings / divisor`, correctly rounded to f32 (half to even); 0 if `x` is below [`TINY`].
///
/// `x` is not negative and finite, `divisor` in 1..=128, `doublings` at most 1.
///
/// The 24-bit mantissa, shifted up by 8, is divided as a u32. The integer quotient has 25 to 32 bits; it is
/// rounded to 24 by adding half a unit. That is half-to-even: no quotient lies exactly between two f32
/// values, since one that ends at all has no more significant bits than the mantissa.
#[must_use]
pub fn divide(x: f32, divisor: u32, doublings: u32) -> f32 {
    if x < TINY {
        return 0.0;
    }
    let bits = x.to_bits();
    let mantissa = (bits & 0x007f_ffff) | 0x0080_0000;
    let quotient = (mantissa << 8) / divisor;
    let zeros = quotient.leading_zeros(); // 0..=7
    let shift = 8 - zeros;
    let rounded = (quotient + (1 << (shift - 1))) >> shift; // 2^23..=2^24
    // TINY keeps the exponent positive. A mantissa of 2^24 carries into it, as it should.
    let exponent = (bits >> 23) - zeros + doublings;
    f32::from_bits((exponent << 23) + rounded - 0x0080_0000)
}

/// Whether `magnitude` rounds to `code` or less: it is below `(code + 0.5) * step`, or equal to it
/// and `code` is even. The product is one f32 multiplication (`code + 0.5` is exact).
fn at_most(magnitude: f32, code: u32, step: f32) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "codes are below 256")]
    let edge = (code as f32 + 0.5) * step;
    magnitude < edge || (magnitude == edge && code & 1 == 0)
}

/// The code of `magnitude` on a grid of `step`, from a `candidate` that is off by at most 1.
///
/// **Definition.** The code is the least `c >= 0` for which `magnitude < (c + 0.5) * step`, or
/// `magnitude == (c + 0.5) * step` and `c` is even; each product rounded to f32 once.
///
/// The products grow strictly with `c` (`c` has 8 bits, f32 has 24), so once the condition holds it
/// holds for every greater `c`. Looking at `candidate - 1` and `candidate` is therefore enough:
///
/// | candidate | condition at `candidate - 1` | at `candidate` | result |
/// |---|---|---|---|
/// | code | false | true | candidate |
/// | code + 1 | **true** | true | candidate - 1 |
/// | code - 1 | false | **false** | candidate + 1 |
///
/// `step` is positive.
#[must_use]
pub fn settle(magnitude: f32, candidate: u32, step: f32) -> u32 {
    if candidate > 0 && at_most(magnitude, candidate - 1, step) {
        candidate - 1
    } else if at_most(magnitude, candidate, step) {
        candidate
    } else {
        candidate.saturating_add(1)
    }
}

/// `magnitude / step`, rounded half to even by the rule of [`settle`]. `reciprocal` is about
/// `1 / step`.
#[must_use]
pub fn code_of_magnitude(magnitude: f32, step: f32, reciprocal: f32) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "truncation is the floor; a magnitude is at most 128 steps"
    )]
    let candidate = (magnitude * reciprocal + 0.5) as u32;
    settle(magnitude, candidate, step)
}

/// [`code_of_magnitude`] of `|weight|` with the sign of `weight`; not clamped.
#[must_use]
pub fn signed_code(weight: f32, step: f32, reciprocal: f32) -> i32 {
    let magnitude = code_of_magnitude(weight.abs(), step, reciprocal).cast_signed();
    if weight.is_sign_negative() { -magnitude } else { magnitude }
}

/// The greatest magnitude; 0 for no weights. The order does not matter.
#[must_use]
pub fn absmax(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |max, weight| weight.abs().max(max))
}

/// Symmetric codes of one group, and the step.
///
/// `emit` gets each weight's index and its code in `grid.min..=grid.max`.
pub(super) fn symmetric(weights: &[f32], grid: Grid, mut emit: impl FnMut(usize, i32)) -> f32 {
    let step = divide(absmax(weights), grid.divisor, grid.doublings);
    if step > 0.0 {
        let reciprocal = 1.0 / step;
        for (index, &weight) in weights.iter().enumerate() {
            emit(index, signed_code(weight, step, reciprocal).clamp(grid.min, grid.max));
        }
    }
    step
}

/// Codes of one group with a zero point; gives the step and the zero point.
///
/// `step = (max(hi, 0) - min(lo, 0)) / 15`, `zero = clamp(rhe(-lo / step))`,
/// `code = clamp(rhe(weight / step) + zero)`, `rhe` by [`signed_code`], clamped to 0..=15.
pub(super) fn asymmetric(weights: &[f32], grid: Grid, mut emit: impl FnMut(usize, i32)) -> (f32, i32) {
    let hi = weights.iter().fold(0.0_f32, |hi, &weight| weight.max(hi));
    let lo = weights.iter().fold(0.0_f32, |lo, &weight| weight.min(lo));
    // Two weights beyond half of f32's range could differ by infinity.
    let range = (hi - lo).min(f32::MAX);
    let step = divide(range, grid.divisor, grid.doublings);
    if step == 0.0 {
        return (0.0, 0);
    }
    let reciprocal = 1.0 / step;
    let zero = signed_code(-lo, step, reciprocal).clamp(grid.min, grid.max);
    for (index, &weight) in weights.iter().enumerate() {
        emit(index, (signed_code(weight, step, reciprocal) + zero).clamp(grid.min, grid.max));
    }
    (step, zero)
}
