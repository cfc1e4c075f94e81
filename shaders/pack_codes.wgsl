// The codes of a weight matrix, given its groups' scales.
//
//   raw     [n, k]            f32, f16 or bf16, as stored
//   scales  [groups, VALUES]  f32
//   codes   [n k / PER_WORD]  u32, PER_WORD codes of 32 / PER_WORD bits, lowest first
//
// Grid: flat, one lane a word; a word never straddles groups.
//
// Links common/index.wgsl, one of sources/*.wgsl and one of encodings/*.wgsl.
// Host twin: quant::encode.

struct Params {
    words: u32, // in the matrix
    row_len: u32, // weights in a row that groups are cut from
    group: u32, // weights in a full group
    per_row: u32, // groups in a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;

override WG: u32 = 64u;
override PER_WORD: u32 = 8u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * WG + lane;
    if index >= params.words {
        return;
    }
    let first = index * PER_WORD;
    let group = first / params.row_len * params.per_row + first % params.row_len / params.group;
    var values = vec2<f32>(scales[group * VALUES], 0.0);
    if VALUES == 2u {
        values.y = scales[group * VALUES + 1u];
    }

    let bits = 32u / PER_WORD;
    let mask = (1u << bits) - 1u;
    var word = 0u;
    for (var i = 0u; i < PER_WORD; i += 1u) {
        let code = code_of(prepare(source(first + i)), values);
        word |= (code & mask) << (i * bits);
    }
    codes[index] = word;
}
