// Folds a chunk of logits into each row's running statistics.
//
//   logits  [m, n]  f32, columns `first`.. of the vocabulary
//   given   [m]     u32, the token asked for
//   state   [m]     maximum, sum of exp(logit - maximum), logit of the given token, argmax
//
// Chunks come in ascending order, the first with first = 0. Equal maxima keep the lowest token. Grid:
// flat, one workgroup of WG lanes a row: lane l takes columns l, l + WG, ...; lanes are joined as trees.
//
// Links common/index.wgsl and common/reduce.wgsl. f64 twin: kernels::fold.

struct Params {
    rows: u32, // m
    n: u32, // columns in this chunk
    first: u32, // the chunk's first column in the vocabulary
    unused: u32,
}

struct State {
    top: f32,
    sum: f32,
    given_logit: f32,
    argmax: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<u32>;
@group(0) @binding(3) var<storage, read_write> states: array<State>;

override WG: u32 = 64u;
override LANES: u32 = 64u;

var<workgroup> tops: array<f32, WG>;
var<workgroup> columns: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let base = row * params.n;

    var top = -3.4e38;
    var column = 0u;
    for (var i = lane; i < params.n; i += WG) {
        let logit = logits[base + i];
        if logit > top {
            top = logit;
            column = i;
        }
    }
    tops[lane] = top;
    columns[lane] = column;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = tops[lane + half];
            let before = columns[lane + half] < columns[lane];
            if other > tops[lane] || (other == tops[lane] && before) {
                tops[lane] = other;
                columns[lane] = columns[lane + half];
            }
        }
        workgroupBarrier();
    }
    let peak = tops[0];

    var sum = 0.0;
    for (var i = lane; i < params.n; i += WG) {
        sum += exp(logits[base + i] - peak);
    }
    sum = sum_lanes(lane, vec4<f32>(sum)).x;

    if lane == 0u {
        var state = State(peak, sum, 0.0, params.first + columns[0]);
        if params.first > 0u {
            let old = states[row];
            let joint = max(old.top, peak);
            state.sum = old.sum * exp(old.top - joint) + sum * exp(peak - joint);
            state.top = joint;
            state.given_logit = old.given_logit;
            if old.top >= peak {
                state.argmax = old.argmax;
            }
        }
        let asked = given[row] - params.first;
        if given[row] >= params.first && asked < params.n {
            state.given_logit = logits[base + asked];
        }
        states[row] = state;
    }
}
