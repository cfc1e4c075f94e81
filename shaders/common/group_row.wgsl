// One scale a row.

fn group_of(row: u32, oct: u32) -> u32 {
    return row;
}
