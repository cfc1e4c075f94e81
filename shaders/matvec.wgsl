// y = x W^T (+ bias): few rows of x, one new token a sequence.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 32), ceil(t / 8))
// workgroups of 64 lanes. Eight lanes share 4 rows of W and 8 tokens: lane l sums the eights l, l + 8, ...
// of k in f32; then lane j adds up the lanes' sums for token j, in order.
//
// Links common/product.wgsl, common/oct.wgsl and a format. f64 twin: kernels::matvec.

// Rows of W and tokens that a group of LANES lanes serves; kernels::matvec has the same numbers.
const WG: u32 = 64u;
const ROWS: u32 = 4u;
const TOKENS: u32 = 8u;
const LANES: u32 = 8u;

// Each lane's sums, of 4 rows for 8 tokens.
var<workgroup> partial: array<vec4<f32>, WG * TOKENS>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = (id.x * (WG / LANES) + lane / LANES) * ROWS;
    let token = id.y * TOKENS;

    // Past the edge a lane repeats the last row or token; nothing of it is stored.
    let last_row = params.n - 1u;
    let r0 = params.first_row + min(column, last_row);
    let r1 = params.first_row + min(column + 1u, last_row);
    let r2 = params.first_row + min(column + 2u, last_row);
    let r3 = params.first_row + min(column + 3u, last_row);
    let stride = params.k / 4u;
    let last = params.t - 1u;
    let x0 = token * stride;
    let x1 = min(token + 1u, last) * stride;
    let x2 = min(token + 2u, last) * stride;
    let x3 = min(token + 3u, last) * stride;
    let x4 = min(token + 4u, last) * stride;
    let x5 = min(token + 5u, last) * stride;
    let x6 = min(token + 6u, last) * stride;
    let x7 = min(token + 7u, last) * stride;

    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    var s4 = vec4<f32>();
    var s5 = vec4<f32>();
    var s6 = vec4<f32>();
    var s7 = vec4<f32>();
    let octs = params.k / 8u;
    for (var oct = lane % LANES; oct < octs; oct += LANES) {
        let w0 = load_oct(r0, oct);
        let w1 = load_oct(r1, oct);
        let w2 = load_oct(r2, oct);
        let w3 = load_oct(r3, oct);
        // vector * matrix is the four dot products.
        let lo = mat4x4<f32>(w0.lo, w1.lo, w2.lo, w3.lo);
        let hi = mat4x4<f32>(w0.hi, w1.hi, w2.hi, w3.hi);
        let q = oct * 2u;
        s0 += x[x0 + q] * lo + x[x0 + q + 1u] * hi;
        s1 += x[x1 + q] * lo + x[x1 + q + 1u] * hi;
        s2 += x[x2 + q] * lo + x[x2 + q + 1u] * hi;
        s3 += x[x3 + q] * lo + x[x3 + q + 1u] * hi;
        s4 += x[x4 + q] * lo + x[x4 + q + 1u] * hi;
        s5 += x[x5 + q] * lo + x[x5 + q + 1u] * hi;
        s6 += x[x6 + q] * lo + x[x6 + q + 1u] * hi;
        s7 += x[x7 + q] * lo + x[x7 + q + 1u] * hi;
    }
    let own = lane * TOKENS;
    partial[own] = s0;
    partial[own + 1u] = s1;
    partial[own + 2u] = s2;
    partial[own + 3u] = s3;
    partial[own + 4u] = s4;
    partial[own + 5u] = s5;
    partial[own + 6u] = s6;
    partial[own + 7u] = s7;
    workgroupBarrier();

    let j = lane % LANES;
    let first = (lane - j) * TOKENS + j;
    var sum = partial[first];
    for (var i = 1u; i < LANES; i += 1u) {
        sum += partial[first + i * TOKENS];
    }
    store(token + j, column, sum);
}
