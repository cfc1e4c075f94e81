// The four rows of the weights that a lane multiplies.
//
// Links common/product.wgsl.

// Rows of this part of W for the columns from `column` on.
fn rows_of(column: u32) -> vec4<u32> {
    return vec4<u32>(row_of(column), row_of(column + 1u), row_of(column + 2u), row_of(column + 3u));
}
