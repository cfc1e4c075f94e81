// Values and neighbours of int4-asym-gN codes. Host twin: quant::neighbour.

const VALUES: u32 = 2u;

fn value_at(code: u32, group: vec2<f32>) -> f32 {
    return (f32(code) - group.y) * group.x;
}

// NONE at the end of the range.
fn neighbour(code: u32, up: bool) -> u32 {
    let next = code + select(0xffffffffu, 1u, up);
    return select(NONE, next, next < 16u);
}
