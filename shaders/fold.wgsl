// Folds a chunk of logits into each row's running statistics.
//
//   logits  [m, n]  f32, columns `first`.. of the vocabulary
//   given   [m]     u32, the token asked for
//   state   [m]     maximum, sum of exp(logit - maximum), logit of the given token, argmax
//
// Chunks come in ascending order, the first with first = 0. Equal maxima keep the lowest token. Grid:
// flat, one workgroup of WG lanes a row. Lane l walks columns l, l + WG, ... with a running maximum; lane 0
// then joins the lanes in order.
//
// Links common/index.wgsl and common/fold_state.wgsl. f64 twin: kernels::fold.

struct Params {
    rows: u32, // m
    n: u32, // columns in this chunk
    first: u32, // the chunk's first column in the vocabulary
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<u32>;
@group(0) @binding(3) var<storage, read_write> states: array<State>;

override WG: u32 = 64u;

// Each lane's statistics.
var<workgroup> lanes: array<State, WG>;

// The statistics of two disjoint sets of columns together.
fn join(a: State, b: State) -> State {
    let top = max(a.top, b.top);
    var state = a;
    state.top = top;
    state.sum = a.sum * exp(a.top - top) + b.sum * exp(b.top - top);
    if b.top > a.top || (b.top == a.top && b.argmax < a.argmax) {
        state.argmax = b.argmax;
    }
    return state;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let base = row * params.n;

    // Finite, and below every logit: a lane without columns has weight 0.
    var own = State(-3.4e38, 0.0, 0.0, 0xffffffffu);
    for (var i = lane; i < params.n; i += WG) {
        let logit = logits[base + i];
        if logit > own.top {
            own.sum *= exp(own.top - logit);
            own.top = logit;
            own.argmax = params.first + i;
        }
        own.sum += exp(logit - own.top);
    }
    lanes[lane] = own;
    workgroupBarrier();

    if lane == 0u {
        var state = lanes[0];
        for (var i = 1u; i < min(WG, params.n); i += 1u) {
            state = join(state, lanes[i]);
        }
        if params.first > 0u {
            state = join(states[row], state);
        }
        let asked = given[row] - params.first;
        if given[row] >= params.first && asked < params.n {
            state.given_logit = logits[base + asked];
        }
        states[row] = state;
    }
}
