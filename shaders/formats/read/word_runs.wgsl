// Reads a format of 4-bit codes 32 neighbours at a time, with the one scale that they share; for k a multiple
// of 32.
//
// Links a format that gives `Scale` and `decode`, and what gives `group_of`.

@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<Scale>;

struct Run {
    words: vec4<u32>,
    scale: Scale,
}

fn load_run(row: u32, run: u32) -> Run {
    return Run(weights[row * (params.k / 32u) + run], scales[group_of(row, run * 4u)]);
}

// Eight `i` of the run's four.
fn oct_of(run: Run, i: u32) -> Oct {
    return decode(run.words[i], run.scale);
}
