// Weights of both sides as stored, each in its own dtype. Links common/half.wgsl.

@group(0) @binding(1) var<storage, read> raw_t: array<u32>;
@group(0) @binding(2) var<storage, read> raw_u: array<u32>;

// 0 is f32, 1 f16, 2 bf16.
override DTYPE_T: u32 = 0u;
override DTYPE_U: u32 = 0u;

fn weights_t(quad: u32) -> vec4<f32> {
    if DTYPE_T == 0u {
        let i = 4u * quad;
        return bitcast<vec4<f32>>(vec4<u32>(raw_t[i], raw_t[i + 1u], raw_t[i + 2u], raw_t[i + 3u]));
    }
    return widened(vec2<u32>(raw_t[2u * quad], raw_t[2u * quad + 1u]), DTYPE_T == 1u);
}

fn weights_u(quad: u32) -> vec4<f32> {
    if DTYPE_U == 0u {
        let i = 4u * quad;
        return bitcast<vec4<f32>>(vec4<u32>(raw_u[i], raw_u[i + 1u], raw_u[i + 2u], raw_u[i + 3u]));
    }
    return widened(vec2<u32>(raw_u[2u * quad], raw_u[2u * quad + 1u]), DTYPE_U == 1u);
}

fn widened(words: vec2<u32>, half: bool) -> vec4<f32> {
    if half {
        return vec4<f32>(widen_f16(words.x), widen_f16(words.y));
    }
    return vec4<f32>(widen_bf16(words.x), widen_bf16(words.y));
}
