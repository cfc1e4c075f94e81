// y = x W^T (+ bias): many rows of x. Subgroup broadcast: activations held across lanes.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / 256), ceil(t / 32))
// workgroups of 64 lanes, all along n; a lane owns 4 columns of y for 32 tokens, in two blocks: half the
// loads and conversions of weights that matmul_subgroup.wgsl needs, for twice the sums. Each element is
// summed in f32 over k in order, eight products at a time.
//
// ROWS, TOKENS, ROW_LANES, TOKEN_LANES and LANES come from kernels::family. Links common/product.wgsl,
// common/held.wgsl, common/oct.wgsl, common/tile.wgsl and a format. f64 twin: kernels::matmul.

// The body is written for these.
const_assert ROWS == 4u && TOKENS == 2u * BLOCK && TOKEN_LANES == 1u;

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
    var places: array<u32, 2u * HELD>;
    for (var i = 0u; i < 2u * HELD; i += 1u) {
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
    var s16 = vec4<f32>();
    var s17 = vec4<f32>();
    var s18 = vec4<f32>();
    var s19 = vec4<f32>();
    var s20 = vec4<f32>();
    var s21 = vec4<f32>();
    var s22 = vec4<f32>();
    var s23 = vec4<f32>();
    var s24 = vec4<f32>();
    var s25 = vec4<f32>();
    var s26 = vec4<f32>();
    var s27 = vec4<f32>();
    var s28 = vec4<f32>();
    var s29 = vec4<f32>();
    var s30 = vec4<f32>();
    var s31 = vec4<f32>();
    let octs = params.k / 8u;
    for (var oct = 0u; oct < octs; oct += 1u) {
        let w = tile_of(load_oct(r0, oct), load_oct(r1, oct), load_oct(r2, oct), load_oct(r3, oct));
        // Loaded when it is needed: fewer values are alive at a time.
        var held: vec4<f32>;
        if 0u % LANES == 0u { held = x[places[0u / LANES] + oct * 2u]; }
        s0 += eight(subgroupBroadcast(held, 0u % LANES), subgroupBroadcast(held, 1u % LANES), w);
        s1 += eight(subgroupBroadcast(held, 2u % LANES), subgroupBroadcast(held, 3u % LANES), w);
        if 4u % LANES == 0u { held = x[places[4u / LANES] + oct * 2u]; }
        s2 += eight(subgroupBroadcast(held, 4u % LANES), subgroupBroadcast(held, 5u % LANES), w);
        s3 += eight(subgroupBroadcast(held, 6u % LANES), subgroupBroadcast(held, 7u % LANES), w);
        if 8u % LANES == 0u { held = x[places[8u / LANES] + oct * 2u]; }
        s4 += eight(subgroupBroadcast(held, 8u % LANES), subgroupBroadcast(held, 9u % LANES), w);
        s5 += eight(subgroupBroadcast(held, 10u % LANES), subgroupBroadcast(held, 11u % LANES), w);
        if 12u % LANES == 0u { held = x[places[12u / LANES] + oct * 2u]; }
        s6 += eight(subgroupBroadcast(held, 12u % LANES), subgroupBroadcast(held, 13u % LANES), w);
        s7 += eight(subgroupBroadcast(held, 14u % LANES), subgroupBroadcast(held, 15u % LANES), w);
        if 16u % LANES == 0u { held = x[places[16u / LANES] + oct * 2u]; }
        s8 += eight(subgroupBroadcast(held, 16u % LANES), subgroupBroadcast(held, 17u % LANES), w);
        s9 += eight(subgroupBroadcast(held, 18u % LANES), subgroupBroadcast(held, 19u % LANES), w);
        if 20u % LANES == 0u { held = x[places[20u / LANES] + oct * 2u]; }
        s10 += eight(subgroupBroadcast(held, 20u % LANES), subgroupBroadcast(held, 21u % LANES), w);
        s11 += eight(subgroupBroadcast(held, 22u % LANES), subgroupBroadcast(held, 23u % LANES), w);
        if 24u % LANES == 0u { held = x[places[24u / LANES] + oct * 2u]; }
        s12 += eight(subgroupBroadcast(held, 24u % LANES), subgroupBroadcast(held, 25u % LANES), w);
        s13 += eight(subgroupBroadcast(held, 26u % LANES), subgroupBroadcast(held, 27u % LANES), w);
        if 28u % LANES == 0u { held = x[places[28u / LANES] + oct * 2u]; }
        s14 += eight(subgroupBroadcast(held, 28u % LANES), subgroupBroadcast(held, 29u % LANES), w);
        s15 += eight(subgroupBroadcast(held, 30u % LANES), subgroupBroadcast(held, 31u % LANES), w);
        if 32u % LANES == 0u { held = x[places[32u / LANES] + oct * 2u]; }
        s16 += eight(subgroupBroadcast(held, 32u % LANES), subgroupBroadcast(held, 33u % LANES), w);
        s17 += eight(subgroupBroadcast(held, 34u % LANES), subgroupBroadcast(held, 35u % LANES), w);
        if 36u % LANES == 0u { held = x[places[36u / LANES] + oct * 2u]; }
        s18 += eight(subgroupBroadcast(held, 36u % LANES), subgroupBroadcast(held, 37u % LANES), w);
        s19 += eight(subgroupBroadcast(held, 38u % LANES), subgroupBroadcast(held, 39u % LANES), w);
        if 40u % LANES == 0u { held = x[places[40u / LANES] + oct * 2u]; }
        s20 += eight(subgroupBroadcast(held, 40u % LANES), subgroupBroadcast(held, 41u % LANES), w);
        s21 += eight(subgroupBroadcast(held, 42u % LANES), subgroupBroadcast(held, 43u % LANES), w);
        if 44u % LANES == 0u { held = x[places[44u / LANES] + oct * 2u]; }
        s22 += eight(subgroupBroadcast(held, 44u % LANES), subgroupBroadcast(held, 45u % LANES), w);
        s23 += eight(subgroupBroadcast(held, 46u % LANES), subgroupBroadcast(held, 47u % LANES), w);
        if 48u % LANES == 0u { held = x[places[48u / LANES] + oct * 2u]; }
        s24 += eight(subgroupBroadcast(held, 48u % LANES), subgroupBroadcast(held, 49u % LANES), w);
        s25 += eight(subgroupBroadcast(held, 50u % LANES), subgroupBroadcast(held, 51u % LANES), w);
        if 52u % LANES == 0u { held = x[places[52u / LANES] + oct * 2u]; }
        s26 += eight(subgroupBroadcast(held, 52u % LANES), subgroupBroadcast(held, 53u % LANES), w);
        s27 += eight(subgroupBroadcast(held, 54u % LANES), subgroupBroadcast(held, 55u % LANES), w);
        if 56u % LANES == 0u { held = x[places[56u / LANES] + oct * 2u]; }
        s28 += eight(subgroupBroadcast(held, 56u % LANES), subgroupBroadcast(held, 57u % LANES), w);
        s29 += eight(subgroupBroadcast(held, 58u % LANES), subgroupBroadcast(held, 59u % LANES), w);
        if 60u % LANES == 0u { held = x[places[60u / LANES] + oct * 2u]; }
        s30 += eight(subgroupBroadcast(held, 60u % LANES), subgroupBroadcast(held, 61u % LANES), w);
        s31 += eight(subgroupBroadcast(held, 62u % LANES), subgroupBroadcast(held, 63u % LANES), w);
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
    store(token + 16u, column, s16);
    store(token + 17u, column, s17);
    store(token + 18u, column, s18);
    store(token + 19u, column, s19);
    store(token + 20u, column, s20);
    store(token + 21u, column, s21);
    store(token + 22u, column, s22);
    store(token + 23u, column, s23);
    store(token + 24u, column, s24);
    store(token + 25u, column, s25);
    store(token + 26u, column, s26);
    store(token + 27u, column, s27);
    store(token + 28u, column, s28);
    store(token + 29u, column, s29);
    store(token + 30u, column, s30);
    store(token + 31u, column, s31);
}
