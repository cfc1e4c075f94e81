// Reads a format without codes 32 neighbours at a time: each eight when it is asked for, since a word holds no more
// than two weights.
//
// Links a format that gives `load_oct`.

struct Run {
    row: u32,
    oct: u32,
}

fn load_run(row: u32, run: u32) -> Run {
    return Run(row, run * 4u);
}

// Eight `i` of the run's four.
fn oct_of(run: Run, i: u32) -> Oct {
    return load_oct(run.row, run.oct + i);
}
