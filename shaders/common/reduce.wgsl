// Sum over LANES neighbouring lanes of a workgroup of WG, as a binary tree.
//
// Needs `override WG` and `override LANES`, powers of two, LANES <= WG.

var<workgroup> partial: array<vec4<f32>, WG>;

// The sum of `value` over this lane's group of LANES; every lane of the group gets it.
// All lanes of the workgroup must call it.
fn sum_lanes(lane: u32, value: vec4<f32>) -> vec4<f32> {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane % LANES) < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    let sum = partial[lane - lane % LANES];
    workgroupBarrier();
    return sum;
}
