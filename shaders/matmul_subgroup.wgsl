// y = x W^T (+ bias): many rows of x. Subgroup broadcast: activations held across lanes.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 256), ceil(t / 16))
// workgroups of 64 lanes, all along n; a lane owns 4 columns of y for 16 tokens. Each element is summed
// in f32 over k in order, eight products at a time.
//
// ROWS, TOKENS, ROW_LANES, TOKEN_LANES and LANES come from kernels::family. Links common/product.wgsl,
// common/held.wgsl, common/oct.wgsl, common/tile.wgsl and a format. f64 twin: kernels::matmul.

// The body is written for these.
const_assert ROWS == 4u && TOKENS == 16u && TOKEN_LANES == 1u;

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
    let r0 = row_of(column);
    let r1 = row_of(column + 1u);
    let r2 = row_of(column + 2u);
    let r3 = row_of(column + 3u);
    var places: array<u32, HELD>;
    for (var i = 0u; i < HELD; i += 1u) {
        places[i] = place(token, i * LANES + in_subgroup % LANES);
    }

    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    var s4 = vec4<f32>();
    var s5 = vec4<f32>();
    var s6 = vec4<f32>();
    var s7 = vec4<f32>();
    var s8 = vec4<f32>();
    var s9 = vec4<f32>();
    var s10 = vec4<f32>();
    var s11 = vec4<f32>();
    var s12 = vec4<f32>();
    var s13 = vec4<f32>();
    var s14 = vec4<f32>();
    var s15 = vec4<f32>();
    let octs = params.k / 8u;
    for (var oct = 0u; oct < octs; oct += 1u) {
        let w = tile_of(load_oct(r0, oct), load_oct(r1, oct), load_oct(r2, oct), load_oct(r3, oct));
        var held: array<vec4<f32>, HELD>;
        for (var i = 0u; i < HELD; i += 1u) {
            held[i] = x[places[i] + oct * 2u];
        }
        s0 += eight(subgroupBroadcast(held[0u / LANES], 0u % LANES), subgroupBroadcast(held[1u / LANES], 1u % LANES), w);
        s1 += eight(subgroupBroadcast(held[2u / LANES], 2u % LANES), subgroupBroadcast(held[3u / LANES], 3u % LANES), w);
        s2 += eight(subgroupBroadcast(held[4u / LANES], 4u % LANES), subgroupBroadcast(held[5u / LANES], 5u % LANES), w);
        s3 += eight(subgroupBroadcast(held[6u / LANES], 6u % LANES), subgroupBroadcast(held[7u / LANES], 7u % LANES), w);
        s4 += eight(subgroupBroadcast(held[8u / LANES], 8u % LANES), subgroupBroadcast(held[9u / LANES], 9u % LANES), w);
        s5 += eight(subgroupBroadcast(held[10u / LANES], 10u % LANES), subgroupBroadcast(held[11u / LANES], 11u % LANES), w);
        s6 += eight(subgroupBroadcast(held[12u / LANES], 12u % LANES), subgroupBroadcast(held[13u / LANES], 13u % LANES), w);
        s7 += eight(subgroupBroadcast(held[14u / LANES], 14u % LANES), subgroupBroadcast(held[15u / LANES], 15u % LANES), w);
        s8 += eight(subgroupBroadcast(held[16u / LANES], 16u % LANES), subgroupBroadcast(held[17u / LANES], 17u % LANES), w);
        s9 += eight(subgroupBroadcast(held[18u / LANES], 18u % LANES), subgroupBroadcast(held[19u / LANES], 19u % LANES), w);
        s10 += eight(subgroupBroadcast(held[20u / LANES], 20u % LANES), subgroupBroadcast(held[21u / LANES], 21u % LANES), w);
        s11 += eight(subgroupBroadcast(held[22u / LANES], 22u % LANES), subgroupBroadcast(held[23u / LANES], 23u % LANES), w);
        s12 += eight(subgroupBroadcast(held[24u / LANES], 24u % LANES), subgroupBroadcast(held[25u / LANES], 25u % LANES), w);
        s13 += eight(subgroupBroadcast(held[26u / LANES], 26u % LANES), subgroupBroadcast(held[27u / LANES], 27u % LANES), w);
        s14 += eight(subgroupBroadcast(held[28u / LANES], 28u % LANES), subgroupBroadcast(held[29u / LANES], 29u % LANES), w);
        s15 += eight(subgroupBroadcast(held[30u / LANES], 30u % LANES), subgroupBroadcast(held[31u / LANES], 31u % LANES), w);
    }
    if size < LANES {
        // Not the device that this form was chosen for: better no number than a wrong one.
        s0 = vec4<f32>(bitcast<f32>(params.t | 0x7fc00000u));
    }
    store(token, column, s0);
    store(token + 1u, column, s1);
    store(token + 2u, column, s2);
    store(token + 3u, column, s3);
    store(token + 4u, column, s4);
    store(token + 5u, column, s5);
    store(token + 6u, column, s6);
    store(token + 7u, column, s7);
    store(token + 8u, column, s8);
    store(token + 9u, column, s9);
    store(token + 10u, column, s10);
    store(token + 11u, column, s11);
    store(token + 12u, column, s12);
    store(token + 13u, column, s13);
    store(token + 14u, column, s14);
    store(token + 15u, column, s15);
}
