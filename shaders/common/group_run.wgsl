// One scale for GROUP neighbours of a row; the last group of a row may be shorter.

override GROUP: u32 = 128u;

fn group_of(row: u32, oct: u32) -> u32 {
    return row * ((params.k + GROUP - 1u) / GROUP) + oct * 8u / GROUP;
}
