// Integers of 64 bits in two words, lowest first; signed ones in two's complement.

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn negated(a: vec2<u32>) -> vec2<u32> {
    return add(~a, vec2<u32>(1u, 0u));
}

fn is_negative(a: vec2<u32>) -> bool {
    return a.y >= 0x80000000u;
}

// Whether a < b, as signed numbers.
fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    let high = bitcast<vec2<i32>>(vec2<u32>(a.y, b.y));
    return high.x < high.y || (high.x == high.y && a.x < b.x);
}

// a / 2^by, by in 1..=31; a is not negative.
fn shifted_down(a: vec2<u32>, by: u32) -> vec2<u32> {
    return vec2<u32>((a.x >> by) | (a.y << (32u - by)), a.y >> by);
}

// The float of these bits (a magnitude), in units of 2^-40 of the power of two above floats with the exponent `unit`, cut
// to a whole number. Not greater than those; 0 for subnormal ones.
fn count(bits: u32, unit: u32) -> vec2<u32> {
    let exponent = bits >> 23u;
    if exponent == 0u || exponent + 39u < unit {
        return vec2<u32>(0u);
    }
    let mantissa = (bits & 0x007fffffu) | 0x00800000u;
    // 24 bits of mantissa and 16 more make 40.
    let up = i32(exponent + 16u) - i32(unit);
    if up > 0 {
        return vec2<u32>(mantissa << u32(up), mantissa >> (32u - u32(up)));
    }
    return vec2<u32>(mantissa >> u32(-up), 0u);
}
