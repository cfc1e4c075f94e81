// y = x W^T (+ bias): few rows of x, one new token a sequence. A lane sums alone; weights are read 32 at a time.
//
//   weights  [n, k]  packed by the format, row-major; k a multiple of 32
//   x        [t, k]  f32
//   bias     [n]     f32, read where BIAS
//   y        [t, n]  f32
//
// Row `first_row` of the matrix gives the first column of y. Grid: (ceil(n / (4 WG)), ceil(t / TOKENS)) workgroups
// of WG lanes, all along n; a lane owns 4 columns of y for TOKENS tokens. Eight quads of x, a run of one token or an
// eight of four, are held by the first lanes of a subgroup, which hand them to all. Lanes after those hold the same
// again, so subgroups may have any size from LANES up, and differ. Each element is summed in f32 over k in order,
// eight products at a time, as in every prefill family.
//
// For more tokens than four matvec_broadcast.wgsl takes the place of this: then x is what is read most.
//
// WG, LANES and TOKENS come from kernels::matvec. Links common/product.wgsl, common/oct.wgsl, common/tile.wgsl,
// common/rows.wgsl, a format and its reader of runs, and what reads x (common/x_rows.wgsl). f64 twin: kernels::matvec.

// The body is written for these.
const_assert TOKENS == 1u || TOKENS == 4u;

// Quads of x that are held together, and of them a lane's.
const QUADS: u32 = 8u;
const HELD: u32 = (QUADS + LANES - 1u) / LANES;

// The runs of a lane's four rows.
struct Runs {
    a: Run,
    b: Run,
    c: Run,
    d: Run,
}

fn tile(runs: Runs, i: u32) -> Tile {
    return tile_of(oct_of(runs.a, i), oct_of(runs.b, i), oct_of(runs.c, i), oct_of(runs.d, i));
}

// A quad of x: where it is, which of its row it is, and of which token of the tile.
struct Place {
    at: u32,
    quad: u32,
    token: u32,
}

// What a lane holds: the quads at `places` and as many after each as `ahead` says.
fn hold(places: array<Place, HELD>, ahead: u32) -> array<vec4<f32>, HELD> {
    var held: array<vec4<f32>, HELD>;
    for (var i = 0u; i < HELD; i += 1u) {
        held[i] = x_at(places[i].at + ahead, places[i].quad + ahead, places[i].token);
    }
    return held;
}

// Adds an eight of four tokens.
fn add(s: ptr<function, array<vec4<f32>, 4>>, held: array<vec4<f32>, HELD>, w: Tile) {
    (*s)[0] += eight(subgroupBroadcast(held[0u / LANES], 0u % LANES), subgroupBroadcast(held[1u / LANES], 1u % LANES), w);
    (*s)[1] += eight(subgroupBroadcast(held[2u / LANES], 2u % LANES), subgroupBroadcast(held[3u / LANES], 3u % LANES), w);
    (*s)[2] += eight(subgroupBroadcast(held[4u / LANES], 4u % LANES), subgroupBroadcast(held[5u / LANES], 5u % LANES), w);
    (*s)[3] += eight(subgroupBroadcast(held[6u / LANES], 6u % LANES), subgroupBroadcast(held[7u / LANES], 7u % LANES), w);
}

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
    var places: array<Place, HELD>;
    for (var i = 0u; i < HELD; i += 1u) {
        let index = (i * LANES + in_subgroup % LANES) % QUADS;
        let own = select(index / 2u, 0u, TOKENS == 1u);
        let quad = select(index % 2u, index, TOKENS == 1u);
        // Past the edge the last token again.
        let row = min(token + own, params.t - 1u);
        places[i] = Place(row * (params.k / 4u) + quad, quad, own);
    }

    var s: array<vec4<f32>, 4>;
    let runs = params.k / 32u;
    for (var run = 0u; run < runs; run += 1u) {
        let w = Runs(load_run(rows.x, run), load_run(rows.y, run), load_run(rows.z, run), load_run(rows.w, run));
        if TOKENS == 1u {
            let held = hold(places, run * QUADS);
            s[0] += eight(subgroupBroadcast(held[0u / LANES], 0u % LANES), subgroupBroadcast(held[1u / LANES], 1u % LANES), tile(w, 0u));
            s[0] += eight(subgroupBroadcast(held[2u / LANES], 2u % LANES), subgroupBroadcast(held[3u / LANES], 3u % LANES), tile(w, 1u));
            s[0] += eight(subgroupBroadcast(held[4u / LANES], 4u % LANES), subgroupBroadcast(held[5u / LANES], 5u % LANES), tile(w, 2u));
            s[0] += eight(subgroupBroadcast(held[6u / LANES], 6u % LANES), subgroupBroadcast(held[7u / LANES], 7u % LANES), tile(w, 3u));
        } else {
            add(&s, hold(places, run * QUADS), tile(w, 0u));
            add(&s, hold(places, run * QUADS + 2u), tile(w, 1u));
            add(&s, hold(places, run * QUADS + 4u), tile(w, 2u));
            add(&s, hold(places, run * QUADS + 6u), tile(w, 3u));
        }
    }
    if size < LANES {
        // Not the device that this form was chosen for: better no number than a wrong one.
        s[0] = vec4<f32>(bitcast<f32>(params.t | 0x7fc00000u));
    }
    store(token, column, s[0]);
    if TOKENS == 4u {
        store(token + 1u, column, s[1]);
        store(token + 2u, column, s[2]);
        store(token + 3u, column, s[3]);
    }
}
