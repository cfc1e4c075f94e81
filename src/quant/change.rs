//! What an update does to the codes, and how much of it outlives quantization.
//!
//! `t` is the target's weight, `u` the unlearned checkpoint's, `Q` the value that a scheme's code stands for.

use super::{Grouping, Packed, Scheme, decode, encode, table};

/// Counts and sums over pairs of weights, for one scheme.
///
/// Counts are exact. Sums are f64, added in the order of the weights and, by [`Change::merge`], of the merges; the same
/// order gives the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Pairs.
    pub weights: u64,
    /// `u != t`. The sign of a zero is no difference.
    pub changed: u64,
    /// The codes differ. The sign of an FP4 zero is no difference: bitsandbytes' own backends disagree in it.
    pub code_changed: u64,
    /// The scales (or zero points) of the weight's group differ, which moves its value even if its code stays.
    pub scale_changed: u64,
    /// `Q(u) != Q(t)`.
    pub value_changed: u64,
    /// `u != t`, and yet `Q(u) == Q(t)`.
    pub absorbed: u64,
    /// `Q(t) == 0`.
    pub zero_target: u64,
    /// `Q(u) == 0`.
    pub zero_unlearned: u64,
    /// `<u - t, u - t>`.
    pub update: f64,
    /// The part of `update` from weights with `Q(t) == 0`.
    pub update_from_zero: f64,
    /// `<Q(u) - Q(t), u - t>`.
    pub kept: f64,
    /// `<Q(u) - Q(t), Q(u) - Q(t)>`.
    pub quantized: f64,
    /// `|u - t| / step`.
    pub steps: Steps,
}

impl Change {
    /// Adds what `later` weights gave.
    pub fn merge(&mut self, later: &Self) {
        let Self {
            weights,
            changed,
            code_changed,
            scale_changed,
            value_changed,
            absorbed,
            zero_target,
            zero_unlearned,
            update,
            update_from_zero,
            kept,
            quantized,
            steps,
        } = later;
        self.weights += weights;
        self.changed += changed;
        self.code_changed += code_changed;
        self.scale_changed += scale_changed;
        self.value_changed += value_changed;
        self.absorbed += absorbed;
        self.zero_target += zero_target;
        self.zero_unlearned += zero_unlearned;
        self.update += update;
        self.update_from_zero += update_from_zero;
        self.kept += kept;
        self.quantized += quantized;
        self.steps.merge(steps);
    }

    /// How much of the update outlives quantization, `<Q(u) - Q(t), u - t> / <u - t, u - t>`: 1 all of it, 0 nothing.
    /// `None` if there is no update (or one beyond what a scheme can hold).
    #[must_use]
    pub fn survival(&self) -> Option<f64> {
        ratio(self.kept, self.update)
    }

    /// `|Q(u) - Q(t)| / |u - t|`: survival says how much goes the update's way, this how far it goes at all. `None` as
    /// for [`Change::survival`].
    #[must_use]
    pub fn norm_ratio(&self) -> Option<f64> {
        ratio(self.quantized.sqrt(), self.update.sqrt())
    }

    /// Share of `<u - t, u - t>` on weights that the target has in the code for zero. `None` if there is no update.
    #[must_use]
    pub fn movement_from_zero(&self) -> Option<f64> {
        ratio(self.update_from_zero, self.update)
    }

    /// Share of the changed weights that were mapped back to the target's value. `None` if no weight changed.
    #[must_use]
    pub fn absorbed_share(&self) -> Option<f64> {
        ratio(self.absorbed as f64, self.changed as f64)
    }

    /// `count` as a share of all weights. `None` if there are none.
    #[must_use]
    pub fn share(&self, count: u64) -> Option<f64> {
        ratio(count as f64, self.weights as f64)
    }

    fn add(&mut self, target: Side, unlearned: Side, widths: Option<&Widths>) {
        let delta = f64::from(unlearned.weight) - f64::from(target.weight);
        let quantized = f64::from(unlearned.value) - f64::from(target.value);
        let changed = delta != 0.0;
        let stayed = quantized == 0.0;
        let square = delta * delta;
        self.weights += 1;
        self.changed += u64::from(changed);
        self.code_changed += u64::from(unlearned.code != target.code);
        self.value_changed += u64::from(!stayed);
        self.absorbed += u64::from(changed && stayed);
        self.zero_target += u64::from(target.value == 0.0);
        self.zero_unlearned += u64::from(unlearned.value == 0.0);
        self.update += square;
        if target.value == 0.0 {
            self.update_from_zero += square;
        }
        self.kept += quantized * delta;
        self.quantized += quantized * quantized;

        // A group of zeros has no step; the one that the update gives it stands in.
        let side = if target.scale > 0.0 { target } else { unlearned };
        let width = widths.map_or(1.0, |widths| widths[side.code as usize]);
        let step = width * f64::from(side.scale);
        if changed && step > 0.0 {
            let place = place(target.weight, unlearned.weight, rounded(width) * side.scale);
            self.steps.add(delta.abs() / step, place);
        } else {
            self.steps.add(0.0, 0);
        }
    }
}

