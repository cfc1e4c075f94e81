// Causal attention with grouped KV heads, one new token a sequence.
//
//   q        [t, h + 2 g, e]  f32, of which the first h heads are queries, turned
//   cache_k  [slots, g, e]  in the cache format
//   cache_v  [slots, g, e]  in the cache format
//   table    [pages]        u32, the pages of every sequence
//   places   [t]            position, slot, first table entry of each token
//   out      [t, h, e]      f32
//
// out = softmax(q k^T scale) v over positions 0..=position of the token's own sequence. Query head i
// reads KV head i / (h / g). Grid: flat; a workgroup of WG lanes serves WG / 8 of the t h queries. Lane l
// of a query walks positions l, l + 8, ... with a running maximum of its own; then the lanes' sums are
// brought to their common maximum and added in order, eight quads at a time, lane j taking quad j.
//
// Links common/attention.wgsl, a cache format, common/index.wgsl and `const QUADS` = e / 4. f64 twin: kernels::attention.

// Lanes a query; kernels::attention has the same number.
const LANES: u32 = 8u;

// Each lane's maximum and sum of weights.
var<workgroup> states: array<vec2<f32>, WG>;
// Eight quads of each lane's sum of values.
var<workgroup> partial: array<vec4<f32>, WG * LANES>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = flat_workgroup(id) * (WG / LANES) + lane / LANES;
    let inside = index < params.t * params.heads;
    // Past the edge a lane repeats the last query with nothing to attend to, and stores nothing.
    let at = min(index, params.t * params.heads - 1u);
    let place = places[at / params.heads];
    let kv_head = at % params.heads / (params.heads / params.kv_heads);
    let count = select(0u, place.x + 1u, inside);
    let first = lane - lane % LANES;

    var query: array<vec4<f32>, QUADS>;
    var sum: array<vec4<f32>, QUADS>;
    for (var i = 0u; i < QUADS; i += 1u) {
        query[i] = q[query_quad(at / params.heads, at % params.heads) + i] * params.scale;
        sum[i] = vec4<f32>();
    }
    // Finite: with fast math a device may not know infinity.
    var top = -3.0e38;
    var weight = 0.0;
    for (var position = lane % LANES; position < count; position += LANES) {
        let slot = table[place.z + position / PAGE] * PAGE + position % PAGE;
        let base = (slot * params.kv_heads + kv_head) * QUADS;
        var products = vec4<f32>();
        for (var i = 0u; i < QUADS; i += 1u) {
            products += query[i] * from_cache(cache_k[base + i]);
        }
        let score = dot(products, vec4<f32>(1.0));
        if score > top {
            let shrink = exp(top - score);
            weight *= shrink;
            for (var i = 0u; i < QUADS; i += 1u) {
                sum[i] *= shrink;
            }
            top = score;
        }
        let p = exp(score - top);
        weight += p;
        for (var i = 0u; i < QUADS; i += 1u) {
            sum[i] += p * from_cache(cache_v[base + i]);
        }
    }
    states[lane] = vec2<f32>(top, weight);
    workgroupBarrier();

    var joint = states[first].x;
    for (var i = 1u; i < LANES; i += 1u) {
        joint = max(joint, states[first + i].x);
    }
    // A lane without positions has weight 0 and sums of 0, whatever its factor.
    var total = 0.0;
    for (var i = 0u; i < LANES; i += 1u) {
        let state = states[first + i];
        total += state.y * exp(state.x - joint);
    }
    let factor = exp(top - joint);
    for (var quad = 0u; quad < QUADS; quad += LANES) {
        for (var j = 0u; j < min(LANES, QUADS - quad); j += 1u) {
            partial[lane * LANES + j] = sum[quad + j] * factor;
        }
        workgroupBarrier();
        let own = quad + lane % LANES;
        if own < QUADS && inside {
            var value = partial[first * LANES + lane % LANES];
            for (var i = 1u; i < LANES; i += 1u) {
                value += partial[(first + i) * LANES + lane % LANES];
            }
            out[index * QUADS + own] = value / total;
        }
        workgroupBarrier();
    }
}
