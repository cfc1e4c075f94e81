// How fast this device multiplies and adds: a = a m + c, over and over.
//
//   y  [lanes, 4]  f32, the sum of a lane's three accumulators
//
// Lane i starts from a = j + (0, 1, 2, 3) in its accumulator j and has c = 1 + i mod 64. With m = 1/2 every chain
// converges to 2 c. Twelve chains a lane: enough to hide the latency of an fma, few enough for 16 registers.
//
// Grid: flat, workgroups of WG lanes.
//
// Links common/index.wgsl. f64 twin: kernels::peak.

struct Params {
    rounds: u32, // of STEPS steps
    m: f32,      // not a constant, so that nothing is folded away
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

override WG: u32 = 64u;

// As in kernels::peak.
const STEPS: u32 = 16u;

struct Chains {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
}

fn four_steps(start: Chains, factor: vec4<f32>, addend: vec4<f32>) -> Chains {
    var s = start;
    s.a = fma(s.a, factor, addend);
    s.b = fma(s.b, factor, addend);
    s.c = fma(s.c, factor, addend);
    s.a = fma(s.a, factor, addend);
    s.b = fma(s.b, factor, addend);
    s.c = fma(s.c, factor, addend);
    s.a = fma(s.a, factor, addend);
    s.b = fma(s.b, factor, addend);
    s.c = fma(s.c, factor, addend);
    s.a = fma(s.a, factor, addend);
    s.b = fma(s.b, factor, addend);
    s.c = fma(s.c, factor, addend);
    return s;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * WG + lane;
    let factor = vec4<f32>(params.m);
    let addend = vec4<f32>(1.0 + f32(index % 64u));
    let first = vec4<f32>(0.0, 1.0, 2.0, 3.0);
    var s = Chains(first, first + 1.0, first + 2.0);
    for (var round = 0u; round < params.rounds; round += 1u) {
        s = four_steps(s, factor, addend);
        s = four_steps(s, factor, addend);
        s = four_steps(s, factor, addend);
        s = four_steps(s, factor, addend);
    }
    y[index] = s.a + s.b + s.c;
}
