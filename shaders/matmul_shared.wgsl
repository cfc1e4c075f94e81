// y = x W^T (+ bias): many rows of x. A tile of both operands shared by the workgroup.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 64), ceil(t / 64))
// workgroups of 128 lanes, 16 along n by 8 along t; a lane owns 4 columns of y for 8 tokens: two
// quads of tokens, half a tile apart. The tile goes along k in steps of 32; rows, columns and tokens lie
// in fours. Each element is summed in f32 over k in order, eight products at a time.
//
// ROWS, TOKENS, ROW_LANES and TOKEN_LANES come from kernels::family. Links common/product.wgsl,
// common/oct.wgsl, common/tile.wgsl and a format. f64 twin: kernels::matmul.

// The body is written for these.
const_assert ROWS == 4u && TOKENS == 8u;

const LANES: u32 = ROW_LANES * TOKEN_LANES;
// Quads of rows and of tokens in a tile, and its depth in eights.
const ROW_QUADS: u32 = ROW_LANES;
const TOKEN_QUADS: u32 = 2u * TOKEN_LANES;
const OCTS: u32 = 4u;

// [k, quad]: four rows' weights, four tokens' activations.
var<workgroup> w_tile: array<vec4<f32>, OCTS * 8u * ROW_QUADS>;
var<workgroup> x_tile: array<vec4<f32>, OCTS * 8u * TOKEN_QUADS>;

// Past the edge the last row or token is repeated; nothing of it is stored.
fn x_quad(token: u32, quad: u32) -> vec4<f32> {
    return x[min(token, params.t - 1u) * (params.k / 4u) + quad];
}

fn w_oct(column: u32, oct: u32) -> Oct {
    return load_oct(row_of(column), oct);
}

fn fill(first_column: u32, first_token: u32, first_oct: u32, octs: u32, lane: u32) {
    for (var i = lane; i < octs * ROW_QUADS; i += LANES) {
        // Neighbours in memory go to neighbouring lanes; the last step may be shorter.
        let oct = i % octs;
        let quad = i / octs;
        let c = first_column + quad * 4u;
        let o = first_oct + oct;
        let w = tile_of(w_oct(c, o), w_oct(c + 1u, o), w_oct(c + 2u, o), w_oct(c + 3u, o));
        let at = oct * 8u * ROW_QUADS + quad;
        w_tile[at] = w.a;
        w_tile[at + ROW_QUADS] = w.b;
        w_tile[at + 2u * ROW_QUADS] = w.c;
        w_tile[at + 3u * ROW_QUADS] = w.d;
        w_tile[at + 4u * ROW_QUADS] = w.e;
        w_tile[at + 5u * ROW_QUADS] = w.f;
        w_tile[at + 6u * ROW_QUADS] = w.g;
        w_tile[at + 7u * ROW_QUADS] = w.h;
    }
    let halves = octs * 2u;
    for (var i = lane; i < halves * TOKEN_QUADS; i += LANES) {
        let half = i % halves;
        let quad = i / halves;
        let t = first_token + quad * 4u;
        let q = first_oct * 2u + half;
        let four = transpose(mat4x4<f32>(x_quad(t, q), x_quad(t + 1u, q), x_quad(t + 2u, q), x_quad(t + 3u, q)));
        let at = half * 4u * TOKEN_QUADS + quad;
        x_tile[at] = four[0];
        x_tile[at + TOKEN_QUADS] = four[1];
        x_tile[at + 2u * TOKEN_QUADS] = four[2];
        x_tile[at + 3u * TOKEN_QUADS] = four[3];
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_column = id.x * ROW_QUADS * 4u;
    let first_token = id.y * TOKEN_QUADS * 4u;
    let row_quad = lane % ROW_LANES;
    let token_quad = lane / ROW_LANES;

    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    var s4 = vec4<f32>();
    var s5 = vec4<f32>();
    var s6 = vec4<f32>();
    var s7 = vec4<f32>();
    let all = params.k / 8u;
    for (var first = 0u; first < all; first += OCTS) {
        let octs = min(OCTS, all - first);
        workgroupBarrier();
        fill(first_column, first_token, first, octs, lane);
        workgroupBarrier();
        for (var oct = 0u; oct < octs; oct += 1u) {
            var wi = oct * 8u * ROW_QUADS + row_quad;
            var xi = oct * 8u * TOKEN_QUADS + token_quad;
            let w = w_tile[wi];
            let a = x_tile[xi];
            let b = x_tile[xi + TOKEN_LANES];
            var e0 = a.x * w;
            var e1 = a.y * w;
            var e2 = a.z * w;
            var e3 = a.w * w;
            var e4 = b.x * w;
            var e5 = b.y * w;
            var e6 = b.z * w;
            var e7 = b.w * w;
            for (var i = 1u; i < 8u; i += 1u) {
                wi += ROW_QUADS;
                xi += TOKEN_QUADS;
                let w = w_tile[wi];
                let a = x_tile[xi];
                let b = x_tile[xi + TOKEN_LANES];
                e0 = fma(vec4<f32>(a.x), w, e0);
                e1 = fma(vec4<f32>(a.y), w, e1);
                e2 = fma(vec4<f32>(a.z), w, e2);
                e3 = fma(vec4<f32>(a.w), w, e3);
                e4 = fma(vec4<f32>(b.x), w, e4);
                e5 = fma(vec4<f32>(b.y), w, e5);
                e6 = fma(vec4<f32>(b.z), w, e6);
                e7 = fma(vec4<f32>(b.w), w, e7);
            }
            s0 += e0;
            s1 += e1;
            s2 += e2;
            s3 += e3;
            s4 += e4;
            s5 += e5;
            s6 += e6;
            s7 += e7;
        }
    }
    let column = first_column + row_quad * 4u;
    let token = first_token + token_quad * 4u;
    store(token, column, s0);
    store(token + 1u, column, s1);
    store(token + 2u, column, s2);
    store(token + 3u, column, s3);
    let other = token + TOKEN_LANES * 4u;
    store(other, column, s4);
    store(other + 1u, column, s5);
    store(other + 2u, column, s6);
    store(other + 3u, column, s7);
}
