// Weight formats fp4-b64 and nf4-b64: eight table indices a word, lowest nibble first, one absmax for
// 64 neighbours of the flat row-major matrix.
//
// w = table[index] * absmax. Links common/nibbles.wgsl, common/group_flat.wgsl and tables/*.wgsl,
// which gives `value_of(indices)`.

@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let codes = unsigned_nibbles(weights[row * (params.k / 8u) + oct]);
    let scale = scales[group_of(row, oct)];
    return Oct(value_of(codes.lo) * scale, value_of(codes.hi) * scale);
}
