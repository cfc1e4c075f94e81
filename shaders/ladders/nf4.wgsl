// Values and neighbours of NF4 codes, which ascend. Links tables/nf4.wgsl. Host twin: quant::neighbour.

const VALUES: u32 = 1u;

fn value_at(code: u32, group: vec2<f32>) -> f32 {
    return value_of(vec4<u32>(code)).x * group.x;
}

// NONE at the end of the range.
fn neighbour(code: u32, up: bool) -> u32 {
    let next = code + select(0xffffffffu, 1u, up);
    return select(NONE, next, next < 16u);
}
