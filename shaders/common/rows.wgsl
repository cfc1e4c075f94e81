// The four rows of the weights that a lane multiplies.
//
// Links common/product.wgsl, common/oct.wgsl, common/tile.wgsl and a format.

// Columns of y a lane; kernels::matvec has the same number.
const ROWS: u32 = 4u;

// Rows of this part of W for the columns from `column` on; past the edge the last row again, of which nothing is
// stored.
fn rows_of(column: u32) -> vec4<u32> {
    let columns = vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u);
    return vec4<u32>(params.first_row) + min(columns, vec4<u32>(params.n - 1u));
}

// An eight of them.
fn load_tile(rows: vec4<u32>, oct: u32) -> Tile {
    return tile_of(load_oct(rows.x, oct), load_oct(rows.y, oct), load_oct(rows.z, oct), load_oct(rows.w, oct));
}
