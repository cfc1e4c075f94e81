// What every kernel of y = x W^T (+ bias) declares: its parameters, its operands but the weights, its result.
//
// A launch computes n columns of y from as many rows of one part of W. Where ADD, y is added to. Where GATED, the
// second half of the rows is multiplied by silu of the first half: n / 2 columns of y. Links common/silu.wgsl.

struct Params {
    t: u32, // rows of x
    n: u32, // rows of W to use
    k: u32, // columns of x, a multiple of 8
    first_row: u32, // of the part of W
    stride: u32, // columns of y in all
    first_column: u32, // of y
    first_bias: u32,
    eps: f32, // of the norm; read where a matvec norms x itself
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

override BIAS: bool = false;
override ADD: bool = false;
override GATED: bool = false;

// The row of this part of W that gives column `column` of the launch; past the edge the last row again, of which
// nothing is stored. Where GATED, four columns are two rows of the first half and their two of the second.
fn row_of(column: u32) -> u32 {
    var row = column;
    if GATED {
        row = column / 4u * 2u + column % 2u + select(0u, params.n / 2u, column % 4u >= 2u);
    }
    return params.first_row + min(row, params.n - 1u);
}

// Columns column..column + 4 of the launch for a token, as far as there are any; `column` is a multiple of 4.
fn store(token: u32, column: u32, sum: vec4<f32>) {
    if token >= params.t {
        return;
    }
    let first = token * params.stride + params.first_column;
    if GATED {
        let gated = silu(sum.xy) * sum.zw;
        for (var i = 0u; i < 2u; i += 1u) {
            if column + 2u * i < params.n {
                y[first + column / 2u + i] = gated[i];
            }
        }
        return;
    }
    for (var i = 0u; i < 4u; i += 1u) {
        if column + i < params.n {
            var value = sum[i];
            if BIAS {
                value += bias[params.first_bias + column + i];
            }
            if ADD {
                value += y[first + column + i];
            }
            y[first + column + i] = value;
        }
    }
}
