// Turns queries and keys by their positions, and puts keys and values into the cache.
//
//   places   [t]            position, slot, first table entry of each token
//   rotary   [positions, e / 2]  cosine, sine
//   qkv      [t, h + 2 g, e]  f32, queries, keys, values; the queries are turned in place
//   cache_k  [slots, g, e]  in the cache format
//   cache_v  [slots, g, e]  in the cache format
//
// Half-split pairs: element i turns with element i + e / 2. Grid: flat, one lane for each two neighbours
// i, i + 1 of the t (h + 2 g) first halves of q, k and v, since a word of the cache may hold two elements.
// One rounding a product and a sum: exact to 3 ulp of |a| + |b|; then the cache format's own.
//
// Links common/index.wgsl and a cache format. f64 twin: kernels::rope.

struct Params {
    t: u32, // tokens
    heads: u32, // h
    kv_heads: u32, // g
    quarter: u32, // e / 4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> rotary: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> qkv: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> cache_k: array<CachePair>;
@group(0) @binding(5) var<storage, read_write> cache_v: array<CachePair>;

override WG: u32 = 64u;

// The pairs (a.x, b.x) and (a.y, b.y) turned by angles of which `turn` is cosine and sine, one after the other.
fn turned(a: vec2<f32>, b: vec2<f32>, turn: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(a * turn.xz - b * turn.yw, b * turn.xz + a * turn.yw);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * WG + lane;
    let heads = params.heads + 2u * params.kv_heads;
    let quarter = params.quarter;
    let i = index % quarter;
    let head = index / quarter % heads;
    let token = index / quarter / heads;
    if token >= params.t {
        return;
    }
    let place = places[token];
    let turn = rotary[place.x * quarter + i];

    let at = (token * heads + head) * 2u * quarter + i;
    if head < params.heads {
        let pairs = turned(qkv[at], qkv[at + quarter], turn);
        qkv[at] = pairs.xy;
        qkv[at + quarter] = pairs.zw;
        return;
    }
    let kv_head = (head - params.heads) % params.kv_heads;
    let slot = (place.y * params.kv_heads + kv_head) * 2u * quarter + i;
    if head < params.heads + params.kv_heads {
        let pairs = turned(qkv[at], qkv[at + quarter], turn);
        cache_k[slot] = to_cache(pairs.xy);
        cache_k[slot + quarter] = to_cache(pairs.zw);
    } else {
        cache_v[slot] = to_cache(qkv[at]);
        cache_v[slot + quarter] = to_cache(qkv[at + quarter]);
    }
}
