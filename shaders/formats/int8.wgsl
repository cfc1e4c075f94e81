// Weight format int8: four two's-complement bytes a word, lowest first, one scale a row.
//
// w = code * scale. Links common/group_row.wgsl, and formats/read/pairs.wgsl or formats/read/pair_runs.wgsl.

alias Scale = f32;

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

fn decode(words: vec2<u32>, scale: Scale) -> Oct {
    return Oct(signed_bytes(words.x) * scale, signed_bytes(words.y) * scale);
}
