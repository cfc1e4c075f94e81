// Eight 4-bit codes of a word, lowest first.

struct Nibbles {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

fn unsigned_nibbles(word: u32) -> Nibbles {
    let shifts = vec4<u32>(0u, 4u, 8u, 12u);
    let mask = vec4<u32>(15u);
    return Nibbles((vec4<u32>(word) >> shifts) & mask, (vec4<u32>(word >> 16u) >> shifts) & mask);
}

// Two's complement.
fn signed_nibbles(word: u32) -> Oct {
    let up = vec4<u32>(28u, 24u, 20u, 16u);
    let down = vec4<u32>(28u);
    let lo = vec4<i32>(vec4<u32>(word) << up) >> down;
    let hi = vec4<i32>(vec4<u32>(word >> 16u) << up) >> down;
    return Oct(vec4<f32>(lo), vec4<f32>(hi));
}
