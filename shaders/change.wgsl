// What an update from t to u does to the codes of one scheme: counts, a histogram of |u - t| / step, and short sums.
//
//   raw_t, raw_u        [n, k]            f32, f16 or bf16, as stored, each in its own dtype
//   codes_t, codes_u    [n k / PER_WORD]  as pack_codes.wgsl leaves them
//   scales_t, scales_u  [groups, VALUES]  as pack_scales.wgsl leaves them
//   tallies  [TALLIES]         u32, zeros before: the histogram's bins (the one for 0 stays 0), then the counts below
//   sums     [pieces, PARTS, SUMS]  f32: update, update from zero, kept, quantized, ratio, ratio capped at 1
//
// Grid: flat, a workgroup of WG lanes takes PIECES pieces of 8 WG eights. Lane l looks at eights l, l + WG, ... of a piece;
// it adds up its own as a tree, and the lanes' sums are a tree that stops at PARTS. What is past the end adds zeros.
//
// Counts are exact: they compare bits, single products and single differences. A term of a sum is rounded once for each
// level of the trees above it.
//
// Links common/index.wgsl, common/oct.wgsl, a group_of (common/group_*.wgsl), a `decode` with its `Scale` (formats/*.wgsl),
// pairs/weights.wgsl, pairs/place.wgsl, pairs/one_word.wgsl or pairs/two_words.wgsl, and one of widths/*.wgsl.
// Twin: quant::change.

struct Params {
    octs: u32, // n k / 8
    k: u32, // columns, a multiple of 8
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(5) var<storage, read> scales_t: array<Scale>;
@group(0) @binding(6) var<storage, read> scales_u: array<Scale>;
@group(0) @binding(7) var<storage, read_write> tallies: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> sums: array<f32>;

override WG: u32 = 128u;
override PIECES: u32 = 2u;
override PARTS: u32 = 16u;

// Bits of a code, and a code that counts as 0 (256 if there is none).
override BITS: u32 = 4u;
override MINUS_ZERO: u32 = 256u;

const SUMS: u32 = 6u;

// Places of the counts after the bins. Twin: kernels::change::Tally.
const CHANGED: u32 = BINS;
const CODE_CHANGED: u32 = BINS + 1u;
const SCALE_CHANGED: u32 = BINS + 2u;
const VALUE_CHANGED: u32 = BINS + 3u;
const ABSORBED: u32 = BINS + 4u;
const ZERO_T: u32 = BINS + 5u;
const ZERO_U: u32 = BINS + 6u;
const GREATEST: u32 = BINS + 7u; // bits of the greatest ratio
const LARGEST: u32 = BINS + 8u; // bits of the largest magnitude of a weight
const TALLIES: u32 = BINS + 9u;

const MAGNITUDE: vec4<u32> = vec4<u32>(0x7fffffffu);

var<workgroup> found: array<atomic<u32>, TALLIES>;
// Update, update from zero, kept, quantized; ratio and capped ratio.
var<workgroup> products: array<vec4<f32>, WG>;
var<workgroup> ratios: array<vec2<f32>, WG>;

var<private> changed: u32;
var<private> code_changed: u32;
var<private> scale_changed: u32;
var<private> value_changed: u32;
var<private> absorbed: u32;
var<private> zero_t: u32;
var<private> zero_u: u32;
var<private> greatest: f32;
var<private> largest: u32;

struct Sums {
    products: vec4<f32>,
    ratios: vec2<f32>,
}

struct Codes {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

fn codes_of(words: vec2<u32>) -> Codes {
    let mask = vec4<u32>((1u << BITS) - 1u);
    let shifts = vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS);
    let hi = select(words.y, words.x >> 16u, BITS == 4u);
    return plain_codes(Codes((vec4<u32>(words.x) >> shifts) & mask, (vec4<u32>(hi) >> shifts) & mask));
}

fn plain_codes(codes: Codes) -> Codes {
    let minus = vec4<u32>(MINUS_ZERO);
    let zero = vec4<u32>(0u);
    return Codes(select(codes.lo, zero, codes.lo == minus), select(codes.hi, zero, codes.hi == minus));
}

fn count(which: vec4<bool>) -> u32 {
    let ones = select(vec4<u32>(0u), vec4<u32>(1u), which);
    return ones.x + ones.y + ones.z + ones.w;
}

fn added(terms: vec4<f32>) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

// Counts four pairs of weights and gives their terms, added up. `scale` is the one of the side whose code is in `codes`.
fn look(t: vec4<f32>, u: vec4<f32>, value_t: vec4<f32>, value_u: vec4<f32>, codes: vec4<u32>, scale: f32) -> Sums {
    let bits_t = bitcast<vec4<u32>>(t);
    let bits_u = bitcast<vec4<u32>>(u);
    let size_t = bits_t & MAGNITUDE;
    let size_u = bits_u & MAGNITUDE;
    // On the bits, because a device may take a subnormal for 0.
    let moves = (bits_t != bits_u) & ((size_t | size_u) != vec4<u32>(0u));
    let quantized_t = bitcast<vec4<u32>>(value_t);
    let quantized_u = bitcast<vec4<u32>>(value_u);
    let is_zero_t = (quantized_t & MAGNITUDE) == vec4<u32>(0u);
    let is_zero_u = (quantized_u & MAGNITUDE) == vec4<u32>(0u);
    let stays = (quantized_t == quantized_u) | (is_zero_t & is_zero_u);
    changed += count(moves);
    value_changed += count(!stays);
    absorbed += count(moves & stays);
    zero_t += count(is_zero_t);
    zero_u += count(is_zero_u);
    let most = max(size_t, size_u);
    largest = max(largest, max(max(most.x, most.y), max(most.z, most.w)));

    let delta = u - t;
    let difference = value_u - value_t;
    let square = delta * delta;
    let from_zero = select(vec4<f32>(0.0), square, is_zero_t);

    let step = widths_of(codes) * scale;
    let has_step = step > vec4<f32>(0.0);
    let ratio = select(vec4<f32>(0.0), abs(delta) / select(vec4<f32>(1.0), step, has_step), has_step);
    greatest = max(greatest, max(max(ratio.x, ratio.y), max(ratio.z, ratio.w)));

    // Without the small ones, a difference has nothing that a device may flush.
    let small = vec4<u32>(NEGLIGIBLE);
    let kept_t = select(t, vec4<f32>(0.0), size_t < small);
    let kept_u = select(u, vec4<f32>(0.0), size_u < small);
    let moved = kept_u - kept_t;
    let counted = moves & has_step;
    for (var i = 0u; i < 4u; i += 1u) {
        if counted[i] {
            atomicAdd(&found[place(moved[i], step[i])], 1u);
        }
    }
    let products =
        vec4<f32>(added(square), added(from_zero), added(difference * delta), added(difference * difference));
    return Sums(products, vec2<f32>(added(ratio), added(min(ratio, vec4<f32>(1.0)))));
}

fn look_at(oct: u32) -> Sums {
    let per_row = params.k / 8u;
    let group = group_of(oct / per_row, oct % per_row);
    let word_t = codes_t[oct];
    let word_u = codes_u[oct];
    let value_t = decode(word_t, scales_t[group]);
    let value_u = decode(word_u, scales_u[group]);
    // One value a group, or two: then the second is the zero point.
    let values_t = vec2<f32>(scales_t[group]);
    let values_u = vec2<f32>(scales_u[group]);
    if any(bitcast<vec2<u32>>(values_t) != bitcast<vec2<u32>>(values_u)) {
        scale_changed += 8u;
    }
    let now = codes_of(vec2<u32>(word_u));
    var own = codes_of(vec2<u32>(word_t));
    code_changed += count(own.lo != now.lo) + count(own.hi != now.hi);
    var scale = values_t.x;
    if scale == 0.0 {
        own = now;
        scale = values_u.x;
    }
    let lo = look(weights_t(2u * oct), weights_u(2u * oct), value_t.lo, value_u.lo, own.lo, scale);
    let hi = look(weights_t(2u * oct + 1u), weights_u(2u * oct + 1u), value_t.hi, value_u.hi, own.hi, scale);
    return plus(lo, hi);
}

fn plus(a: Sums, b: Sums) -> Sums {
    return Sums(a.products + b.products, a.ratios + b.ratios);
}

fn nothing() -> Sums {
    return Sums(vec4<f32>(0.0), vec2<f32>(0.0));
}

// Eights first, first + WG, ..., eight of them, as a tree: adding to nothing does not round.
fn look_at_eight(first: u32) -> Sums {
    var all = nothing();
    for (var a = 0u; a < 8u; a += 4u) {
        var four = nothing();
        for (var b = 0u; b < 4u; b += 2u) {
            var two = nothing();
            for (var c = 0u; c < 2u; c += 1u) {
                let oct = first + (a + b + c) * WG;
                if oct < params.octs {
                    two = plus(two, look_at(oct));
                }
            }
            four = plus(four, two);
        }
        all = plus(all, four);
    }
    return all;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < TALLIES; i += WG) {
        atomicStore(&found[i], 0u);
    }
    if lane == 0u {
        set_widths();
    }
    workgroupBarrier();

