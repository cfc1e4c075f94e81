// Causal attention with grouped KV heads, many tokens a sequence. Keys and values are held across lanes.
//
//   q        [t, h + 2 g, e]  f32, of which the first h heads are queries, turned
//   cache_k  [slots, g, e]  in the cache format
//   cache_v  [slots, g, e]  in the cache format
//   table    [pages]        u32, the pages of every sequence
//   places   [t]            position, slot, first table entry of each token
//   out      [t, h, e]      f32
//
// out = softmax(q k^T scale) v over positions 0..=position of the token's own sequence. Query head i
// reads KV head i / (h / g). Grid: (ceil(t h / g / WG), g). A lane owns one query; the query heads of one KV
// head are neighbours. A subgroup walks the positions of its sequences, one after the other, in blocks of
// BLOCK: its first LANES lanes hold a part of each key and value and hand it to all, so that one load
// serves every query. Lanes after those hold the same again, so subgroups may have any size from LANES up.
// Each lane keeps a running maximum from block to block (online softmax, arXiv 1805.02867). Blocks begin
// at multiples of BLOCK, and a block that a query does not look at leaves it as it is, so that a token's
// result depends on nothing but its sequence.
//
// Links common/attention.wgsl, a cache format, `const QUADS` = e / 4 and `const LANES`. f64 twin:
// kernels::attention.

// Positions handled together; pages hold a multiple.
const BLOCK: u32 = 4u;
// A head's quads in shares of LANES.
const SHARES: u32 = (QUADS + LANES - 1u) / LANES;

// Below every score, and finite: with fast math a device may not know infinity.
const LOWEST: f32 = -3.0e38;

// Four keys' or values' quads that this lane holds.
struct Block {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Adds the products of one quad of the query with the same quad of four keys.
fn add_products(sums: ptr<function, Block>, query: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    (*sums).a += query * a;
    (*sums).b += query * b;
    (*sums).c += query * c;
    (*sums).d += query * d;
}

fn weighted(sum: vec4<f32>, p: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(p.w), d, fma(vec4<f32>(p.z), c, fma(vec4<f32>(p.y), b, fma(vec4<f32>(p.x), a, sum))));
}

