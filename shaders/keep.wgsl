// Kept rounding: moves codes of a packed matrix one step, so that a share of each row's update survives.
//
//   weights         [n, k]            f32, u
//   targets         [n, k]            f32, t
//   scales          [groups, VALUES]  f32, of u
//   target_scales   [groups, VALUES]  f32, of t
//   target_codes    [n k / PER_WORD]  u32, nearest codes of t
//   codes           [n k / PER_WORD]  u32, nearest codes of u; kept ones after it
//   moves           [n, k]            vec2<u32>, scratch: the price's place among floats, and the bits of the gain
//
// Grid: flat, one workgroup a row; a lane has every WG-th word of it, so that a word has one writer.
//
// Sums are of integers, as u64 and i64 in two words, lowest first: their order cannot matter. Products that are added to
// something pass through `fixed`, so that no compiler fuses the two.
//
// Links common/index.wgsl, common/wide.wgsl and one of ladders/*.wgsl, which gives `value_at` and `neighbour`.
// Host twin, with the definition: quant::keep.

struct Params {
    cols: u32,
    row_len: u32, // weights in a row that groups are cut from
    group: u32, // weights in a full group
    per_row: u32, // groups in a row
    share: f32, // of the update that is to survive
    nothing: u32, // 0
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> target_scales: array<f32>;
@group(0) @binding(5) var<storage, read> target_codes: array<u32>;
@group(0) @binding(6) var<storage, read_write> codes: array<u32>;
@group(0) @binding(7) var<storage, read_write> moves: array<vec2<u32>>;

override WG: u32 = 64u;
override PER_WORD: u32 = 8u;

// quant::keep::ROUNDS and TOLERANCE_SHIFT.
const ROUNDS: u32 = 8u;
const TOLERANCE_SHIFT: u32 = 6u;
const NONE: u32 = 0xffffffffu;

var<workgroup> partial: array<vec2<u32>, WG>;
var<workgroup> total: vec2<u32>;

// What is added to something. The compiler does not know that it is changed by nothing.
fn fixed(product: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(product) ^ params.nothing);
}

// 0 for a subnormal number: devices may or may not keep them.
fn normal(x: f32) -> f32 {
    return select(x, 0.0, (bitcast<u32>(x) & 0x7f800000u) == 0u);
}

fn magnitude_bits(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

// What all lanes have, folded by sum or componentwise by the greatest, for all lanes.
fn fold_all(lane: u32, mine: vec2<u32>, sums: bool) -> vec2<u32> {
    partial[lane] = mine;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let own = partial[lane];
            let other = partial[lane + half];
            partial[lane] = select(max(own, other), add(own, other), vec2<bool>(sums));
        }
        workgroupBarrier();
    }
    if lane == 0u {
        total = partial[0];
    }
    return workgroupUniformLoad(&total);
}

fn sum_all(lane: u32, mine: vec2<u32>) -> vec2<u32> {
    return fold_all(lane, mine, true);
}

fn max_all(lane: u32, mine: vec2<u32>) -> vec2<u32> {
    return fold_all(lane, mine, false);
}

struct Weight {
    delta: f32, // u - t
    old: f32, // what the code stands for
    had: f32, // (Q(u) - Q(t)) (u - t)
    scales: vec2<f32>,
}

fn group_scales(group: u32) -> vec2<f32> {
    return vec2<f32>(scales[group * VALUES], scales[group * VALUES + VALUES - 1u]);
}

fn target_group_scales(group: u32) -> vec2<f32> {
    return vec2<f32>(target_scales[group * VALUES], target_scales[group * VALUES + VALUES - 1u]);
}

fn weight_at(flat: u32, code: u32, target_code: u32) -> Weight {
    let group = flat / params.row_len * params.per_row + flat % params.row_len / params.group;
    var it: Weight;
    it.scales = group_scales(group);
    it.delta = normal(normal(weights[flat]) - normal(targets[flat]));
    it.old = fixed(value_at(code, it.scales));
    let before = fixed(value_at(target_code, target_group_scales(group)));
    it.had = normal((it.old - before) * it.delta);
    return it;
}

struct Move {
    excess: f32,
    gain: f32, // 0 if there is none
}

fn move_of(it: Weight, flat: u32, code: u32, along: bool) -> Move {
    let up = (it.delta > 0.0) == along;
    let next = neighbour(code, up);
    if it.delta == 0.0 || next == NONE {
        return Move(0.0, 0.0);
    }
    let new_value = fixed(value_at(next, it.scales));
    let weight = normal(weights[flat]);
    let beyond = (new_value - weight) + (it.old - weight);
    return Move(normal(select(-beyond, beyond, up)), normal(abs((new_value - it.old) * it.delta)));
}

// A float's place among all floats, and back.
fn order(x: f32) -> i32 {
    let bits = bitcast<i32>(x);
    return select(bits, bits ^ 0x7fffffff, bits < 0);
}

