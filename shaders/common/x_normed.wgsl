// The rows that matvec multiplies: x / sqrt(mean(x^2) + eps) * gain, bit for bit what rms_norm.wgsl makes of x.
//
//   gain  [k]  f32
//
// Every workgroup sums the squares of its tokens again: a launch less, for two more reads of x.
//
// WG and TOKENS come from the kernel. Links common/product.wgsl. f64 twin: kernels::rms_norm.

@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;

// As many as share a row in rms_norm.wgsl, at most MOST_NORM_LANES.
override NORM_LANES: u32 = 8u;
const MOST_NORM_LANES: u32 = 64u;

// For each token the sums of squares that a lane has there, then what its values are multiplied by.
var<workgroup> squares: array<f32, TOKENS * MOST_NORM_LANES>;
var<workgroup> factors: array<f32, TOKENS>;

// Makes ready the factors of tokens token..token + TOKENS, past the edge the last one's; all lanes come here together.
fn norm_rows(token: u32, lane: u32) {
    let quads = params.k / 4u;
    for (var i = lane; i < TOKENS * NORM_LANES; i += WG) {
        let row = min(token + i / NORM_LANES, params.t - 1u);
        var own = 0.0;
        for (var q = i % NORM_LANES; q < quads; q += NORM_LANES) {
            let value = x[row * quads + q];
            own += dot(value, value);
        }
        squares[i] = own;
    }
    workgroupBarrier();
    for (var j = lane; j < TOKENS; j += WG) {
        var sum = 0.0;
        for (var i = 0u; i < NORM_LANES; i += 1u) {
            sum += squares[j * NORM_LANES + i];
        }
        factors[j] = inverseSqrt(sum / f32(params.k) + params.eps);
    }
    workgroupBarrier();
}

// Quad `at` of x, which is quad `quad` of the tile's token `j`, normed; of no token, something.
fn x_at(at: u32, quad: u32, j: u32) -> vec4<f32> {
    return x[at] * factors[min(j, TOKENS - 1u)] * gain[quad];
}
