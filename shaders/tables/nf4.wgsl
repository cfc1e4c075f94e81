// bitsandbytes' NF4 table, ascending. Host twin: quant::table.

fn bit(codes: vec4<u32>, mask: u32) -> vec4<bool> {
    return (codes & vec4<u32>(mask)) != vec4<u32>(0u);
}

// One of two values, by a bit.
fn either(zero: f32, one: f32, which: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(zero), vec4<f32>(one), which);
}

// Twin: NF4.
fn value_of(codes: vec4<u32>) -> vec4<f32> {
    let b0 = bit(codes, 1u);
    let b1 = bit(codes, 2u);
    let b2 = bit(codes, 4u);
    let v03 = select(either(-1.0, -0.6961928, b0), either(-0.52507305, -0.3949175, b0), b1);
    let v47 = select(either(-0.28444138, -0.18477343, b0), either(-0.091050036, 0.0, b0), b1);
    let v8b = select(either(0.0795803, 0.1609302, b0), either(0.2461123, 0.33791524, b0), b1);
    let vcf = select(either(0.44070983, 0.562617, b0), either(0.72295684, 1.0, b0), b1);
    return select(select(v03, v47, b2), select(v8b, vcf, b2), bit(codes, 8u));
}

// 1 if `weight` exceeds `threshold * absmax`.
fn exceeds(weight: f32, threshold: f32, absmax: f32) -> u32 {
    return select(0u, 1u, weight > threshold * absmax);
}

// Twin: nf4_code.
fn index_of(weight: f32, absmax: f32) -> u32 {
    var above = exceeds(weight, -0.8480964, absmax);
    above += exceeds(weight, -0.6106329, absmax);
    above += exceeds(weight, -0.45999527, absmax);
    above += exceeds(weight, -0.33967943, absmax);
    above += exceeds(weight, -0.2346074, absmax);
    above += exceeds(weight, -0.13791173, absmax);
    above += exceeds(weight, -0.045525018, absmax);
    above += exceeds(weight, 0.03979015, absmax);
    above += exceeds(weight, 0.12025525, absmax);
    above += exceeds(weight, 0.20352125, absmax);
    above += exceeds(weight, 0.29201377, absmax);
    above += exceeds(weight, 0.38931253, absmax);
    above += exceeds(weight, 0.5016634, absmax);
    above += exceeds(weight, 0.6427869, absmax);
    above += exceeds(weight, 0.8614784, absmax);
    return above;
}
