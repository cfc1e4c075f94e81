// One scale for 64 neighbours of the flat row-major matrix.

fn group_of(row: u32, oct: u32) -> u32 {
    return (row * (params.k / 8u) + oct) / 8u;
}
