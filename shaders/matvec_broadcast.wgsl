// y = x W^T (+ bias): few rows of x, one new token a sequence. A lane sums alone; x is held across lanes.
//
//   weights  [n, k]  packed by the format, row-major
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / (4 WG)), ceil(t / TOKENS)) workgroups
// of WG lanes, all along n; a lane owns 4 columns of y for TOKENS tokens. An eight of them is 2 TOKENS
// quads: the first LANES lanes of a subgroup hold a share of them each and hand them to all. Lanes after
// those hold the same again, so subgroups may have any size from LANES up, and differ. Each element is summed
// in f32 over k in order, eight products at a time, as in every prefill family.
//
// WG, LANES and TOKENS come from kernels::matvec. Links common/product.wgsl, common/oct.wgsl,
// common/tile.wgsl, common/rows.wgsl, common/row_tile.wgsl, a format and what reads x (common/x_rows.wgsl). f64 twin:
// kernels::matvec.

// The body is written for these.
const_assert TOKENS == 1u || TOKENS == 4u || TOKENS == 16u;

// Quads of x that a lane holds.
const HELD: u32 = (2u * TOKENS + LANES - 1u) / LANES;

// Where quad `index` of the tokens' first eights is in x; past the edge the last token's.
fn place(token: u32, index: u32) -> u32 {
    return min(token + index / 2u, params.t - 1u) * (params.k / 4u) + index % 2u;
}

// Which of a lane's quads is quad `index`; one that there is for those that a form does not have.
const LAST: u32 = HELD - 1u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    let column = (id.x * WG + lane) * ROWS;
    let token = id.y * TOKENS;
    norm_rows(token, lane);
    // Lanes must stay together: a subgroup leaves only as a whole.
    if subgroupMin(column) >= params.n {
        return;
    }
    let rows = rows_of(column);
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
        let w = load_tile(rows, oct);
        var held: array<vec4<f32>, HELD>;
        for (var i = 0u; i < HELD; i += 1u) {
            let index = i * LANES + in_subgroup % LANES;
            held[i] = x_at(places[i] + oct * 2u, oct * 2u + index % 2u, index / 2u);
        }
        s0 += eight(subgroupBroadcast(held[min(0u / LANES, LAST)], 0u % LANES), subgroupBroadcast(held[min(1u / LANES, LAST)], 1u % LANES), w);
        if TOKENS >= 4u {
            s1 += eight(subgroupBroadcast(held[min(2u / LANES, LAST)], 2u % LANES), subgroupBroadcast(held[min(3u / LANES, LAST)], 3u % LANES), w);
            s2 += eight(subgroupBroadcast(held[min(4u / LANES, LAST)], 4u % LANES), subgroupBroadcast(held[min(5u / LANES, LAST)], 5u % LANES), w);
            s3 += eight(subgroupBroadcast(held[min(6u / LANES, LAST)], 6u % LANES), subgroupBroadcast(held[min(7u / LANES, LAST)], 7u % LANES), w);
        }
        if TOKENS >= 16u {
            s4 += eight(subgroupBroadcast(held[min(8u / LANES, LAST)], 8u % LANES), subgroupBroadcast(held[min(9u / LANES, LAST)], 9u % LANES), w);
            s5 += eight(subgroupBroadcast(held[min(10u / LANES, LAST)], 10u % LANES), subgroupBroadcast(held[min(11u / LANES, LAST)], 11u % LANES), w);
            s6 += eight(subgroupBroadcast(held[min(12u / LANES, LAST)], 12u % LANES), subgroupBroadcast(held[min(13u / LANES, LAST)], 13u % LANES), w);
            s7 += eight(subgroupBroadcast(held[min(14u / LANES, LAST)], 14u % LANES), subgroupBroadcast(held[min(15u / LANES, LAST)], 15u % LANES), w);
            s8 += eight(subgroupBroadcast(held[min(16u / LANES, LAST)], 16u % LANES), subgroupBroadcast(held[min(17u / LANES, LAST)], 17u % LANES), w);
            s9 += eight(subgroupBroadcast(held[min(18u / LANES, LAST)], 18u % LANES), subgroupBroadcast(held[min(19u / LANES, LAST)], 19u % LANES), w);
            s10 += eight(subgroupBroadcast(held[min(20u / LANES, LAST)], 20u % LANES), subgroupBroadcast(held[min(21u / LANES, LAST)], 21u % LANES), w);
            s11 += eight(subgroupBroadcast(held[min(22u / LANES, LAST)], 22u % LANES), subgroupBroadcast(held[min(23u / LANES, LAST)], 23u % LANES), w);
            s12 += eight(subgroupBroadcast(held[min(24u / LANES, LAST)], 24u % LANES), subgroupBroadcast(held[min(25u / LANES, LAST)], 25u % LANES), w);
            s13 += eight(subgroupBroadcast(held[min(26u / LANES, LAST)], 26u % LANES), subgroupBroadcast(held[min(27u / LANES, LAST)], 27u % LANES), w);
            s14 += eight(subgroupBroadcast(held[min(28u / LANES, LAST)], 28u % LANES), subgroupBroadcast(held[min(29u / LANES, LAST)], 29u % LANES), w);
            s15 += eight(subgroupBroadcast(held[min(30u / LANES, LAST)], 30u % LANES), subgroupBroadcast(held[min(31u / LANES, LAST)], 31u % LANES), w);
        }
    }
    if size < LANES {
        // Not the device that this form was chosen for: better no number than a wrong one.
        s0 = vec4<f32>(bitcast<f32>(params.t | 0x7fc00000u));
    }
    store(token, column, s0);
    if TOKENS >= 4u {
        store(token + 1u, column, s1);
        store(token + 2u, column, s2);
        store(token + 3u, column, s3);
    }
    if TOKENS >= 16u {
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
}
