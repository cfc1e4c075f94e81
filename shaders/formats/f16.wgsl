// Weight format f16: as stored, two halves a word, low half first. Links common/half.wgsl.

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let w = weights[row * (params.k / 8u) + oct];
    return Oct(vec4<f32>(widen_f16(w.x), widen_f16(w.y)), vec4<f32>(widen_f16(w.z), widen_f16(w.w)));
}
