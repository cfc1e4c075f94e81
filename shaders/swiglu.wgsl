// y = gate / (1 + exp(-gate)) * up.
//
//   gate, up, y  [t, f]  f32
//
// Grid: flat, one lane a quad.
//
// Links common/index.wgsl and common/silu.wgsl. f64 twin: kernels::swiglu.

struct Params {
    quads: u32, // t f / 4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

override WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * WG + lane;
    if index >= params.quads {
        return;
    }
    let g = gate[index];
    y[index] = vec4<f32>(silu(g.xy), silu(g.zw)) * up[index];
}
