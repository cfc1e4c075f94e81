// Reads a format of 8-bit codes 32 neighbours at a time, with the one scale that they share; for k a multiple
// of 32.
//
// Links a format that gives `Scale` and `decode`, and what gives `group_of`.

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<Scale>;

struct Run {
    first: vec4<u32>,
    second: vec4<u32>,
    scale: Scale,
}

fn load_run(row: u32, run: u32) -> Run {
    let at = row * (params.k / 16u) + run * 2u;
    return Run(weights[at], weights[at + 1u], scales[group_of(row, run * 4u)]);
}

// Eight `i` of the run's four.
fn oct_of(run: Run, i: u32) -> Oct {
    let half = select(run.first, run.second, i >= 2u);
    return decode(select(half.xy, half.zw, i % 2u == 1u), run.scale);
}
