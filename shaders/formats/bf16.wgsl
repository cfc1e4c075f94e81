// Weight format bf16: as stored, two values a word, low one first. Links common/half.wgsl.

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let w = weights[row * (params.k / 8u) + oct];
    return Oct(vec4<f32>(widen_bf16(w.x), widen_bf16(w.y)), vec4<f32>(widen_bf16(w.z), widen_bf16(w.w)));
}
