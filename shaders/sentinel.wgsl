// Notes that a submission is finished: the last launch of every one.
//
//   finished  [1]  u32, the number of the last submission that is finished with all before it
//   after     [-]  u32, what the submission's last launch wrote
//
// Once a submission is lost, the number stays as it is: those after it do not have the one before. Nothing
// is read from `after`; that it is bound makes this launch wait for the one that wrote it. Grid: one
// workgroup of one lane.
//
// f64 twin: kernels::sentinel.

struct Params {
    number: u32, // the submission's
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> finished: array<u32>;
@group(0) @binding(2) var<storage, read> after: array<u32>;

@compute @workgroup_size(1)
fn main() {
    if finished[0] + 1u == params.number {
        finished[0] = params.number;
    }
}
