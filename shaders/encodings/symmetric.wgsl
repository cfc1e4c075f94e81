// Encoding of int8, int4-gN and int4-row. Links encodings/affine.wgsl.

const VALUES: u32 = 1u;

// Scale of a group whose weights lie in lo..hi, lo <= 0 <= hi.
fn group_values(lo: f32, hi: f32) -> vec2<f32> {
    return vec2<f32>(divide(max(hi, -lo)), 0.0);
}

fn code_of(weight: f32, group: vec2<f32>) -> u32 {
    if group.x == 0.0 {
        return 0u;
    }
    return bitcast<u32>(clamp(signed_code(weight, group.x), MIN_CODE, MAX_CODE));
}
