// y = x W^T (+ bias): many rows of x. Subgroup broadcast: activations held across lanes.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 384), ceil(t / 64))
// workgroups of 32 lanes, all along n; a lane owns 12 columns of y for 64 tokens: more sums than it has registers,
// which pays where loads are what is slow, as on a software adapter. Each element is summed in f32 over k in order,
// eight products at a time.
//
// ROWS, TOKENS, ROW_LANES, TOKEN_LANES and LANES come from kernels::family. Links common/product.wgsl,
// common/oct.wgsl, common/tile.wgsl, common/rows.wgsl, common/row_tile.wgsl and a format. f64 twin: kernels::matmul.

// The body is written for these.
const_assert ROWS == 12u && TOKENS == 64u && TOKEN_LANES == 1u;

// Four tokens' eights are eight quads: the first LANES lanes of a subgroup hold HELD of them each and hand them to
// all. Lanes after those hold the same again, so subgroups may have any size from LANES up, and differ.
const QUADS: u32 = 8u;
const HELD: u32 = (QUADS + LANES - 1u) / LANES;
const FOURS: u32 = TOKENS / 4u;

// Of four tokens: each one's twelve columns.
alias Sums = array<vec4<f32>, 12>;

// Adds an eight of four tokens, whose quads are at `places` and `ahead`.
fn add(s: ptr<function, Sums>, places: array<u32, HELD>, ahead: u32, u: Tile, v: Tile, w: Tile) {
    var held: array<vec4<f32>, HELD>;
    for (var i = 0u; i < HELD; i += 1u) {
        held[i] = x[places[i] + ahead];
    }
    let x0 = subgroupBroadcast(held[0u / LANES], 0u % LANES);
    let x1 = subgroupBroadcast(held[1u / LANES], 1u % LANES);
    (*s)[0] += eight(x0, x1, u);
    (*s)[1] += eight(x0, x1, v);
    (*s)[2] += eight(x0, x1, w);
    let x2 = subgroupBroadcast(held[2u / LANES], 2u % LANES);
    let x3 = subgroupBroadcast(held[3u / LANES], 3u % LANES);
    (*s)[3] += eight(x2, x3, u);
    (*s)[4] += eight(x2, x3, v);
    (*s)[5] += eight(x2, x3, w);
    let x4 = subgroupBroadcast(held[4u / LANES], 4u % LANES);
    let x5 = subgroupBroadcast(held[5u / LANES], 5u % LANES);
    (*s)[6] += eight(x4, x5, u);
    (*s)[7] += eight(x4, x5, v);
    (*s)[8] += eight(x4, x5, w);
    let x6 = subgroupBroadcast(held[6u / LANES], 6u % LANES);
    let x7 = subgroupBroadcast(held[7u / LANES], 7u % LANES);
    (*s)[9] += eight(x6, x7, u);
    (*s)[10] += eight(x6, x7, v);
    (*s)[11] += eight(x6, x7, w);
}

fn store_four(token: u32, column: u32, s: Sums) {
    for (var i = 0u; i < 4u; i += 1u) {
        store(token + i, column, s[3u * i]);
        store(token + i, column + 4u, s[3u * i + 1u]);
        store(token + i, column + 8u, s[3u * i + 2u]);
    }
}

@compute @workgroup_size(ROW_LANES)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    let column = (id.x * ROW_LANES + lane) * ROWS;
    let token = id.y * TOKENS;
    // Lanes must stay together: a subgroup leaves only as a whole.
    if subgroupMin(column) >= params.n {
        return;
    }

    // Past the edge a lane repeats the last row or token and stores nothing.
    let a = rows_of(column);
    let b = rows_of(column + 4u);
    let c = rows_of(column + 8u);
    var places: array<array<u32, HELD>, FOURS>;
    for (var i = 0u; i < FOURS; i += 1u) {
        for (var j = 0u; j < HELD; j += 1u) {
            let quad = (j * LANES + in_subgroup % LANES) % QUADS;
            let own = min(token + i * 4u + quad / 2u, params.t - 1u);
            places[i][j] = own * (params.k / 4u) + quad % 2u;
        }
    }

    var s0: Sums;
    var s1: Sums;
    var s2: Sums;
    var s3: Sums;
    var s4: Sums;
    var s5: Sums;
    var s6: Sums;
    var s7: Sums;
    var s8: Sums;
    var s9: Sums;
    var s10: Sums;
    var s11: Sums;
    var s12: Sums;
    var s13: Sums;
    var s14: Sums;
    var s15: Sums;
    let octs = params.k / 8u;
    for (var oct = 0u; oct < octs; oct += 1u) {
        let u = load_tile(a, oct);
        let v = load_tile(b, oct);
        let w = load_tile(c, oct);
        let q = oct * 2u;
        add(&s0, places[0], q, u, v, w);
        add(&s1, places[1], q, u, v, w);
        add(&s2, places[2], q, u, v, w);
        add(&s3, places[3], q, u, v, w);
        add(&s4, places[4], q, u, v, w);
        add(&s5, places[5], q, u, v, w);
        add(&s6, places[6], q, u, v, w);
        add(&s7, places[7], q, u, v, w);
        add(&s8, places[8], q, u, v, w);
        add(&s9, places[9], q, u, v, w);
        add(&s10, places[10], q, u, v, w);
        add(&s11, places[11], q, u, v, w);
        add(&s12, places[12], q, u, v, w);
        add(&s13, places[13], q, u, v, w);
        add(&s14, places[14], q, u, v, w);
        add(&s15, places[15], q, u, v, w);
    }
    if size < LANES {
        // Not the device that this form was chosen for: better no number than a wrong one.
        s0[0] = vec4<f32>(bitcast<f32>(params.t | 0x7fc00000u));
    }
    store_four(token + 0u, column, s0);
    store_four(token + 4u, column, s1);
    store_four(token + 8u, column, s2);
    store_four(token + 12u, column, s3);
    store_four(token + 16u, column, s4);
    store_four(token + 20u, column, s5);
    store_four(token + 24u, column, s6);
    store_four(token + 28u, column, s7);
    store_four(token + 32u, column, s8);
    store_four(token + 36u, column, s9);
    store_four(token + 40u, column, s10);
    store_four(token + 44u, column, s11);
    store_four(token + 48u, column, s12);
    store_four(token + 52u, column, s13);
    store_four(token + 56u, column, s14);
    store_four(token + 60u, column, s15);
}
