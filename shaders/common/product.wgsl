// What every kernel of y = x W^T (+ bias) declares: its parameters, its operands but the weights, its result.
//
// A launch computes n columns of y from as many rows of one part of W. Where ADD, y is added to.

struct Params {
    t: u32, // rows of x
    n: u32, // columns of y to compute
    k: u32, // columns of x, a multiple of 8
    first_row: u32, // of the part of W
    stride: u32, // columns of y in all
    first_column: u32, // of y
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

override BIAS: bool = false;
override ADD: bool = false;

// Columns column..column + 4 of the launch for a token, as far as there are any.
fn store(token: u32, column: u32, sum: vec4<f32>) {
    if token >= params.t {
        return;
    }
    for (var i = 0u; i < 4u; i += 1u) {
        if column + i < params.n {
            let at = params.first_column + column + i;
            var value = sum[i];
            if BIAS {
                value += bias[at];
            }
            if ADD {
                value += y[token * params.stride + at];
            }
            y[token * params.stride + at] = value;
        }
    }
}
