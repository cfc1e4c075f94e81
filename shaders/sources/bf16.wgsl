// Source dtype bf16, two a word, low one first. Links common/half.wgsl.

@group(0) @binding(1) var<storage, read> raw: array<u32>;

fn source(i: u32) -> f32 {
    return widen_bf16(raw[i / 2u])[i % 2u];
}
