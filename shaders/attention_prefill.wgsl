// Causal attention with grouped KV heads, many tokens a sequence.
//
//   q        [t, h + 2 g, e]  f32, of which the first h heads are queries, turned
//   cache_k  [slots, g, e]  in the cache format
//   cache_v  [slots, g, e]  in the cache format
//   table    [pages]        u32, the pages of every sequence
//   places   [t]            position, slot, first table entry of each token
//   out      [t, h, e]      f32
//
// out = softmax(q k^T scale) v over positions 0..=position of the token's own sequence. Query head i
// reads KV head i / (h / g). Grid: (ceil(t / WG), h); a lane owns one query and walks its positions
// in order with a running maximum (online softmax, arXiv 1805.02867), so that a token's result
// depends on nothing but its sequence.
//
// Links common/attention.wgsl, a cache format and `const QUADS` = e / 4. f64 twin: kernels::attention.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = id.x * WG + lane;
    let head = id.y;
    if token >= params.t {
        return;
    }
    let place = places[token];
    let kv_head = head / (params.heads / params.kv_heads);
    let at = (token * params.heads + head) * QUADS;

    var query: array<vec4<f32>, QUADS>;
    var sum: array<vec4<f32>, QUADS>;
    for (var i = 0u; i < QUADS; i += 1u) {
        query[i] = q[query_quad(token, head) + i] * params.scale;
        sum[i] = vec4<f32>();
    }
    // Finite: with fast math a device may not know infinity.
    var top = -3.0e38;
    var weight = 0.0;
    let count = place.x + 1u;
    for (var first = 0u; first < count; first += PAGE) {
        let slot = table[place.z + first / PAGE] * PAGE;
        let end = min(count - first, PAGE);
        for (var j = 0u; j < end; j += 1u) {
            let base = ((slot + j) * params.kv_heads + kv_head) * QUADS;
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
    }
    for (var i = 0u; i < QUADS; i += 1u) {
        out[at + i] = sum[i] / weight;
    }
}
