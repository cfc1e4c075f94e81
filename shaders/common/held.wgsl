// What the subgroup families of matmul hold of x across the lanes of a subgroup.
//
// An eight of 16 tokens is 32 quads: the first LANES lanes of a subgroup hold 32 / LANES of them each and
// hand them to all. Lanes after those hold the same again, so subgroups may have any size from LANES up,
// and differ. LANES comes from kernels::family. Links common/product.wgsl.

// Tokens that are held together, and quads of them a lane.
const BLOCK: u32 = 16u;
const HELD: u32 = 2u * BLOCK / LANES;

// Where quad `index` of the token block's first eight is in x; past the edge the last token's.
fn place(token: u32, index: u32) -> u32 {
    return min(token + index / 2u, params.t - 1u) * (params.k / 4u) + index % 2u;
}
