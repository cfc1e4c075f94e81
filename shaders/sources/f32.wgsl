// Source dtype f32.

@group(0) @binding(1) var<storage, read> raw: array<f32>;

fn source(i: u32) -> f32 {
    return raw[i];
}