    let pieces = (params.octs + 8u * WG - 1u) / (8u * WG);
    for (var i = 0u; i < PIECES; i += 1u) {
        let piece = flat_workgroup(id) * PIECES + i;
        let own = look_at_eight(piece * 8u * WG + lane);
        products[lane] = own.products;
        ratios[lane] = own.ratios;
        workgroupBarrier();
        for (var half = WG / 2u; half >= PARTS; half /= 2u) {
            if lane < half {
                products[lane] += products[lane + half];
                ratios[lane] += ratios[lane + half];
            }
            workgroupBarrier();
        }
        if lane < PARTS && piece < pieces {
            let at = (piece * PARTS + lane) * SUMS;
            for (var j = 0u; j < 4u; j += 1u) {
                sums[at + j] = products[lane][j];
            }
            sums[at + 4u] = ratios[lane].x;
            sums[at + 5u] = ratios[lane].y;
        }
    }

    atomicAdd(&found[CHANGED], changed);
    atomicAdd(&found[CODE_CHANGED], code_changed);
    atomicAdd(&found[SCALE_CHANGED], scale_changed);
    atomicAdd(&found[VALUE_CHANGED], value_changed);
    atomicAdd(&found[ABSORBED], absorbed);
    atomicAdd(&found[ZERO_T], zero_t);
    atomicAdd(&found[ZERO_U], zero_u);
    atomicMax(&found[GREATEST], bitcast<u32>(greatest));
    atomicMax(&found[LARGEST], largest);
    workgroupBarrier();
    for (var i = lane; i < TALLIES; i += WG) {
        let value = atomicLoad(&found[i]);
        if value > 0u {
            if i < GREATEST {
                atomicAdd(&tallies[i], value);
            } else {
                atomicMax(&tallies[i], value);
            }
        }
    }
}
