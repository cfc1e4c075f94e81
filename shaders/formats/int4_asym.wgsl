// Weight format int4-asym-gN: eight unsigned nibbles a word, lowest first; pairs of scale and zero point.
//
// w = (code - zero) * scale. Links common/nibbles.wgsl and common/group_run.wgsl.

@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<f32>>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let codes = unsigned_nibbles(weights[row * (params.k / 8u) + oct]);
    let group = scales[group_of(row, oct)];
    let zero = vec4<f32>(group.y);
    return Oct((vec4<f32>(codes.lo) - zero) * group.x, (vec4<f32>(codes.hi) - zero) * group.x);
}
