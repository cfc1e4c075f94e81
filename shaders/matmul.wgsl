// y = x W^T (+ bias): many rows of x. A register tile without shared memory.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 64), ceil(t / 32))
// workgroups of 64 lanes, 16 along n by 4 along t; a lane owns 4 columns of y for 8 tokens. Each
// element is summed in f32 over k in order, eight products at a time.
//
// ROWS, TOKENS, ROW_LANES and TOKEN_LANES come from kernels::family. Links common/product.wgsl,
// common/oct.wgsl, common/tile.wgsl and a format. f64 twin: kernels::matmul.

// The body is written for these.
const_assert ROWS == 4u && TOKENS == 8u;

@compute @workgroup_size(ROW_LANES * TOKEN_LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = (id.x * ROW_LANES + lane % ROW_LANES) * ROWS;
    let token = (id.y * TOKEN_LANES + lane / ROW_LANES) * TOKENS;
    if column >= params.n || token >= params.t {
        return;
    }

    // Past the edge a lane repeats the last row or token and stores nothing.
    let r0 = row_of(column);
    let r1 = row_of(column + 1u);
    let r2 = row_of(column + 2u);
    let r3 = row_of(column + 3u);
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
    for (var oct = 0u; oct < octs; oct += 1u) {
        let w = tile_of(load_oct(r0, oct), load_oct(r1, oct), load_oct(r2, oct), load_oct(r3, oct));
        let q = oct * 2u;
        s0 += eight(x[x0 + q], x[x0 + q + 1u], w);
        s1 += eight(x[x1 + q], x[x1 + q + 1u], w);
        s2 += eight(x[x2 + q], x[x2 + q + 1u], w);
        s3 += eight(x[x3 + q], x[x3 + q + 1u], w);
        s4 += eight(x[x4 + q], x[x4 + q + 1u], w);
        s5 += eight(x[x5 + q], x[x5 + q + 1u], w);
        s6 += eight(x[x6 + q], x[x6 + q + 1u], w);
        s7 += eight(x[x7 + q], x[x7 + q + 1u], w);
    }
    store(token, column, s0);
    store(token + 1u, column, s1);
    store(token + 2u, column, s2);
    store(token + 3u, column, s3);
    store(token + 4u, column, s4);
    store(token + 5u, column, s5);
    store(token + 6u, column, s6);
    store(token + 7u, column, s7);
}
