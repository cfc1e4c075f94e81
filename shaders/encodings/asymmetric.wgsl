// Encoding of int4-asym-gN. Links encodings/affine.wgsl.

const VALUES: u32 = 2u;

// Scale and zero point of a group whose weights lie in lo..hi, lo <= 0 <= hi.
fn group_values(lo: f32, hi: f32) -> vec2<f32> {
    let step = divide(min(hi - lo, 3.4028234663852886e38));
    if step == 0.0 {
        return vec2<f32>(0.0, 0.0);
    }
    return vec2<f32>(step, f32(clamp(signed_code(-lo, step), MIN_CODE, MAX_CODE)));
}

fn code_of(weight: f32, group: vec2<f32>) -> u32 {
    if group.x == 0.0 {
        return 0u;
    }
    return u32(clamp(signed_code(weight, group.x) + i32(group.y), MIN_CODE, MAX_CODE));
}
