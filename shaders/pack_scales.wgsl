// The scale (and zero point) of every group of a weight matrix.
//
//   raw     [n, k]            f32, f16 or bf16, as stored
//   scales  [groups, VALUES]  f32
//
// Grid: flat; a workgroup of WG lanes serves WG / LANES groups. The lanes of a group look at every
// LANES-th weight and find minimum and maximum as a tree; the order cannot matter.
//
// Links common/index.wgsl, one of sources/*.wgsl and one of encodings/*.wgsl.
// Host twin: quant::encode.

struct Params {
    groups: u32, // in the matrix
    row_len: u32, // weights in a row that groups are cut from
    group: u32, // weights in a full group
    per_row: u32, // groups in a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

override WG: u32 = 64u;
override LANES: u32 = 64u;

// Minimum and maximum so far.
var<workgroup> range: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * (WG / LANES) + lane / LANES;
    let column = index % params.per_row * params.group;
    let first = index / params.per_row * params.row_len + column;
    var count = min(params.group, params.row_len - column);
    if index >= params.groups {
        count = 0u;
    }

    var lo = 0.0;
    var hi = 0.0;
    for (var i = lane % LANES; i < count; i += LANES) {
        let weight = prepare(source(first + i));
        lo = min(lo, weight);
        hi = max(hi, weight);
    }
    range[lane] = vec2<f32>(lo, hi);
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane % LANES) < half {
            let mine = range[lane];
            let other = range[lane + half];
            range[lane] = vec2<f32>(min(mine.x, other.x), max(mine.y, other.y));
        }
        workgroupBarrier();
    }
    if lane % LANES == 0u && index < params.groups {
        let values = group_values(range[lane].x, range[lane].y);
        scales[index * VALUES] = values.x;
        if VALUES == 2u {
            scales[index * VALUES + 1u] = values.y;
        }
    }
}
