// Adds a chunk of the vocabulary to each row's entropy, and counts the tokens likelier than the given one.
//
//   logits   [m, n]  f32, columns `first`.. of the vocabulary
//   given    [m]     u32, the token asked for
//   states   [m]     the row's statistics over the whole vocabulary, as fold.wgsl leaves them
//   details  [m]     entropy so far in nats; tokens before the given one in the order of likelihood, equal ones by token
//
// Chunks come in ascending order, the first with first = 0. Grid: flat, one workgroup of WG lanes a row. Lane l walks
// columns l, l + WG, ...; lane 0 then adds up the lanes in order.
//
// Links common/index.wgsl and common/fold_state.wgsl. f64 twin: kernels::entropy.

struct Params {
    rows: u32, // m
    n: u32, // columns in this chunk
    first: u32, // the chunk's first column in the vocabulary
    unused: u32,
}

struct Detail {
    entropy: f32,
    before: u32,
    unused: array<u32, 2>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<u32>;
@group(0) @binding(3) var<storage, read> states: array<State>;
@group(0) @binding(4) var<storage, read_write> details: array<Detail>;

override WG: u32 = 64u;

var<workgroup> entropies: array<f32, WG>;
var<workgroup> counts: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let base = row * params.n;
    let state = states[row];
    let asked = given[row];
    let whole = log(state.sum);
    var entropy = 0.0;
    var count = 0u;
    for (var i = lane; i < params.n; i += WG) {
        let logit = logits[base + i];
        // -log p, exact where p is near 1 and the logit is the greatest.
        let surprise = whole - (logit - state.top);
        entropy += exp(-surprise) * surprise;
        let token = params.first + i;
        count += u32(logit > state.given_logit || (logit == state.given_logit && token < asked));
    }
    entropies[lane] = entropy;
    counts[lane] = count;
    workgroupBarrier();

    if lane == 0u {
        for (var i = 1u; i < WG; i += 1u) {
            entropy += entropies[i];
            count += counts[i];
        }
        if params.first > 0u {
            entropy += details[row].entropy;
            count += details[row].before;
        }
        details[row].entropy = entropy;
        details[row].before = count;
    }
}
