// The rows that matvec multiplies: x as it is.
//
// Links common/product.wgsl.

fn norm_rows(token: u32, lane: u32) {}

// Quad `at` of x, which is quad `quad` of the tile's token `j`.
fn x_at(at: u32, quad: u32, j: u32) -> vec4<f32> {
    return x[at];
}
