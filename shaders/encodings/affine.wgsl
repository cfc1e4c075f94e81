// Scales by exact integer division, and codes settled by multiplication.
//
// Host twin, line by line, and the proofs: quant::scale.

// quant::scale::Grid.
override DIVISOR: u32 = 15u;
override DOUBLINGS: u32 = 1u;
override MIN_CODE: i32 = -8;
override MAX_CODE: i32 = 7;

// quant::scale::TINY, 2^-90.
const TINY: f32 = 8.077935669463161e-28;

// x * 2^DOUBLINGS / DIVISOR, correctly rounded; 0 below TINY. Twin: divide.
fn divide(x: f32) -> f32 {
    if x < TINY {
        return 0.0;
    }
    let bits = bitcast<u32>(x);
    let mantissa = (bits & 0x007fffffu) | 0x00800000u;
    let quotient = (mantissa << 8u) / DIVISOR;
    let zeros = countLeadingZeros(quotient);
    let shift = 8u - zeros;
    let rounded = (quotient + (1u << (shift - 1u))) >> shift;
    let exponent = (bits >> 23u) - zeros + DOUBLINGS;
    return bitcast<f32>((exponent << 23u) + rounded - 0x00800000u);
}

// Twin: at_most.
fn at_most(magnitude: f32, code: u32, step: f32) -> bool {
    let edge = (f32(code) + 0.5) * step;
    return magnitude < edge || (magnitude == edge && (code & 1u) == 0u);
}

// Twin: settle.
fn settle(magnitude: f32, candidate: u32, step: f32) -> u32 {
    if candidate > 0u && at_most(magnitude, candidate - 1u, step) {
        return candidate - 1u;
    }
    if at_most(magnitude, candidate, step) {
        return candidate;
    }
    return candidate + 1u;
}

// Twin: signed_code.
fn signed_code(weight: f32, step: f32) -> i32 {
    let candidate = u32(abs(weight) * (1.0 / step) + 0.5);
    let magnitude = i32(settle(abs(weight), candidate, step));
    return select(magnitude, -magnitude, weight < 0.0);
}

fn prepare(weight: f32) -> f32 {
    return weight;
}
