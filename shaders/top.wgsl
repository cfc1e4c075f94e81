// Keeps each row's TOP greatest logits, chunk by chunk of the vocabulary.
//
//   logits  [m, n]    f32, columns `first`.. of the vocabulary
//   best    [m, TOP]  logit and token; greatest first, equal ones by token
//
// Chunks come in ascending order, the first with first = 0. Grid: flat, one workgroup of WG lanes a row. Each lane finds
// the greatest of its columns; in turn, lane 0 puts the greatest of these into the list and its lane finds the next one, until
// one is no better than the last in the list: after the first chunks that is the first one.
//
// Links common/index.wgsl. f64 twin: kernels::top.

struct Params {
    rows: u32, // m
    n: u32, // columns in this chunk
    first: u32, // the chunk's first column in the vocabulary
    unused: u32,
}

struct Entry {
    logit: f32,
    token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> best: array<Entry>;

override WG: u32 = 32u;

const TOP: u32 = 10u;

// Below every logit.
const NONE: Entry = Entry(-3.4e38, 0xffffffffu);

var<workgroup> lanes: array<Entry, WG>;
var<workgroup> list: array<Entry, TOP>;
// What was taken from this chunk last, and from which lane.
var<workgroup> taken: Entry;
var<workgroup> winner: u32;
var<workgroup> again: u32;

// Whether `a` comes before `b` in the list.
fn before(a: Entry, b: Entry) -> bool {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let base = row * params.n;
    if lane == 0u {
        for (var i = 0u; i < TOP; i += 1u) {
            if params.first == 0u {
                list[i] = NONE;
            } else {
                list[i] = best[row * TOP + i];
            }
        }
        taken = Entry(3.4e38, 0u);
        winner = WG;
        again = 1u;
    }
    for (var turn = 0u; turn < TOP; turn += 1u) {
        if workgroupUniformLoad(&again) == 0u {
            break;
        }
        if turn == 0u || winner == lane {
            let last = taken;
            var own = NONE;
            for (var i = lane; i < params.n; i += WG) {
                let entry = Entry(logits[base + i], params.first + i);
                if before(last, entry) && before(entry, own) {
                    own = entry;
                }
            }
            lanes[lane] = own;
        }
        workgroupBarrier();
        if lane == 0u {
            var next = lanes[0];
            winner = 0u;
            for (var i = 1u; i < WG; i += 1u) {
                if before(lanes[i], next) {
                    next = lanes[i];
                    winner = i;
                }
            }
            taken = next;
            if before(next, list[TOP - 1u]) {
                var at = TOP - 1u;
                while at > 0u && before(next, list[at - 1u]) {
                    list[at] = list[at - 1u];
                    at -= 1u;
                }
                list[at] = next;
            } else {
                again = 0u;
            }
        }
        workgroupBarrier();
    }
    if lane == 0u {
        for (var i = 0u; i < TOP; i += 1u) {
            best[row * TOP + i] = list[i];
        }
    }
}
