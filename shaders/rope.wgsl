// Turns queries and keys by their positions, and puts keys and values into the cache.
//
//   places   [t]            position, slot, first table entry of each token
//   rotary   [positions, e / 2]  cosine, sine
//   q        [t, h, e]      f32, turned in place
//   k, v     [t, g, e]      f32
//   cache_k  [slots, g, e]  f32
//   cache_v  [slots, g, e]  f32
//
// Half-split pairs: element i turns with element i + e / 2. Grid: flat, one lane for each of the
// t (h + 2 g) e / 2 pairs of q, k and v. One rounding a product and a sum: exact to 3 ulp of
// |a| + |b|.
//
// Links common/index.wgsl. f64 twin: kernels::rope.

struct Params {
    t: u32, // tokens
    heads: u32, // h
    kv_heads: u32, // g
    half: u32, // e / 2
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> rotary: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read> k: array<f32>;
@group(0) @binding(5) var<storage, read> v: array<f32>;
@group(0) @binding(6) var<storage, read_write> cache_k: array<f32>;
@group(0) @binding(7) var<storage, read_write> cache_v: array<f32>;

override WG: u32 = 64u;

// The pair (a, b) turned by an angle of which `turn` is cosine and sine.
fn turned(a: f32, b: f32, turn: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(a * turn.x - b * turn.y, b * turn.x + a * turn.y);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * WG + lane;
    let heads = params.heads + 2u * params.kv_heads;
    let i = index % params.half;
    let head = index / params.half % heads;
    let token = index / params.half / heads;
    if token >= params.t {
        return;
    }
    let place = places[token];
    let turn = rotary[place.x * params.half + i];

    if head < params.heads {
        let at = (token * params.heads + head) * 2u * params.half + i;
        let pair = turned(q[at], q[at + params.half], turn);
        q[at] = pair.x;
        q[at + params.half] = pair.y;
        return;
    }
    let kv_head = (head - params.heads) % params.kv_heads;
    let source = (token * params.kv_heads + kv_head) * 2u * params.half + i;
    let slot = (place.y * params.kv_heads + kv_head) * 2u * params.half + i;
    if head < params.heads + params.kv_heads {
        let pair = turned(k[source], k[source + params.half], turn);
        cache_k[slot] = pair.x;
        cache_k[slot + params.half] = pair.y;
    } else {
        cache_v[slot] = v[source];
        cache_v[slot + params.half] = v[source + params.half];
    }
}
