// Values and neighbours of FP4 codes. Links tables/fp4.wgsl. Host twin: quant::neighbour, and its FP4.

const VALUES: u32 = 1u;

fn value_at(code: u32, group: vec2<f32>) -> f32 {
    return value_of(vec4<u32>(code)).x * group.x;
}

// The codes by ascending value, a nibble each: 11 10 13 12 15 14 9 0, then 1 6 7 4 5 2 3. -0 stands where 0 does.
fn code_at(place: u32) -> u32 {
    let nibbles = select(0x03254761u, 0x09efcdabu, place < 8u);
    return (nibbles >> (place % 8u * 4u)) & 15u;
}

// NONE at the end of the range.
fn neighbour(code: u32, up: bool) -> u32 {
    var place = 7u;
    for (var i = 0u; i < 15u; i += 1u) {
        if code_at(i) == code {
            place = i;
        }
    }
    let next = place + select(0xffffffffu, 1u, up);
    return select(NONE, code_at(next), next < 15u);
}
