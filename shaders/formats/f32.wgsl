// Weight format f32: as stored.

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let i = (row * (params.k / 8u) + oct) * 2u;
    return Oct(weights[i], weights[i + 1u]);
}
