// KV cache format f32: values as they are.
//
// Host twin: kernels::KvFormat.

// Two neighbouring elements, as rope writes them, and four, as attention reads them.
alias CachePair = vec2<f32>;
alias CacheQuad = vec4<f32>;

fn to_cache(pair: vec2<f32>) -> CachePair {
    return pair;
}

fn from_cache(quad: CacheQuad) -> vec4<f32> {
    return quad;
}
