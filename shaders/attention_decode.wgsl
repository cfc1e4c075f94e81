// Causal attention with grouped KV heads, one new token a sequence.
//
//   q        [t, h, e]      f32, turned
//   cache_k  [slots, g, e]  f32
//   cache_v  [slots, g, e]  f32
//   table    [pages]        u32, the pages of every sequence
//   places   [t]            position, slot, first table entry of each token
//   out      [t, h, e]      f32
//
// out = softmax(q k^T scale) v over positions 0..=position of the token's own sequence. Query head i
// reads KV head i / (h / g). Grid: (t, h) workgroups of WG lanes. The positions are taken WG at a
// time: each lane scores one, their maximum and sum are found as trees, then lane i < e / 4 adds up
// quad i of the values in order.
//
// Links `const QUADS` = e / 4, at most WG, and common/reduce.wgsl. f64 twin: kernels::attention.

struct Params {
    t: u32, // tokens
    heads: u32, // h
    kv_heads: u32, // g
    scale: f32, // 1 / sqrt(e)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache_k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> cache_v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

override WG: u32 = 64u;
override LANES: u32 = 64u;
// Tokens a page; model::PAGE.
override PAGE: u32 = 16u;

var<workgroup> scores: array<f32, WG>;
var<workgroup> slots: array<u32, WG>;
// The place's position and table, the same for all lanes.
var<workgroup> shared_place: vec2<u32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = id.x;
    let head = id.y;
    if lane == 0u {
        shared_place = places[token].xz;
    }
    let place = workgroupUniformLoad(&shared_place);
    let count = place.x + 1u;
    let kv_head = head / (params.heads / params.kv_heads);
    let at = (token * params.heads + head) * QUADS;

    var sum = vec4<f32>();
    // Finite: with fast math a device may not know infinity.
    var top = -3.0e38;
    var weight = 0.0;
    for (var first = 0u; first < count; first += WG) {
        let position = first + lane;
        var score = -3.0e38;
        if position < count {
            let slot = table[place.y + position / PAGE] * PAGE + position % PAGE;
            let base = (slot * params.kv_heads + kv_head) * QUADS;
            var products = vec4<f32>();
            for (var i = 0u; i < QUADS; i += 1u) {
                products += q[at + i] * params.scale * cache_k[base + i];
            }
            score = dot(products, vec4<f32>(1.0));
            slots[lane] = base;
        }
        scores[lane] = score;
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if lane < half {
                scores[lane] = max(scores[lane], scores[lane + half]);
            }
            workgroupBarrier();
        }
        let peak = max(top, scores[0]);
        workgroupBarrier();

        let p = select(0.0, exp(score - peak), position < count);
        scores[lane] = p;
        let shrink = exp(top - peak);
        weight = weight * shrink + sum_lanes(lane, vec4<f32>(p)).x;
        sum *= shrink;
        top = peak;
        if lane < QUADS {
            let end = min(count - first, WG);
            for (var j = 0u; j < end; j += 1u) {
                sum += scores[j] * cache_v[slots[j] + lane];
            }
        }
        workgroupBarrier();
    }
    if lane < QUADS {
        out[at + lane] = sum / weight;
    }
}
