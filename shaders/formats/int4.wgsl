// Weight formats int4-gN and int4-row: eight two's-complement nibbles a word, lowest first.
//
// w = code * scale. Links common/nibbles.wgsl and common/group_run.wgsl or common/group_row.wgsl.

@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;

fn load_oct(row: u32, oct: u32) -> Oct {
    let codes = signed_nibbles(weights[row * (params.k / 8u) + oct]);
    let scale = scales[group_of(row, oct)];
    return Oct(codes.lo * scale, codes.hi * scale);
}
