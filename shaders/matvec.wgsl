// y = x W^T (+ bias): few rows of x, one new token a sequence. A workgroup's memory joins the lanes' sums.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 32), ceil(t / TOKENS))
// workgroups of 64 lanes. Eight lanes share 4 rows of W and TOKENS tokens: lane l sums the eights l, l + 8, ...
// of k in f32; then lane j adds up the lanes' sums for the tokens j, j + 8, ..., in order.
//
// LANES and TOKENS come from kernels::matvec. Links common/product.wgsl, common/oct.wgsl, common/tile.wgsl,
// common/rows.wgsl, common/row_tile.wgsl, a format and what reads x (common/x_rows.wgsl). f64 twin: kernels::matvec.

const WG: u32 = 64u;

// Each lane's sums, of 4 rows for each token.
var<workgroup> partial: array<vec4<f32>, WG * TOKENS>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = (id.x * (WG / LANES) + lane / LANES) * ROWS;
    let token = id.y * TOKENS;
    norm_rows(token, lane);
    let rows = rows_of(column);

    var sums: array<vec4<f32>, TOKENS>;
    let octs = params.k / 8u;
    for (var oct = lane % LANES; oct < octs; oct += LANES) {
        let w = load_tile(rows, oct);
        for (var j = 0u; j < TOKENS; j += 1u) {
            // Past the edge the last token again.
            let at = (min(token + j, params.t - 1u) * octs + oct) * 2u;
            sums[j] += eight(x_at(at, 2u * oct, j), x_at(at + 1u, 2u * oct + 1u, j), w);
        }
    }
    for (var j = 0u; j < TOKENS; j += 1u) {
        partial[lane * TOKENS + j] = sums[j];
    }
    workgroupBarrier();

    let first = lane - lane % LANES;
    for (var j = lane % LANES; j < TOKENS; j += LANES) {
        var sum = partial[first * TOKENS + j];
        for (var i = 1u; i < LANES; i += 1u) {
            sum += partial[(first + i) * TOKENS + j];
        }
        store(token + j, column, sum);
    }
}
