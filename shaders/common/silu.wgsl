// gate / (1 + exp(-gate)).

fn silu(gate: vec2<f32>) -> vec2<f32> {
    // Below -80 silu is 0 to f32; the bound keeps exp from overflowing, where division is undefined.
    return gate / (1.0 + exp(-max(gate, vec2<f32>(-80.0))));
}
