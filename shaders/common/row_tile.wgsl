// An eight of the four rows of the weights that a lane multiplies.
//
// Links common/oct.wgsl, common/tile.wgsl and a format that gives `load_oct`.

fn load_tile(rows: vec4<u32>, oct: u32) -> Tile {
    return tile_of(load_oct(rows.x, oct), load_oct(rows.y, oct), load_oct(rows.z, oct), load_oct(rows.w, oct));
}
