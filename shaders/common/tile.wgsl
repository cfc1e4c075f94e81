// Four rows of weights against an eight of x: the sum that every prefill family of matmul is made of.
//
// All of them add up in this order, so that they differ in how operands travel and not in what is
// added to what. Links common/oct.wgsl.

// An eight of four rows: `a` holds the first weight of each, `h` the last.
struct Tile {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

fn tile_of(w0: Oct, w1: Oct, w2: Oct, w3: Oct) -> Tile {
    let lo = transpose(mat4x4<f32>(w0.lo, w1.lo, w2.lo, w3.lo));
    let hi = transpose(mat4x4<f32>(w0.hi, w1.hi, w2.hi, w3.hi));
    return Tile(lo[0], lo[1], lo[2], lo[3], hi[0], hi[1], hi[2], hi[3]);
}

// The products of an eight of x with the four rows, summed from the first to the last.
fn eight(lo: vec4<f32>, hi: vec4<f32>, w: Tile) -> vec4<f32> {
    var sum = lo.x * w.a;
    sum = fma(vec4<f32>(lo.y), w.b, sum);
    sum = fma(vec4<f32>(lo.z), w.c, sum);
    sum = fma(vec4<f32>(lo.w), w.d, sum);
    sum = fma(vec4<f32>(hi.x), w.e, sum);
    sum = fma(vec4<f32>(hi.y), w.f, sum);
    sum = fma(vec4<f32>(hi.z), w.g, sum);
    return fma(vec4<f32>(hi.w), w.h, sum);
}
