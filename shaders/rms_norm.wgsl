// y = h / sqrt(mean(h^2) + eps) * gain.
//
//   h      [t, d]     f32, the residual stream
//   rows   [m]        u32, read where GATHER: row i of y comes from row rows[i] of h
//   gain   [d]        f32
//   y      [m, d]     f32
//
// Grid: flat; a workgroup of WG lanes serves WG / LANES rows of y. Lane l of a row takes the quads l,
// l + LANES, ...; the squares are summed in f32, and every lane adds up the lanes' sums in order.
//
// Links common/index.wgsl. f64 twin: kernels::rms_norm.

struct Params {
    rows: u32, // of y
    d: u32, // width, a multiple of 4
    eps: f32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> h: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

override WG: u32 = 64u;
override LANES: u32 = 8u;
override GATHER: bool = false;

// Each lane's sum of squares.
var<workgroup> squares: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * (WG / LANES) + lane / LANES;
    let inside = index < params.rows;
    var row = index;
    if GATHER && inside {
        row = rows[index];
    }
    let quads = params.d / 4u;
    let end = select(0u, quads, inside);

    var own = 0.0;
    for (var q = lane % LANES; q < end; q += LANES) {
        let value = h[row * quads + q];
        own += dot(value, value);
    }
    squares[lane] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < LANES; i += 1u) {
        sum += squares[lane - lane % LANES + i];
    }
    let factor = inverseSqrt(sum / f32(params.d) + params.eps);

    for (var q = lane % LANES; q < end; q += LANES) {
        y[index * quads + q] = h[row * quads + q] * factor * gain[q];
    }
}
