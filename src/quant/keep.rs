//! Kept rounding: codes chosen so that a wanted share of an update outlives quantization.
//!
//! With `t` the target's weights, `u` the unlearned ones, `Q` the value that a code stands for and `d = u - t`, the survival
//! of a row is `<Q(u) - Q(t), d> / <d, d>`. Rounding to nearest leaves it where the weights happen to lie. Here every row
//! starts from the nearest codes of `u` and then moves some of them one step (to the neighbouring value): along `d` where
//! the row's survival is below the wanted share, against it where it is above, the cheapest for what they bring first,
//! until the share is reached. Scales stay. `Q(t)` is nearest rounding of `t` in the same scheme.
//!
//! # The order, as a threshold
//!
//! A move from the value `v` to its neighbour `v'` brings `gain = |v' - v| |d|` and costs `(v' - u)^2 - (v - u)^2` in squared
//! rounding error. Both have the factor `|v' - v|`, so that gain over cost is `|d| / excess` with
//! `excess = |(v' - u) + (v - u)|`, signed: negative if the move brings the value nearer to `u`. A threshold `p` (the price)
//! admits the moves with
//!
//! ```text
//! excess <= p * |d|          f32, one rounded product
//! ```
//!
//! and no quotient is ever formed; a move without excess is admitted by every price that is not negative. Subnormal numbers,
//! which a device may or may not keep, count as 0 wherever they come up. The set that `p` admits grows with `p`, because
//! rounding is monotone. **Definition**: the
//! codes are found in at most [`ROUNDS`] rounds; the tolerance is 2^-[`TOLERANCE_SHIFT`] of the goal. While more than the
//! tolerance is left of the need, a round looks at the moves not yet made that bring at most what is left and the tolerance
//! (in a row of few codes one move may be half of the update, so that without this a row would miss its goal by as much).
//! Let `p` be the least f32 whose set brings all that is left, or infinity if there is none. The moves that a smaller `p`
//! admits are made, then those that `p` itself adds, by ascending index, until the need is met or the next would exceed it by
//! more than the tolerance. If after the rounds more than the tolerance is still left, one more is made: that of the least
//! price (ties by index) among those that exceed the need by less than what is left.
//!
//! So the codes follow from sums over admitted sets: `p` is found by bisecting the 32 bits of a float, without a sort, with
//! one workgroup a row. What is summed are integers (`Unit`): f32 terms in units of 2^-40 of the row's greatest, so that
//! a sum does not depend on its order, and a device gets the same codes by adding u32 pairs.

use rayon::prelude::*;

use super::codec::value;
use super::ladder::{neighbour, put, scales};
use super::{Grouping, Packed, Scheme, decode, encode};

/// A matrix in kept rounding, and what that took.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The codes. Scales are those of nearest rounding.
    pub packed: Packed,
    /// What became of each row.
    pub rows: Vec<KeptRow>,
}

/// One row in kept rounding. Sums are f64, in the order of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KeptRow {
    /// Codes that are not those of nearest rounding.
    pub moved: u64,
    /// `<u - t, u - t>`.
    pub update: f64,
    /// `<Q(u) - Q(t), u - t>` of nearest rounding.
    pub nearest: f64,
    /// The same of kept rounding.
    pub kept: f64,
}

impl KeptRow {
    /// Adds what other rows gave.
    pub fn merge(&mut self, other: &Self) {
        self.moved += other.moved;
        self.update += other.update;
        self.nearest += other.nearest;
        self.kept += other.kept;
    }

    /// Survival in nearest rounding; `None` without an update.
    #[must_use]
    pub fn nearest_survival(&self) -> Option<f64> {
        (self.update > 0.0).then_some(self.nearest / self.update).filter(|share| share.is_finite())
    }

    /// Survival in kept rounding; `None` without an update.
    #[must_use]
    pub fn survival(&self) -> Option<f64> {
        (self.update > 0.0).then_some(self.kept / self.update).filter(|share| share.is_finite())
    }
}

/// Rounds `unlearned` so that `share` of its update from `target` survives in every row; both are `[rows, cols]`.
///
/// Rows without an update, and rows whose sums are beyond f32, keep their nearest codes. The [module](self) defines the
/// codes.
///
/// # Panics
///
/// If a slice is not `rows * cols` long, `cols` is not a multiple of 8, the scheme does not quantize or `share` is not
/// finite: bugs in the caller.
#[must_use]
pub fn keep(scheme: Scheme, target: &[f32], unlearned: &[f32], rows: usize, cols: usize, share: f32) -> Kept {
    assert!(share.is_finite(), "the share to keep is {share}");
    let grouping = scheme.grouping(rows, cols);
    assert!(grouping.is_some(), "{scheme} has no codes");
    let mut packed = encode(scheme, unlearned, rows, cols);
    let Some(grouping) = grouping.filter(|_| !unlearned.is_empty()) else {
        return Kept { packed, rows: vec![KeptRow::default(); rows] };
    };
    let targets = decode(&encode(scheme, target, rows, cols));
    let nearest = packed.clone();
    let words = packed.words.par_chunks_mut(cols / scheme.per_word());
    let rows = words.enumerate().map(|(row, words)| {
        let range = row * cols..(row + 1) * cols;
        let weights = Row {
            nearest: &nearest,
            grouping: &grouping,
            start: range.start,
            target: &target[range.clone()],
            unlearned: &unlearned[range.clone()],
            target_values: &targets[range],
        };
        weights.keep(share, words)
    });
    let rows = rows.collect();
    Kept { packed, rows }
}

