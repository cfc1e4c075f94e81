// KV cache format f16: two halves a word, low one first.
//
// Rounded to nearest, ties to even, with integers, so that every device stores the same bits: what a
// conversion does with ties, subnormals and large values is the device's to choose. Magnitudes above 65504
// become 65504; NaN stays NaN.
//
// Links common/half.wgsl. Host twin: kernels::KvFormat.

// Two neighbouring elements, as rope writes them, and four, as attention reads them.
alias CachePair = u32;
alias CacheQuad = vec2<u32>;

// Bits of f32: 2^-14, the least normal half; 65504, the greatest half; infinity.
const LEAST_NORMAL: u32 = 0x38800000u;
const GREATEST: u32 = 0x477fe000u;
const INFINITE: u32 = 0x7f800000u;

fn to_cache(pair: vec2<f32>) -> CachePair {
    let bits = bitcast<vec2<u32>>(pair);
    let whole = bits & vec2<u32>(0x7fffffffu);
    let magnitude = min(whole, vec2<u32>(GREATEST));
    // The exponent's bias goes from 127 to 15, ten bits of the mantissa stay.
    let rebased = magnitude - vec2<u32>(0x38000000u);
    let normal = (rebased + vec2<u32>(0xfffu) + ((rebased >> vec2<u32>(13u)) & vec2<u32>(1u))) >> vec2<u32>(13u);
    // Below that a half is a multiple of 2^-24; 25 places leave nothing of a mantissa.
    let mantissa = (magnitude & vec2<u32>(0x7fffffu)) | vec2<u32>(0x800000u);
    let places = min(vec2<u32>(126u) - min(magnitude >> vec2<u32>(23u), vec2<u32>(112u)), vec2<u32>(25u));
    let even = (mantissa >> places) & vec2<u32>(1u);
    let tiny = (mantissa + (vec2<u32>(1u) << (places - vec2<u32>(1u))) - vec2<u32>(1u) + even) >> places;
    let number = select(normal, tiny, magnitude < vec2<u32>(LEAST_NORMAL));
    let half = select(number, vec2<u32>(0x7e00u), whole > vec2<u32>(INFINITE));
    let signed = half | ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u));
    return signed.x | (signed.y << 16u);
}

fn from_cache(quad: CacheQuad) -> vec4<f32> {
    return vec4<f32>(widen_f16(quad.x), widen_f16(quad.y));
}
