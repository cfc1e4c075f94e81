// Causal attention with grouped KV heads, one new token a sequence. A key or a value is read once for all queries
// that share it.
//
//   q        [t, h + 2 g, e]  f32, of which the first h heads are queries, turned
//   cache_k  [slots, g, e]  in the cache format
//   cache_v  [slots, g, e]  in the cache format
//   table    [pages]        u32, the pages of every sequence
//   places   [t]            position, slot, first table entry of each token
//   out      [t, h, e]      f32
//
// out = softmax(q k^T scale) v over positions 0..=position of the token's own sequence. Query head i
// reads KV head i / (h / g). Grid: flat; a workgroup of LANES lanes serves QUERIES query heads of one KV head.
// It walks the positions LANES at a time. First each lane has a position: it loads the key and multiplies it by all
// queries, of which the lanes hold parts and hand them to each other. Then each lane has quads of the values: it
// loads them position by position, and is handed the weights. The maximum is the workgroup's; the lanes' weights are
// added at the end, neighbours, pairs, fours, ...
//
// Subgroups may have any size from LANES up: a workgroup lies in one. LANES and QUERIES come from
// kernels::attention. Links common/attention.wgsl, a cache format, common/index.wgsl and `const QUADS` = e / 4.
// f64 twin: kernels::attention.

// Lanes that hold eight quads of a query together, quads of them a lane, and eights of a query.
const HOLDERS: u32 = min(LANES, 8u);
const HELD: u32 = 8u / HOLDERS;
const EIGHTS: u32 = (QUADS + 7u) / 8u;
// Quads of the values a lane.
const OWN: u32 = (QUADS + LANES - 1u) / LANES;

alias Query = array<array<vec4<f32>, HELD>, EIGHTS>;
// One for each query.
alias Numbers = array<f32, QUERIES>;

fn key_quad(base: u32, quad: u32) -> vec4<f32> {
    // Past the end the query is zero.
    return from_cache(cache_k[base + min(quad, QUADS - 1u)]);
}