/// How often the choice is repeated among moves that still fit.
pub const ROUNDS: usize = 8;

/// A row is near enough to its goal within the goal's 64th part: exact landing would cost half as many moves again.
pub const TOLERANCE_SHIFT: u32 = 6;

/// One row's inputs.
struct Row<'a> {
    nearest: &'a Packed,
    grouping: &'a Grouping,
    /// Flat index of its first weight.
    start: usize,
    target: &'a [f32],
    unlearned: &'a [f32],
    /// `Q(t)`.
    target_values: &'a [f32],
}

/// A code's possible move.
#[derive(Clone, Copy)]
struct Move {
    /// Column.
    index: usize,
    code: u32,
    /// `|d|`.
    delta: f32,
    /// `|(v' - u) + (v - u)|`, negative if the move brings the value nearer to `u`.
    excess: f32,
    /// `|v' - v| |d|`.
    gain: f32,
}

impl Move {
    /// Whether it is worth a price.
    fn admitted(&self, price: f32) -> bool {
        if self.excess == 0.0 { price >= 0.0 } else { self.excess <= normal(price * self.delta) }
    }

    /// The place of the least price that admits it.
    fn price(&self) -> i32 {
        let (mut low, mut high) = (order(f32::NEG_INFINITY), order(f32::INFINITY));
        while low < high {
            let middle = between(low, high);
            if self.admitted(from_order(middle)) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

impl Row<'_> {
    /// Writes the moved codes over the nearest ones in `words`.
    fn keep(&self, share: f32, words: &mut [u32]) -> KeptRow {
        let values = self.values(words);
        let mut outcome =
            KeptRow { update: self.update(), nearest: self.survived(&values), ..Default::default() };
        outcome.kept = outcome.nearest;
        let terms = || {
            self.columns().map(|index| {
                let delta = self.delta(index);
                let wanted = normal(share * normal(delta * delta));
                (wanted, normal((values[index] - self.target_values[index]) * delta))
            })
        };
        let (along, against) = (self.moves(&values, true), self.moves(&values, false));
        let gains = along.iter().chain(&against).map(|candidate| candidate.gain);
        let Some(unit) = Unit::of(terms().flat_map(|(wanted, had)| [wanted, had]).chain(gains)) else {
            return outcome;
        };
        let (mut goal, mut has) = (0, 0);
        for (wanted, had) in terms() {
            goal += unit.count(wanted);
            has += unit.count(had);
        }
        let need = goal - has;
        let candidates = if need > 0 { along } else { against };
        for chosen in choose(candidates, unit, need.abs(), goal >> TOLERANCE_SHIFT) {
            put(self.nearest.scheme, words, chosen.index, chosen.code);
            outcome.moved += 1;
        }
        if outcome.moved > 0 {
            outcome.kept = self.survived(&self.values(words));
        }
        outcome
    }

    fn columns(&self) -> std::ops::Range<usize> {
        0..self.unlearned.len()
    }

    /// `u - t`, rounded to f32 once.
    fn delta(&self, index: usize) -> f32 {
        normal(normal(self.unlearned[index]) - normal(self.target[index]))
    }

    /// The value of `code` at a column.
    fn value(&self, index: usize, code: u32) -> f32 {
        value(self.nearest.scheme, code, scales(self.nearest, self.grouping, self.start + index))
    }

    /// What the codes in the row's `words` stand for.
    fn values(&self, words: &[u32]) -> Vec<f32> {
        let scheme = self.nearest.scheme;
        let codes = words.iter().flat_map(|&word| super::codec::codes(scheme, word));
        codes.enumerate().map(|(index, code)| self.value(index, code)).collect()
    }

    /// The moves along the update, or against it, by ascending column.
    fn moves(&self, values: &[f32], along: bool) -> Vec<Move> {
        let moves = self.columns().filter_map(|index| {
            let delta = self.delta(index);
            if delta == 0.0 {
                return None;
            }
            let up = (delta > 0.0) == along;
            let code = neighbour(self.nearest.scheme, self.nearest.code(self.start + index), up)?;
            let (old, new, weight) = (values[index], self.value(index, code), normal(self.unlearned[index]));
            let beyond = (new - weight) + (old - weight);
            let excess = normal(if up { beyond } else { -beyond });
            let gain = normal(((new - old) * delta).abs());
            Some(Move { index, code, delta: delta.abs(), excess, gain })
        });
        moves.collect()
    }

    fn update(&self) -> f64 {
        self.deltas().map(|delta| delta * delta).sum()
    }

    /// `<Q(u) - Q(t), u - t>`.
    fn survived(&self, values: &[f32]) -> f64 {
        let pairs = values.iter().zip(self.target_values);
        pairs.zip(self.deltas()).map(|((&new, &old), delta)| (f64::from(new) - f64::from(old)) * delta).sum()
    }

    fn deltas(&self) -> impl Iterator<Item = f64> {
        self.unlearned.iter().zip(self.target).map(|(&new, &old)| f64::from(new) - f64::from(old))
    }
}

/// What a row's terms are counted in: 2^-40 of the least power of 2 above all of them. A sum of 2^22 terms fits an i64.
#[derive(Clone, Copy, Debug)]
struct Unit(f64);

impl Unit {
    /// `None` if all terms are 0, or one is not finite.
    fn of(terms: impl Iterator<Item = f32>) -> Option<Self> {
        // By the bits, which order magnitudes as integers do and put infinity and NaN above all.
        let greatest = terms.map(|term| term.to_bits() & 0x7fff_ffff).max()?;
        if greatest == 0 || greatest >= f32::INFINITY.to_bits() {
            return None;
        }
        let above = u64::from(greatest >> 23) + 1 + 1023 - 127;
        Some(Self(f64::from_bits((2 * 1023 + 40 - above) << 52)))
    }

    /// The term in whole units, cut towards 0.
    fn count(self, term: f32) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "below 2^40; cutting is meant")]
        let count = (f64::from(term) * self.0) as i64;
        count
    }
}

