// bitsandbytes' FP4 table: bit 3 is the sign. Host twin: quant::table.

// Value of each magnitude, by its three bits. Twin: FP4.
fn value_of(codes: vec4<u32>) -> vec4<f32> {
    let bit0 = (codes & vec4<u32>(1u)) != vec4<u32>(0u);
    let bit1 = (codes & vec4<u32>(2u)) != vec4<u32>(0u);
    let bit2 = (codes & vec4<u32>(4u)) != vec4<u32>(0u);
    let v01 = select(vec4<f32>(0.0), vec4<f32>(5.2083333e-3), bit0);
    let v23 = select(vec4<f32>(0.6666667), vec4<f32>(1.0), bit0);
    let v45 = select(vec4<f32>(0.33333334), vec4<f32>(0.5), bit0);
    let v67 = select(vec4<f32>(0.16666667), vec4<f32>(0.25), bit0);
    let magnitude = select(select(v01, v23, bit1), select(v45, v67, bit1), bit2);
    return select(magnitude, -magnitude, (codes & vec4<u32>(8u)) != vec4<u32>(0u));
}

// Twin: fp4_code.
fn index_of(weight: f32, absmax: f32) -> u32 {
    let magnitude = abs(weight);
    var above = select(0u, 1u, magnitude > 0.00260417 * absmax);
    above += select(0u, 1u, magnitude > 0.0859375 * absmax);
    above += select(0u, 1u, magnitude > 0.20833333 * absmax);
    above += select(0u, 1u, magnitude > 0.29166667 * absmax);
    above += select(0u, 1u, magnitude > 0.4166667 * absmax);
    above += select(0u, 1u, magnitude > 0.583333 * absmax);
    above += select(0u, 1u, magnitude > 0.8333333 * absmax);
    // FP4_ORDER, a nibble each.
    let code = (0x32547610u >> (above * 4u)) & 7u;
    // On the bits, because a device may take a subnormal for 0. The sign of -0 does not count.
    return code | select(0u, 8u, bitcast<u32>(weight) > 0x80000000u);
}
