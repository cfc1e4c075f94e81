// y = x W^T (+ bias): few rows of x, one new token a sequence. A lane sums alone.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / (4 WG)), ceil(t / TOKENS)) workgroups
// of WG lanes, all along n; a lane owns 4 columns of y for TOKENS tokens and loads all it needs. Each element
// is summed in f32 over k in order, eight products at a time, as in every prefill family.
//
// WG and TOKENS come from kernels::matvec. Links common/product.wgsl, common/oct.wgsl, common/tile.wgsl,
// common/rows.wgsl, common/row_tile.wgsl, a format and what reads x (common/x_rows.wgsl). f64 twin: kernels::matvec.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = (id.x * WG + lane) * ROWS;
    let token = id.y * TOKENS;
    norm_rows(token, lane);
    if column >= params.n {
        return;
    }
    let rows = rows_of(column);

    var sums: array<vec4<f32>, TOKENS>;
    let octs = params.k / 8u;
    for (var oct = 0u; oct < octs; oct += 1u) {
        let w = load_tile(rows, oct);
        for (var j = 0u; j < TOKENS; j += 1u) {
            // Past the edge the last token again.
            let at = (min(token + j, params.t - 1u) * octs + oct) * 2u;
            sums[j] += eight(x_at(at, 2u * oct, j), x_at(at + 1u, 2u * oct + 1u, j), w);
        }
    }
    for (var j = 0u; j < TOKENS; j += 1u) {
        store(token + j, column, sums[j]);
    }
}