/// The moves to make of `candidates`, which are ordered by index, to bring `need`, give or take `tolerance`.
fn choose(mut candidates: Vec<Move>, unit: Unit, need: i64, tolerance: i64) -> Vec<Move> {
    candidates.retain(|candidate| unit.count(candidate.gain) > 0);
    let mut chosen = Vec::new();
    let mut left = need;
    for _ in 0..ROUNDS {
        if left <= tolerance {
            return chosen;
        }
        let (fitting, too_much) =
            candidates.into_iter().partition(|candidate| unit.count(candidate.gain) <= left + tolerance);
        let (mut made, others) = fill(fitting, unit, &mut left, tolerance);
        chosen.append(&mut made);
        candidates = others;
        candidates.extend(too_much);
    }
    // One that exceeds the need by less than what is left of it.
    let nearer =
        candidates.into_iter().filter(|candidate| left > tolerance && unit.count(candidate.gain) < 2 * left);
    chosen.extend(nearer.min_by_key(|candidate| (candidate.price(), candidate.index)));
    chosen
}

/// One round: the moves to make of `candidates`, none of which brings more than `left + tolerance`, and the others.
fn fill(mut candidates: Vec<Move>, unit: Unit, left: &mut i64, tolerance: i64) -> (Vec<Move>, Vec<Move>) {
    let sum = |moves: &[Move]| moves.iter().map(|candidate| unit.count(candidate.gain)).sum::<i64>();
    let (mut chosen, mut others) = (Vec::new(), Vec::new());
    // Every price below `low` admits too little: what it admits is chosen. `high` admits enough, or is the last price.
    let (mut low, mut high) = (order(f32::NEG_INFINITY), order(f32::INFINITY));
    while low < high && !candidates.is_empty() {
        let middle = between(low, high);
        let price = from_order(middle);
        let (cheap, dear): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|candidate| candidate.admitted(price));
        let brought = sum(&cheap);
        if brought >= *left {
            (high, candidates) = (middle, cheap);
            others.extend(dear);
        } else {
            (low, candidates) = (middle + 1, dear);
            *left -= brought;
            chosen.extend(cheap);
        }
    }
    candidates.sort_unstable_by_key(|candidate| candidate.index);
    let mut full = false;
    for candidate in candidates {
        let gain = unit.count(candidate.gain);
        full |= *left <= 0 || gain > *left + tolerance;
        if full {
            others.push(candidate);
        } else {
            *left -= gain;
            chosen.push(candidate);
        }
    }
    (chosen, others)
}

/// 0 for a subnormal number.
fn normal(value: f32) -> f32 {
    if value.is_subnormal() { 0.0 } else { value }
}

/// A float's place among all floats.
fn order(value: f32) -> i32 {
    let bits = value.to_bits().cast_signed();
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

/// The middle of two places, rounded down, so that it is below `high` (`i32::midpoint` rounds towards 0).
fn between(low: i32, high: i32) -> i32 {
    low + (high.wrapping_sub(low).cast_unsigned() / 2).cast_signed()
}

/// The float at a place.
fn from_order(place: i32) -> f32 {
    f32::from_bits(if place < 0 { place ^ i32::MAX } else { place }.cast_unsigned())
}
