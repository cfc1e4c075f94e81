// y = x W^T (+ bias): few rows of x, one new token a sequence. Shuffles join the lanes' sums.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / (4 * 64 / LANES)), ceil(t / TOKENS))
// workgroups of 64 lanes. LANES lanes of a subgroup share 4 rows of W and TOKENS tokens: lane l sums the eights
// l, l + LANES, ... of k in f32; then neighbours, pairs, fours, ... of lanes are added. (`subgroupAdd` may add
// in any order, so no two devices need agree.) Subgroups may have any size from LANES up.
//
// LANES and TOKENS come from kernels::matvec. Links common/product.wgsl, common/oct.wgsl, common/tile.wgsl,
// common/rows.wgsl, common/row_tile.wgsl, a format and what reads x (common/x_rows.wgsl). f64 twin: kernels::matvec.

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
) {
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
        var sum = sums[j];
        // Both sides of a pair add the same two numbers: all lanes end with the same bits.
        for (var apart = 1u; apart < LANES; apart *= 2u) {
            sum += subgroupShuffleXor(sum, apart);
        }
        if size < LANES {
            // Not the device that this form was chosen for: better no number than a wrong one.
            sum = vec4<f32>(bitcast<f32>(params.t | 0x7fc00000u));
        }
        if lane % LANES == j % LANES {
            store(token + j, column, sum);
        }
    }
}