fn from_order(place: i32) -> f32 {
    return bitcast<f32>(select(place, place ^ 0x7fffffff, place < 0));
}

fn between(low: i32, high: i32) -> i32 {
    return low + i32((bitcast<u32>(high) - bitcast<u32>(low)) / 2u);
}

// The place of the least price that admits a move. The greatest finite float stands for all above it.
fn price_of(excess: f32, delta: f32) -> i32 {
    var low = order(-3.4028234663852886e38);
    var high = order(3.4028234663852886e38);
    while low < high {
        let middle = between(low, high);
        let price = from_order(middle);
        // A move without excess is worth any price that is not negative.
        let admitted = select(excess <= normal(price * delta), price >= 0.0, excess == 0.0);
        if admitted {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Makes move number i of a word, whose codes are `word`; gives the word after it.
fn made(flat: u32, i: u32, word: u32, along: bool) -> u32 {
    let bits = 32u / PER_WORD;
    let mask = 0xffffffffu >> (32u - bits);
    let code = (word >> (i * bits)) & mask;
    let up = (normal(weights[flat]) > normal(targets[flat])) == along;
    moves[flat].y = 0u;
    return (word & ~(mask << (i * bits))) | (neighbour(code, up) << (i * bits));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(id);
    if row >= params.rows {
        return;
    }
    let words = params.cols / PER_WORD;
    let first_word = row * words;
    let bits = 32u / PER_WORD;
    let mask = 0xffffffffu >> (32u - bits);

    // The greatest term gives the unit.
    var greatest = 0u;
    for (var w = lane; w < words; w += WG) {
        let word = codes[first_word + w];
        let target_word = target_codes[first_word + w];
        for (var i = 0u; i < PER_WORD; i += 1u) {
            let flat = (first_word + w) * PER_WORD + i;
            let code = (word >> (i * bits)) & mask;
            let it = weight_at(flat, code, (target_word >> (i * bits)) & mask);
            let wanted = normal(params.share * normal(it.delta * it.delta));
            greatest = max(greatest, max(magnitude_bits(wanted), magnitude_bits(it.had)));
            greatest = max(greatest, bitcast<u32>(move_of(it, flat, code, true).gain));
            greatest = max(greatest, bitcast<u32>(move_of(it, flat, code, false).gain));
        }
    }
    greatest = max_all(lane, vec2<u32>(greatest, 0u)).x;
    if greatest == 0u || greatest >= 0x7f800000u {
        return;
    }
    let unit = greatest >> 23u;

    // What is wanted, and what there is.
    var wanted_sum = vec2<u32>(0u);
    var had_sum = vec2<u32>(0u);
    for (var w = lane; w < words; w += WG) {
        let word = codes[first_word + w];
        let target_word = target_codes[first_word + w];
        for (var i = 0u; i < PER_WORD; i += 1u) {
            let flat = (first_word + w) * PER_WORD + i;
            let it = weight_at(flat, (word >> (i * bits)) & mask, (target_word >> (i * bits)) & mask);
            let wanted = normal(params.share * normal(it.delta * it.delta));
            wanted_sum = add(wanted_sum, count(magnitude_bits(wanted), unit));
            let had = count(magnitude_bits(it.had), unit);
            had_sum = add(had_sum, select(had, negated(had), vec2<bool>(it.had < 0.0)));
        }
    }
    let goal = sum_all(lane, wanted_sum);
    let need = add(goal, negated(sum_all(lane, had_sum)));
    let along = !is_negative(need) && any(need != vec2<u32>(0u));
    let tolerance = shifted_down(goal, TOLERANCE_SHIFT);
    var left = select(negated(need), need, vec2<bool>(along));

    // All moves in that direction, with the range of their prices.
    var range = vec2<u32>(0u, 0u);
    for (var w = lane; w < words; w += WG) {
        let word = codes[first_word + w];
        let target_word = target_codes[first_word + w];
        for (var i = 0u; i < PER_WORD; i += 1u) {
            let flat = (first_word + w) * PER_WORD + i;
            let code = (word >> (i * bits)) & mask;
            let it = weight_at(flat, code, (target_word >> (i * bits)) & mask);
            let candidate = move_of(it, flat, code, along);
            var gain = bitcast<u32>(candidate.gain);
            if all(count(gain, unit) == vec2<u32>(0u)) {
                gain = 0u;
            }
            var price = 0;
            if gain != 0u {
                price = price_of(candidate.excess, abs(it.delta));
                // As numbers without a sign, which keep the order: the greatest of them and of their complements.
                let place = bitcast<u32>(price) ^ 0x80000000u;
                range = max(range, vec2<u32>(place, ~place));
            }
            moves[flat] = vec2<u32>(bitcast<u32>(price), gain);
        }
    }
    range = max_all(lane, range);
    let cheapest = bitcast<i32>(~range.y ^ 0x80000000u);
    // One above the dearest: what all moves together do not bring.
    let beyond_all = bitcast<i32>(range.x ^ 0x80000000u) + 1;

    for (var round = 0u; round < ROUNDS; round += 1u) {
        if !less(tolerance, left) {
            break;
        }
        let most = add(left, tolerance);
        // The least price whose moves bring what is left; `below` is what those of smaller prices bring.
        var low = cheapest;
        var high = beyond_all;
        var below = vec2<u32>(0u);
        while low < high {
            let middle = between(low, high);
            var brought = vec2<u32>(0u);
            for (var w = lane; w < words; w += WG) {
                for (var i = 0u; i < PER_WORD; i += 1u) {
                    let candidate = moves[(first_word + w) * PER_WORD + i];
                    let gain = count(candidate.y, unit);
                    if bitcast<i32>(candidate.x) <= middle && !less(most, gain) {
                        brought = add(brought, gain);
                    }
                }
            }
            brought = sum_all(lane, brought);
            if less(brought, left) {
                low = middle + 1;
                below = brought;
            } else {
                high = middle;
            }
        }
        left = add(left, negated(below));

        // Those below the price are made; those at it in order, until one is too much.
        var full = false;
        for (var tile = 0u; tile < words; tile += WG) {
            let w = tile + lane;
            var word = 0u;
            var mine = vec2<u32>(0u);
            if w < words {
                word = codes[first_word + w];
                for (var i = 0u; i < PER_WORD; i += 1u) {
                    let flat = (first_word + w) * PER_WORD + i;
                    let candidate = moves[flat];
                    let gain = count(candidate.y, unit);
                    if candidate.y == 0u || less(most, gain) {
                        continue;
                    }
                    if bitcast<i32>(candidate.x) < low {
                        word = made(flat, i, word, along);
                    } else if bitcast<i32>(candidate.x) == low {
                        mine = add(mine, gain);
                    }
                }
            }
            // What lanes before this one bring at the price.
            partial[lane] = mine;
            workgroupBarrier();
            var before = vec2<u32>(0u);
            for (var other = 0u; other < lane; other += 1u) {
                before = add(before, partial[other]);
            }
            workgroupBarrier();
            // The first code of the tile at which it is too much, if all before it are made.
            var stop = NONE;
            var here = add(left, negated(before));
            if w < words && any(mine != vec2<u32>(0u)) {
                for (var i = 0u; i < PER_WORD; i += 1u) {
                    let candidate = moves[(first_word + w) * PER_WORD + i];
                    let gain = count(candidate.y, unit);
                    if candidate.y == 0u || less(most, gain) || bitcast<i32>(candidate.x) != low {
                        continue;
                    }
                    if !less(vec2<u32>(0u), here) || less(add(here, tolerance), gain) {
                        stop = min(stop, lane * PER_WORD + i);
                    }
                    here = add(here, negated(gain));
                }
            }
            stop = ~max_all(lane, vec2<u32>(~stop, 0u)).x;
            if full {
                stop = 0u;
            }
            var taken = vec2<u32>(0u);
            if w < words {
                for (var i = 0u; i < PER_WORD; i += 1u) {
                    let flat = (first_word + w) * PER_WORD + i;
                    let candidate = moves[flat];
                    let gain = count(candidate.y, unit);
                    if candidate.y == 0u || less(most, gain) || bitcast<i32>(candidate.x) != low {
                        continue;
                    }
                    if lane * PER_WORD + i < stop {
                        word = made(flat, i, word, along);
                        taken = add(taken, gain);
                    }
                }
                codes[first_word + w] = word;
            }
            full = full || stop != NONE;
            left = add(left, negated(sum_all(lane, taken)));
        }
    }

    // One that exceeds the need by less than what is left of it: of the least price, the first.
    if !less(tolerance, left) {
        return;
    }
    let most = add(left, left);
    var best = vec2<u32>(0u, 0u);
    for (var w = lane; w < words; w += WG) {
        for (var i = 0u; i < PER_WORD; i += 1u) {
            let candidate = moves[(first_word + w) * PER_WORD + i];
            if candidate.y != 0u && less(count(candidate.y, unit), most) {
                best = max(best, vec2<u32>(~(candidate.x ^ 0x80000000u), 0u));
            }
        }
    }
    best = max_all(lane, best);
    var place = NONE;
    for (var w = lane; w < words; w += WG) {
        for (var i = 0u; i < PER_WORD; i += 1u) {
            let candidate = moves[(first_word + w) * PER_WORD + i];
            let cheap = ~(candidate.x ^ 0x80000000u) == best.x;
            if cheap && candidate.y != 0u && less(count(candidate.y, unit), most) {
                place = min(place, w * PER_WORD + i);
            }
        }
    }
    place = ~max_all(lane, vec2<u32>(~place, 0u)).x;
    let w = place / PER_WORD;
    if place != NONE && w % WG == lane {
        let i = place % PER_WORD;
        let flat = first_word * PER_WORD + place;
        codes[first_word + w] = made(flat, i, codes[first_word + w], along);
    }
}
