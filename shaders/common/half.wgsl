// f16 and bf16 pairs to f32, exactly.
//
// `unpack2x16float` may flush subnormal halves to zero, so f16 is widened with integers.

// Two halves, low one first.
fn widen_f16(word: u32) -> vec2<f32> {
    let bits = vec2<u32>(word & 0xffffu, word >> 16u);
    let magnitude = bits & vec2<u32>(0x7fffu);
    // The exponent's bias goes from 15 to 127; halves below 2^-14 have none and are k * 2^-24.
    let normal = bitcast<vec2<f32>>((magnitude << vec2<u32>(13u)) + vec2<u32>(0x38000000u));
    let tiny = vec2<f32>(magnitude) * 5.9604644775390625e-8;
    let value = select(normal, tiny, magnitude < vec2<u32>(0x400u));
    let sign = (bits & vec2<u32>(0x8000u)) << vec2<u32>(16u);
    return bitcast<vec2<f32>>(bitcast<vec2<u32>>(value) | sign);
}

// Two bfloat16 values, low one first.
fn widen_bf16(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}
