// How fast this device copies: y = x.
//
//   x, y  [runs, PER_LANE WG, 4]  f32
//
// Grid: flat, a workgroup of WG lanes a run. Lane l of a run takes quad l LANE + i / 4 STEP + i mod 4 QUAD as its i-th;
// kernels::peak has the patterns, since what suits one device is slow on another.
//
// Links common/index.wgsl. Twin: x.

struct Params {
    runs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

override WG: u32 = 64u;
override PER_LANE: u32 = 32u; // a multiple of 4
override LANE: u32 = 1u;
override QUAD: u32 = 64u;
override STEP: u32 = 256u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let run = flat_workgroup(id);
    if run >= params.runs {
        return;
    }
    var at = run * PER_LANE * WG + lane * LANE;
    for (var i = 0u; i < PER_LANE; i += 4u) {
        let a = x[at];
        let b = x[at + QUAD];
        let c = x[at + 2u * QUAD];
        let d = x[at + 3u * QUAD];
        y[at] = a;
        y[at + QUAD] = b;
        y[at + 2u * QUAD] = c;
        y[at + 3u * QUAD] = d;
        at += STEP;
    }
}
