// What both attention kernels declare: their parameters and operands, and how the cache is paged.
//
// Links a cache format and `const QUADS` = e / 4.

struct Params {
    t: u32, // tokens
    heads: u32, // h
    kv_heads: u32, // g
    scale: f32, // 1 / sqrt(e)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache_k: array<CacheQuad>;
@group(0) @binding(3) var<storage, read> cache_v: array<CacheQuad>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

override WG: u32 = 64u;
// Tokens a page; model::PAGE.
override PAGE: u32 = 16u;

// Where a token's query is in q, which has keys and values beside it.
fn query_quad(token: u32, head: u32) -> u32 {
    return (token * (params.heads + 2u * params.kv_heads) + head) * QUADS;
}
