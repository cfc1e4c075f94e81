// Adds a chunk of the vocabulary to what sets two rows of logits apart.
//
//   reference  [m, n]  f32, columns `first`.. of the vocabulary: p
//   arm        [m, n]  f32, the same columns of another arm: q
//   before     [m]     statistics of the reference's rows over the whole vocabulary, as fold.wgsl leaves them
//   after      [m]     the same of the arm's rows
//   sums       [m]     KL(p || q), KL(q || p), Jensen-Shannon in nats, and total variation, so far
//
// Chunks come in ascending order, the first with first = 0. Grid: flat, one workgroup of WG lanes a row. Lane l walks
// columns l, l + WG, ...; lane 0 then adds up the lanes in order.
//
// With d = log q - log p, KL(p || q) is the sum of p (exp(d) - 1 - d), because the p and the q each sum to 1. No term is
// negative, equal rows give exactly 0, and an error common to all d (that of the log-sum-exps) cancels to
// first order: rows that differ little keep their digits.
//
// Links common/index.wgsl and common/fold_state.wgsl. f64 twin: metrics::divergence.

struct Params {
    rows: u32, // m
    n: u32, // columns in this chunk
    first: u32, // the chunk's first column in the vocabulary
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> reference: array<f32>;
@group(0) @binding(2) var<storage, read> arm: array<f32>;
@group(0) @binding(3) var<storage, read> before: array<State>;
@group(0) @binding(4) var<storage, read> after: array<State>;
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>;

override WG: u32 = 64u;

// Below it, series are better than differences of what nearly cancels.
const SMALL: f32 = 0.5;

var<workgroup> lanes: array<vec4<f32>, WG>;

// exp(d) - 1 - d for |d| < SMALL.
fn excess(d: f32) -> f32 {
    let terms = 1.0 / 2.0 + d * (1.0 / 6.0 + d * (1.0 / 24.0 + d * (1.0 / 120.0 + d * (1.0 / 720.0
        + d * (1.0 / 5040.0 + d * (1.0 / 40320.0 + d / 362880.0))))));
    return d * d * terms;
}

// tanh(d / 2) for |d| < SMALL.
fn tilt(d: f32) -> f32 {
    let u = 0.5 * d;
    let s = u * u;
    return u * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))));
}

// x log x, 0 at 0.
fn entropic(x: f32) -> f32 {
    return select(x * log(max(x, 1e-38)), 0.0, x <= 0.0);
}

// (1 - t) log(1 - t) + (1 + t) log(1 + t) for t in -1..1.
fn mixed(t: f32) -> f32 {
    if abs(t) < 0.25 {
        let s = t * t;
        return s * (1.0 + s * (1.0 / 6.0 + s * (1.0 / 15.0 + s * (1.0 / 28.0 + s * (1.0 / 45.0 + s / 66.0)))));
    }
    return entropic(1.0 - t) + entropic(1.0 + t);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let base = row * params.n;
    let p_top = before[row].top;
    let q_top = after[row].top;
    let p_log_sum = log(before[row].sum);
    let q_log_sum = log(after[row].sum);
    // log-sum-exp of the arm less that of the reference.
    let shift = (q_top - p_top) + (q_log_sum - p_log_sum);

    var own = vec4<f32>();
    for (var i = lane; i < params.n; i += WG) {
        let x = reference[base + i];
        let y = arm[base + i];
        let p = exp((x - p_top) - p_log_sum);
        let q = exp((y - q_top) - q_log_sum);
        let d = (y - x) - shift;
        var terms = vec4<f32>();
        var t: f32;
        if abs(d) < SMALL {
            terms.x = p * excess(d);
            terms.y = q * excess(-d);
            t = tilt(d);
        } else {
            terms.x = max(q - p - p * d, 0.0);
            terms.y = max(p - q + q * d, 0.0);
            let whole = p + q;
            t = select((q - p) / whole, 0.0, whole <= 0.0);
        }
        terms.z = 0.25 * (p + q) * mixed(clamp(t, -1.0, 1.0));
        terms.w = 0.5 * (p + q) * abs(t);
        own += terms;
    }
    lanes[lane] = own;
    workgroupBarrier();

    if lane == 0u {
        for (var i = 1u; i < WG; i += 1u) {
            own += lanes[i];
        }
        if params.first > 0u {
            own += sums[row];
        }
        sums[row] = own;
    }
}