fn total(products: vec4<f32>) -> f32 {
    return (products.x + products.y) + (products.z + products.w);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    let group = params.heads / params.kv_heads;
    let kv_head = id.y;
    let index = id.x * WG + lane;
    let inside = index < params.t * group;
    // Past the edge a lane repeats the last query with nothing to attend to, and stores nothing.
    let place_of = min(index, params.t * group - 1u);
    let token = place_of / group;
    let place = places[token];
    let count = select(0u, place.x + 1u, inside);
    let head = kv_head * group + place_of % group;
    let at = (token * params.heads + head) * QUADS;
    let share = in_subgroup % LANES;

    var query: array<vec4<f32>, SHARES * LANES>;
    var sum: array<vec4<f32>, SHARES * LANES>;
    for (var i = 0u; i < SHARES * LANES; i += 1u) {
        // Where there are no more quads the last one again, times 0.
        query[i] = q[query_quad(token, head) + min(i, QUADS - 1u)] * select(0.0, params.scale, i < QUADS);
        sum[i] = vec4<f32>();
    }
    var top = LOWEST;
    var weight = 0.0;

    var pending = inside;
    for (var turn = 0u; turn < size && subgroupAny(pending); turn += 1u) {
        let sequence = subgroupMin(select(0xffffffffu, place.z, pending));
        let mine = pending && place.z == sequence;
        let own = select(0u, count, mine);
        let end = subgroupMax(own);
        for (var first = 0u; first < end; first += BLOCK) {
            let slot = table[sequence + first / PAGE] * PAGE + first % PAGE;
            // Past the end the last position again, for which no lane has a weight.
            let slots = vec4<u32>(slot) + min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u - first));
            let bases = (slots * params.kv_heads + vec4<u32>(kv_head)) * QUADS;

            // Loops of their own: drivers unroll short bodies only, and arrays live in registers only then.
            var held: array<Block, SHARES>;
            for (var i = 0u; i < SHARES; i += 1u) {
                let quads = bases + vec4<u32>(min(i * LANES + share, QUADS - 1u));
                held[i] = Block(
                    from_cache(cache_k[quads.x]),
                    from_cache(cache_k[quads.y]),
                    from_cache(cache_k[quads.z]),
                    from_cache(cache_k[quads.w]),
                );
            }
            var products: Block;
            for (var i = 0u; i < SHARES; i += 1u) {
                let k = held[i];
                add_products(&products, query[i * LANES + 0u], subgroupBroadcast(k.a, 0u), subgroupBroadcast(k.b, 0u), subgroupBroadcast(k.c, 0u), subgroupBroadcast(k.d, 0u));
                add_products(&products, query[i * LANES + 1u], subgroupBroadcast(k.a, 1u), subgroupBroadcast(k.b, 1u), subgroupBroadcast(k.c, 1u), subgroupBroadcast(k.d, 1u));
                add_products(&products, query[i * LANES + 2u], subgroupBroadcast(k.a, 2u), subgroupBroadcast(k.b, 2u), subgroupBroadcast(k.c, 2u), subgroupBroadcast(k.d, 2u));
                add_products(&products, query[i * LANES + 3u], subgroupBroadcast(k.a, 3u), subgroupBroadcast(k.b, 3u), subgroupBroadcast(k.c, 3u), subgroupBroadcast(k.d, 3u));
                if LANES > 4u {
                    add_products(&products, query[i * LANES + 4u], subgroupBroadcast(k.a, 4u), subgroupBroadcast(k.b, 4u), subgroupBroadcast(k.c, 4u), subgroupBroadcast(k.d, 4u));
                    add_products(&products, query[i * LANES + 5u], subgroupBroadcast(k.a, 5u), subgroupBroadcast(k.b, 5u), subgroupBroadcast(k.c, 5u), subgroupBroadcast(k.d, 5u));
                    add_products(&products, query[i * LANES + 6u], subgroupBroadcast(k.a, 6u), subgroupBroadcast(k.b, 6u), subgroupBroadcast(k.c, 6u), subgroupBroadcast(k.d, 6u));
                    add_products(&products, query[i * LANES + 7u], subgroupBroadcast(k.a, 7u), subgroupBroadcast(k.b, 7u), subgroupBroadcast(k.c, 7u), subgroupBroadcast(k.d, 7u));
                }
            }
            let looked_at = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(own);
            let found = vec4<f32>(total(products.a), total(products.b), total(products.c), total(products.d));
            let scores = select(vec4<f32>(LOWEST), found, looked_at);
            let highest = max(max(scores.x, scores.y), max(scores.z, scores.w));
            if highest > top {
                let shrink = exp(top - highest);
                weight *= shrink;
                for (var i = 0u; i < SHARES * LANES; i += 1u) {
                    sum[i] *= shrink;
                }
                top = highest;
            }
            let p = select(vec4<f32>(), exp(scores - vec4<f32>(top)), looked_at);
            weight += total(p);
            for (var i = 0u; i < SHARES; i += 1u) {
                let quads = bases + vec4<u32>(min(i * LANES + share, QUADS - 1u));
                held[i] = Block(
                    from_cache(cache_v[quads.x]),
                    from_cache(cache_v[quads.y]),
                    from_cache(cache_v[quads.z]),
                    from_cache(cache_v[quads.w]),
                );
            }
            for (var i = 0u; i < SHARES; i += 1u) {
                let v = held[i];
                let o = i * LANES;
                sum[o + 0u] = weighted(sum[o + 0u], p, subgroupBroadcast(v.a, 0u), subgroupBroadcast(v.b, 0u), subgroupBroadcast(v.c, 0u), subgroupBroadcast(v.d, 0u));
                sum[o + 1u] = weighted(sum[o + 1u], p, subgroupBroadcast(v.a, 1u), subgroupBroadcast(v.b, 1u), subgroupBroadcast(v.c, 1u), subgroupBroadcast(v.d, 1u));
                sum[o + 2u] = weighted(sum[o + 2u], p, subgroupBroadcast(v.a, 2u), subgroupBroadcast(v.b, 2u), subgroupBroadcast(v.c, 2u), subgroupBroadcast(v.d, 2u));
                sum[o + 3u] = weighted(sum[o + 3u], p, subgroupBroadcast(v.a, 3u), subgroupBroadcast(v.b, 3u), subgroupBroadcast(v.c, 3u), subgroupBroadcast(v.d, 3u));
                if LANES > 4u {
                    sum[o + 4u] = weighted(sum[o + 4u], p, subgroupBroadcast(v.a, 4u), subgroupBroadcast(v.b, 4u), subgroupBroadcast(v.c, 4u), subgroupBroadcast(v.d, 4u));
                    sum[o + 5u] = weighted(sum[o + 5u], p, subgroupBroadcast(v.a, 5u), subgroupBroadcast(v.b, 5u), subgroupBroadcast(v.c, 5u), subgroupBroadcast(v.d, 5u));
                    sum[o + 6u] = weighted(sum[o + 6u], p, subgroupBroadcast(v.a, 6u), subgroupBroadcast(v.b, 6u), subgroupBroadcast(v.c, 6u), subgroupBroadcast(v.d, 6u));
                    sum[o + 7u] = weighted(sum[o + 7u], p, subgroupBroadcast(v.a, 7u), subgroupBroadcast(v.b, 7u), subgroupBroadcast(v.c, 7u), subgroupBroadcast(v.d, 7u));
                }
            }
        }
        pending = pending && !mine;
    }
    if !inside {
        return;
    }
    if size < LANES {
        // Not the device that this form was chosen for: better no number than a wrong one.
        weight = bitcast<f32>(params.t | 0x7fc00000u);
    }
    for (var i = 0u; i < QUADS; i += 1u) {
        out[at + i] = sum[i] / weight;
    }
}