impl Default for Change {
    fn default() -> Self {
        Self {
            weights: 0,
            changed: 0,
            code_changed: 0,
            scale_changed: 0,
            value_changed: 0,
            absorbed: 0,
            zero_target: 0,
            zero_unlearned: 0,
            update: 0.0,
            update_from_zero: 0.0,
            kept: 0.0,
            quantized: 0.0,
            steps: Steps::default(),
        }
    }
}

/// One checkpoint's part in a pair.
#[derive(Clone, Copy)]
struct Side {
    weight: f32,
    /// What the weight's code stands for.
    value: f32,
    code: u32,
    scale: f32,
}

/// The distribution of `|u - t| / step` over all weights, the unchanged (0) included.
///
/// `step` is what the weight must move to be sure to take another code: the distance between two codes, or in FP4 and
/// NF4 the width of the bin that the target's weight lies in (the outermost ones end at the absmax). It is the target's;
/// in a group that is all zeros there it is the unlearned checkpoint's.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Sum of the ratios.
    sum: f64,
    /// Sum of the ratios, each at most 1.
    capped: f64,
    /// The greatest ratio.
    max: f64,
    /// How many ratios are 0, then how many lie in each bin.
    counts: Vec<u64>,
}

/// A bin is a 64th of an octave, so its middle is within 1 / 128 of everything in it.
pub(crate) const SHARE_BITS: u32 = 6;
const BINS_PER_OCTAVE: i32 = 1 << SHARE_BITS;
/// Bits of an f64 below the ones that name its bin.
const SHIFT: u32 = 52 - SHARE_BITS;
/// 2^-32 and what is less fall into the first bin, 2^8 and what is more into the last.
pub(crate) const OCTAVES_BELOW: u32 = 32;
const OCTAVES: usize = 40;
/// The first bin's bits in an f64.
const FIRST: u64 = (1023 - OCTAVES_BELOW as u64) << SHARE_BITS;
/// With the one for 0.
pub(crate) const COUNTS: usize = OCTAVES * (1 << SHARE_BITS) + 2;
/// Magnitudes below this count as 0 when a bin is chosen; 2^-101, 2048 times below [`super::scale::TINY`].
pub(crate) const NEGLIGIBLE: f32 = f32::from_bits(26 << 23);

/// The place in [`Steps`]' counts of a changed weight.
///
/// So written that a device can repeat it bit for bit: the ratio of the f32 difference to the f32 step, by integer division
/// of their mantissas. Without the negligible weights neither operand of the difference is subnormal, and it is 0 or
/// normal itself: a multiple of 2^-124. `step` is a normal number, since a scale is 0 or comes from [`super::scale::TINY`] on.
fn place(target: f32, unlearned: f32, step: f32) -> usize {
    let kept = |weight: f32| if weight.abs() < NEGLIGIBLE { 0.0 } else { weight };
    let delta = (kept(unlearned) - kept(target)).abs().to_bits();
    if delta == 0 {
        return 1;
    }
    let step = step.to_bits();
    let mantissa = |bits: u32| bits & 0x007f_ffff | 0x0080_0000;
    let exponent = |bits: u32| (bits >> 23).cast_signed();
    let borrow = u32::from(mantissa(delta) < mantissa(step));
    let share = (mantissa(delta) << (SHARE_BITS + borrow)) / mantissa(step) - (1 << SHARE_BITS);
    let octave = exponent(delta) - exponent(step) - borrow.cast_signed() + OCTAVES_BELOW.cast_signed();
    let bin = octave * BINS_PER_OCTAVE + share.cast_signed();
    usize::try_from(bin).unwrap_or(0).min(COUNTS - 2) + 1
}

/// To f32, half to even.
#[expect(clippy::cast_possible_truncation, reason = "rounds on purpose")]
fn rounded(width: f64) -> f32 {
    width as f32
}

impl Steps {
    /// A distribution that was found elsewhere: the sums of the ratios and of the ratios capped at 1, the greatest one, and
    /// the number of weights in each of [`COUNTS`] places.
    pub(crate) fn from_parts(sum: f64, capped: f64, max: f64, counts: Vec<u64>) -> Self {
        assert_eq!(counts.len(), COUNTS, "places of the histogram");
        Self { sum, capped, max, counts }
    }

    fn add(&mut self, ratio: f64, place: usize) {
        self.sum += ratio;
        self.capped += ratio.min(1.0);
        self.max = self.max.max(ratio);
        self.counts[place] += 1;
    }

    fn merge(&mut self, later: &Self) {
        self.sum += later.sum;
        self.capped += later.capped;
        self.max = self.max.max(later.max);
        for (count, more) in self.counts.iter_mut().zip(&later.counts) {
            *count += more;
        }
    }

