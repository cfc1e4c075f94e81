// Values and neighbours of int8, int4-gN and int4-row codes. Host twin: quant::neighbour.

override MIN_CODE: i32 = -8;
override MAX_CODE: i32 = 7;

const VALUES: u32 = 1u;

fn value_at(code: u32, group: vec2<f32>) -> f32 {
    let unused = 32u - 32u / PER_WORD;
    return f32(bitcast<i32>(code << unused) >> unused) * group.x;
}

// NONE at the end of the range.
fn neighbour(code: u32, up: bool) -> u32 {
    let unused = 32u - 32u / PER_WORD;
    let next = (bitcast<i32>(code << unused) >> unused) + select(-1, 1, up);
    return select(NONE, (bitcast<u32>(next) << unused) >> unused, next >= MIN_CODE && next <= MAX_CODE);
}