fn value_quad(base: u32, quad: u32) -> vec4<f32> {
    return from_cache(cache_v[base + min(quad, QUADS - 1u)]);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
) {
    let index = flat_workgroup(id);
    let shares = params.heads / QUERIES;
    let token = index / shares;
    if token >= params.t {
        return;
    }
    let place = places[token];
    let head = index % shares * QUERIES;
    let kv_head = head / (params.heads / params.kv_heads);
    let count = place.x + 1u;
    let first_quad = (token * params.heads + head) * QUADS;

    var queries: array<Query, QUERIES>;
    var sums: array<array<vec4<f32>, OWN>, QUERIES>;
    var tops: Numbers;
    var totals: Numbers;
    for (var r = 0u; r < QUERIES; r += 1u) {
        for (var b = 0u; b < EIGHTS; b += 1u) {
            for (var i = 0u; i < HELD; i += 1u) {
                let quad = b * 8u + i * HOLDERS + lane % HOLDERS;
                let part = q[query_quad(token, head + r) + min(quad, QUADS - 1u)] * params.scale;
                queries[r][b][i] = select(vec4<f32>(), part, quad < QUADS);
            }
        }
        // Finite: with fast math a device may not know infinity.
        tops[r] = -3.0e38;
    }

    for (var first = 0u; first < count; first += LANES) {
        // Past the end a lane looks at the last position again, with weight 0.
        let position = min(first + lane, count - 1u);
        let inside = first + lane < count;
        let slot = table[place.z + position / PAGE] * PAGE + position % PAGE;
        let base = (slot * params.kv_heads + kv_head) * QUADS;

        var products: array<vec4<f32>, QUERIES>;
        for (var b = 0u; b < EIGHTS; b += 1u) {
            let k0 = key_quad(base, b * 8u + 0u);
            let k1 = key_quad(base, b * 8u + 1u);
            let k2 = key_quad(base, b * 8u + 2u);
            let k3 = key_quad(base, b * 8u + 3u);
            let k4 = key_quad(base, b * 8u + 4u);
            let k5 = key_quad(base, b * 8u + 5u);
            let k6 = key_quad(base, b * 8u + 6u);
            let k7 = key_quad(base, b * 8u + 7u);
            for (var r = 0u; r < QUERIES; r += 1u) {
                let part = queries[r][b];
                var sum = products[r];
                sum += subgroupBroadcast(part[0u / HOLDERS], 0u % HOLDERS) * k0;
                sum += subgroupBroadcast(part[1u / HOLDERS], 1u % HOLDERS) * k1;
                sum += subgroupBroadcast(part[2u / HOLDERS], 2u % HOLDERS) * k2;
                sum += subgroupBroadcast(part[3u / HOLDERS], 3u % HOLDERS) * k3;
                sum += subgroupBroadcast(part[4u / HOLDERS], 4u % HOLDERS) * k4;
                sum += subgroupBroadcast(part[5u / HOLDERS], 5u % HOLDERS) * k5;
                sum += subgroupBroadcast(part[6u / HOLDERS], 6u % HOLDERS) * k6;
                sum += subgroupBroadcast(part[7u / HOLDERS], 7u % HOLDERS) * k7;
                products[r] = sum;
            }
        }
        var weights: Numbers;
        for (var r = 0u; r < QUERIES; r += 1u) {
            let score = select(-3.0e38, dot(products[r], vec4<f32>(1.0)), inside);
            let top = max(tops[r], subgroupMax(score));
            let shrink = exp(tops[r] - top);
            let weight = select(0.0, exp(score - top), inside);
            tops[r] = top;
            weights[r] = weight;
            totals[r] = totals[r] * shrink + weight;
            for (var i = 0u; i < OWN; i += 1u) {
                sums[r][i] *= shrink;
            }
        }

        for (var chunk = 0u; chunk < LANES; chunk += HOLDERS) {
            // The chunk's weights and places, in its lanes or, with more lanes than eight, moved to the first ones.
            var near = weights;
            var at = base;
            if LANES > HOLDERS {
                at = subgroupShuffle(base, chunk + lane % HOLDERS);
                for (var r = 0u; r < QUERIES; r += 1u) {
                    near[r] = subgroupShuffle(weights[r], chunk + lane % HOLDERS);
                }
            }
            for (var i = 0u; i < OWN; i += 1u) {
                let own = i * LANES + lane;
                let v0 = value_quad(subgroupBroadcast(at, 0u), own);
                let v1 = value_quad(subgroupBroadcast(at, 1u), own);
                let v2 = value_quad(subgroupBroadcast(at, 2u), own);
                let v3 = value_quad(subgroupBroadcast(at, 3u), own);
                for (var r = 0u; r < QUERIES; r += 1u) {
                    sums[r][i] += subgroupBroadcast(near[r], 0u) * v0;
                    sums[r][i] += subgroupBroadcast(near[r], 1u) * v1;
                    sums[r][i] += subgroupBroadcast(near[r], 2u) * v2;
                    sums[r][i] += subgroupBroadcast(near[r], 3u) * v3;
                }
                if HOLDERS == 8u {
                    let v4 = value_quad(subgroupBroadcast(at, 4u % HOLDERS), own);
                    let v5 = value_quad(subgroupBroadcast(at, 5u % HOLDERS), own);
                    let v6 = value_quad(subgroupBroadcast(at, 6u % HOLDERS), own);
                    let v7 = value_quad(subgroupBroadcast(at, 7u % HOLDERS), own);
                    for (var r = 0u; r < QUERIES; r += 1u) {
                        sums[r][i] += subgroupBroadcast(near[r], 4u % HOLDERS) * v4;
                        sums[r][i] += subgroupBroadcast(near[r], 5u % HOLDERS) * v5;
                        sums[r][i] += subgroupBroadcast(near[r], 6u % HOLDERS) * v6;
                        sums[r][i] += subgroupBroadcast(near[r], 7u % HOLDERS) * v7;
                    }
                }
            }
        }
    }

    for (var r = 0u; r < QUERIES; r += 1u) {
        var total = totals[r];
        // Both sides of a pair add the same two numbers: all lanes end with the same bits.
        for (var apart = 1u; apart < LANES; apart *= 2u) {
            total += subgroupShuffleXor(total, apart);
        }
        if size < LANES {
            // Not the device that this form was chosen for: better no number than a wrong one.
            total = bitcast<f32>(params.t | 0x7fc00000u);
        }
        for (var i = 0u; i < OWN; i += 1u) {
            let quad = i * LANES + lane;
            if quad < QUADS {
                out[first_quad + r * QUADS + quad] = sums[r][i] / total;
            }
        }
    }
}