    /// How many ratios are 0, then how many lie in each bin: a 64th of an octave, from 2^-32 and less to 2^8 and more.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Number of weights.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean; `None` without weights.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        ratio(self.sum, self.count() as f64)
    }

    /// The share of codes that should change if weights lie anywhere in their bins with the same probability: the mean
    /// of the ratios, each capped at 1. `None` without weights.
    #[must_use]
    pub fn predicted_flips(&self) -> Option<f64> {
        ratio(self.capped, self.count() as f64)
    }

    /// The greatest ratio; `None` without weights.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        (self.count() > 0).then_some(self.max)
    }

    /// The ratio that a `share` of the weights does not exceed (the least such of the ratios that occur), to within
    /// 1 %; `None` without weights. Ratios below 2^-32 count as about that.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = share * self.count() as f64;
        let mut seen = 0;
        let place = self.counts.iter().position(|count| {
            seen += count;
            seen > 0 && seen as f64 >= wanted
        })?;
        let middle = |bin: usize| f64::from_bits(((bin as u64 + FIRST) << SHIFT) | 1 << (SHIFT - 1));
        Some(place.checked_sub(1).map_or(0.0, |bin| middle(bin).min(self.max)))
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self { sum: 0.0, capped: 0.0, max: 0.0, counts: vec![0; COUNTS] }
    }
}

/// What the update from `target` to `unlearned`, both `[rows, cols]`, means for one scheme.
///
/// # Panics
///
/// If a slice is not `rows * cols` long, `cols` is not a multiple of 8, or the scheme does not quantize: bugs in the
/// caller.
#[must_use]
pub fn change(scheme: Scheme, target: &[f32], unlearned: &[f32], rows: usize, cols: usize) -> Change {
    let mut change = Change::default();
    let grouping = scheme.grouping(rows, cols);
    assert!(grouping.is_some(), "{scheme} has no codes");
    let Some(grouping) = grouping else { return change };
    let old = Coded::new(scheme, target, rows, cols);
    let new = Coded::new(scheme, unlearned, rows, cols);
    let widths = widths(scheme);
    for group in 0..grouping.count {
        let members = members(&grouping, group, target.len());
        if old.scales(group) != new.scales(group) {
            change.scale_changed += members.len() as u64;
        }
        for index in members {
            change.add(old.side(group, index), new.side(group, index), widths.as_ref());
        }
    }
    change
}

/// The flat indices of a group's weights, of `len` in all.
fn members(grouping: &Grouping, group: usize, len: usize) -> std::ops::Range<usize> {
    let row = group / grouping.per_row * grouping.row_len;
    let start = row + group % grouping.per_row * grouping.group;
    start..(start + grouping.group).min(row + grouping.row_len).min(len)
}

/// Weights with their codes.
struct Coded<'a> {
    weights: &'a [f32],
    packed: Packed,
    values: Vec<f32>,
}

impl<'a> Coded<'a> {
    fn new(scheme: Scheme, weights: &'a [f32], rows: usize, cols: usize) -> Self {
        let packed = encode(scheme, weights, rows, cols);
        let values = decode(&packed);
        Self { weights, packed, values }
    }

    fn scales(&self, group: usize) -> &[f32] {
        let each = self.packed.scheme.values_per_group();
        &self.packed.scales[group * each..(group + 1) * each]
    }

    fn side(&self, group: usize, index: usize) -> Side {
        let code = match (self.packed.scheme, self.packed.code(index)) {
            (Scheme::Fp4B64, FP4_MINUS_ZERO) => 0,
            (_, code) => code,
        };
        let scale = self.scales(group)[0];
        Side { weight: self.weights[index], value: self.values[index], code, scale }
    }
}

/// The FP4 code of -0.
pub(crate) const FP4_MINUS_ZERO: u32 = 8;

/// The width of each code's bin, over its block's absmax.
type Widths = [f64; 16];

/// [`Widths`] of a table; `None` where every bin is one scale wide.
pub(crate) fn widths(scheme: Scheme) -> Option<Widths> {
    let mut widths = [0.0; 16];
    match scheme {
        Scheme::Fp4B64 => {
            let edges = edges(0.0, &table::FP4_THRESHOLDS);
            for (edges, code) in edges.windows(2).zip(table::FP4_ORDER) {
                // The bin of zero reaches to both sides.
                let sides = if code == 0 { 2.0 } else { 1.0 };
                widths[code as usize] = sides * (edges[1] - edges[0]);
                widths[(code | FP4_MINUS_ZERO) as usize] = widths[code as usize];
            }
        }
        Scheme::Nf4B64 => {
            let edges = edges(-1.0, &table::NF4_THRESHOLDS);
            for (width, edges) in widths.iter_mut().zip(edges.windows(2)) {
                *width = edges[1] - edges[0];
            }
        }
        _ => return None,
    }
    Some(widths)
}

/// `first`, the thresholds, 1.
fn edges(first: f64, thresholds: &[f32]) -> Vec<f64> {
    std::iter::once(first).chain(thresholds.iter().copied().map(f64::from)).chain([1.0]).collect()
}

/// `of / all`; `None` if `all` is 0 or the quotient is not finite.
fn ratio(of: f64, all: f64) -> Option<f64> {
    (all != 0.0).then_some(of / all).filter(|ratio| ratio.is_finite())
}
