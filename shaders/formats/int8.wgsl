// Weight format int8: four two's-complement bytes a word, lowest first, one scale a row.
//
// w = code * scale. Links common/group_row.wgsl.

@group(0) @binding(1) var<storage, read> weights: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

fn load_oct(row: u32, oct: u32) -> Oct {
    let w = weights[row * (params.k / 8u) + oct];
    let scale = scales[group_of(row, oct)];
    return Oct(signed_bytes(w.x) * scale, signed_bytes(w.y) * scale);
}
