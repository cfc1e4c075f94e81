// y = x W^T (+ bias): few rows of x, one new token a sequence.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / (WG / LANES)),
// ceil(t / 8)) workgroups; LANES lanes share a row of W and serve 8 tokens with one read of it. A
// lane sums every LANES-th eight of the row in f32; the lanes' sums are added as a binary tree.
//
// Links common/oct.wgsl, common/reduce.wgsl and a format. f64 twin: kernels::matvec.

struct Params {
    t: u32, // rows of x
    n: u32, // columns of y
    k: u32, // columns of x, a multiple of 8
    first_row: u32, // of the matrix
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

override WG: u32 = 64u;
override LANES: u32 = 64u;
override BIAS: bool = false;

// Tokens a workgroup; kernels::matvec knows it too.
const TOKENS: u32 = 8u;

fn products(at: u32, w: Oct) -> f32 {
    return dot(x[at], w.lo) + dot(x[at + 1u], w.hi);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = id.x * (WG / LANES) + lane / LANES;
    let row = params.first_row + min(column, params.n - 1u);
    let token = id.y * TOKENS;
    let stride = params.k / 4u;
    let last = params.t - 1u;

    var a = vec4<f32>();
    var b = vec4<f32>();
    let octs = params.k / 8u;
    for (var oct = lane % LANES; oct < octs; oct += LANES) {
        let w = load_oct(row, oct);
        let q = oct * 2u;
        a.x += products(min(token, last) * stride + q, w);
        a.y += products(min(token + 1u, last) * stride + q, w);
        a.z += products(min(token + 2u, last) * stride + q, w);
        a.w += products(min(token + 3u, last) * stride + q, w);
        b.x += products(min(token + 4u, last) * stride + q, w);
        b.y += products(min(token + 5u, last) * stride + q, w);
        b.z += products(min(token + 6u, last) * stride + q, w);
        b.w += products(min(token + 7u, last) * stride + q, w);
    }
    a = sum_lanes(lane, a);
    b = sum_lanes(lane, b);

    // The group's lanes store one token each, again and again if they are fewer than tokens.
    for (var i = lane % LANES; i < TOKENS; i += LANES) {
        if column < params.n && token + i < params.t {
            var value = select(a[i % 4u], b[i % 4u], i >= 4u);
            if BIAS {
                value += bias[column];
            }
            y[(token + i) * params.n + column] = value;
        }
    }
}
