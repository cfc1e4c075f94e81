// Encoding of fp4-b64 and nf4-b64. Links tables/*.wgsl, which gives `index_of`.
//
// Host twin: quant::table.

const VALUES: u32 = 1u;

// quant::scale::TINY, 2^-90.
const TINY: f32 = 8.077935669463161e-28;

// To bf16, half to even. Twin: round_to_bf16.
fn prepare(weight: f32) -> f32 {
    let bits = bitcast<u32>(weight);
    return bitcast<f32>((bits + 0x7fffu + ((bits >> 16u) & 1u)) & 0xffff0000u);
}

fn group_values(lo: f32, hi: f32) -> vec2<f32> {
    let absmax = max(hi, -lo);
    return vec2<f32>(select(absmax, 0.0, absmax < TINY), 0.0);
}

fn code_of(weight: f32, group: vec2<f32>) -> u32 {
    if group.x == 0.0 {
        return 0u;
    }
    return index_of(weight, group.x);
}
