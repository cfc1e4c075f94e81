//! Kept rounding that looks at what a matrix multiplies: codes that keep a share of an update and whose error is least in the
//! outputs.
//!
//! With `t` the target's weights of a row, `u` the unlearned ones, `d = u - t`, `Q(t)` nearest rounding of `t` and
//! `A` the second moments of the inputs, the wanted weights are `w = t + p d`, `p` being the share to keep (or what nearest
//! rounding keeps, if that is more; at most 1). Codes `c` are chosen at the scales of nearest rounding of `u`, so that
//!
//! ```text
//! <c s - Q(t), d> = p <d, d>      the update survives to its share
//! (c s - w)' A (c s - w)          is small: so is the error of the outputs
//! ```
//!
//! A move takes one code to its neighbour: the value changes by `delta`, the survived update by `dk = delta d_j`, the error by
//! `df = 2 delta g_j + delta^2 A_jj` with `g = A (c s - w)`. From the nearest codes of `w` on, of the moves that fit the goal
//! the one with the least `df - price dk` is made while that is negative; else, while the goal is not reached, the one with
//! the least `df / dk`, which becomes the price. At a fixed price every move lowers `f - price k`, and the price never
//! falls: it ends.
//!
//! Searched for and measured on the demo's family, as the README says; the search by coordinates is that of GPTQ's relatives
//! (QuantEase, arXiv 2309.01885), the goal is this program's.

use rayon::prelude::*;

use super::aligned::nearest;
use super::codec::value;
use super::ladder::{neighbour, put, scales};
use super::{Kept, KeptRow, Packed, Scheme, decode, encode};

/// Added to the moments' diagonal, of mean 1.
const DAMPING: f64 = 0.01;

/// The goal is reached within this part of it.
const TOLERANCE: f64 = 1.0 / 64.0;

/// A change of the error below this part of its scale is none.
const NEGLIGIBLE: f64 = 1e-12;

/// Second moments of what a matrix multiplies, `E[x x']`, `[n, n]`, damped, of mean diagonal about 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    n: usize,
    values: Vec<f64>,
}

impl Moments {
    /// From sums of `x x'` over inputs, `[n, n]`. Inputs that are all zero count as independent ones.
    ///
    /// # Panics
    ///
    /// If `sums` is not square.
    #[must_use]
    pub fn new(n: usize, mut sums: Vec<f64>) -> Self {
        assert_eq!(sums.len(), n * n, "moments of {n} inputs");
        let mean = (0..n).map(|index| sums[index * (n + 1)]).sum::<f64>() / n.max(1) as f64;
        if mean > 0.0 && mean.is_finite() {
            sums.iter_mut().for_each(|value| *value /= mean);
            (0..n).for_each(|index| sums[index * (n + 1)] += DAMPING);
        } else {
            sums.fill(0.0);
            (0..n).for_each(|index| sums[index * (n + 1)] = 1.0);
        }
        Self { n, values: sums }
    }

    /// How many inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.n
    }

    /// The greatest difference of two values.
    #[cfg(test)]
    pub(crate) fn distance(&self, other: &Self) -> f64 {
        self.values.iter().zip(&other.values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.n..(index + 1) * self.n]
    }

    fn diagonal(&self, index: usize) -> f64 {
        self.values[index * (self.n + 1)]
    }
}

/// Rounds `unlearned` so that `share` of its update from `target` survives in every row, with the least error in the outputs;
/// both are `[rows, cols]`, and `moments` are those of the columns' inputs.
///
/// Deterministic: f64 in a fixed order, ties by index.
///
/// # Panics
///
/// If a slice or the moments are not of this shape, `cols` is not a multiple of 8 or the scheme does not quantize: bugs in
/// the caller.
#[must_use]
pub fn matched(
    scheme: Scheme,
    target: &[f32],
    unlearned: &[f32],
    [rows, cols]: [usize; 2],
    moments: &Moments,
    share: f32,
) -> Kept {
    assert_eq!(
        (target.len(), moments.inputs()),
        (unlearned.len(), cols),
        "weights and moments of one matrix"
    );
    let grouping = scheme.grouping(rows, cols);
    assert!(grouping.is_some(), "{scheme} has no codes");
    let mut packed = encode(scheme, unlearned, rows, cols);
    let Some(grouping) = grouping.filter(|_| !unlearned.is_empty()) else {
        return Kept { packed, rows: vec![KeptRow::default(); rows] };
    };
    let targets = decode(&encode(scheme, target, rows, cols));
    let near: Packed = packed.clone();
    let values = decode(&near);
    let words = packed.words.par_chunks_mut(cols / scheme.per_word());
    let rows = words.enumerate().map(|(row, words)| {
        let range = row * cols..(row + 1) * cols;
        let first = range.start;
        let own_scales = |column: usize| scales(&near, &grouping, first + column);
        let mut search = Search::new(
            scheme,
            &own_scales,
            [&target[range.clone()], &unlearned[range.clone()]],
            [&targets[range.clone()], &values[range.clone()]],
            moments,
            f64::from(share),
        );
        search.run();
        for (column, code) in search.codes.iter().enumerate() {
            let moved = *code != near.code(range.start + column);
            search.outcome.moved += u64::from(moved);
            if moved {
                put(scheme, words, column, *code);
            }
        }
        search.outcome.kept = search.survived(&targets[range.clone()]);
        search.outcome
    });
    let rows = rows.collect();
    Kept { packed, rows }
}

/// One row under way.
struct Search<'a, S> {
    scheme: Scheme,
    /// Scales of a column's group.
    scales: S,
    moments: &'a Moments,
    /// `u - t`, or its negative where the goal is approached from above.
    delta: Vec<f64>,
    /// The update itself.
    update: Vec<f64>,
    codes: Vec<u32>,
    values: Vec<f64>,
    /// `A (c s - w)`.
    gradient: Vec<f64>,
    /// How much is still to survive, along `delta`.
    left: f64,
    limit: f64,
    /// The scale of the error.
    size: f64,
    outcome: KeptRow,
}

/// What to do next.
enum Choice {
    /// Lowers the error, or is worth the price.
    Worth(Step),
    /// Brings the goal nearer, at this price.
    At(f64, Step),
    /// Exceeds what is left by less than that; then it is over.
    Last(Step),
    None,
}

/// A code's way to a neighbour.
#[derive(Clone, Copy)]
struct Step {
    column: usize,
    code: u32,
    value: f64,
    /// What it brings.
    brings: f64,
    /// What it adds to the error.
    costs: f64,
}

impl<'a, S: Fn(usize) -> &'a [f32]> Search<'a, S> {
    fn new(
        scheme: Scheme,
        scales: S,
        [target, unlearned]: [&[f32]; 2],
        [target_values, nearest_values]: [&[f32]; 2],
        moments: &'a Moments,
        share: f64,
    ) -> Self {
        let update: Vec<_> =
            unlearned.iter().zip(target).map(|(&new, &old)| f64::from(new) - f64::from(old)).collect();
        let squared: f64 = update.iter().map(|delta| delta * delta).sum();
        let along = |values: &[f64]| -> f64 {
            let survived = values.iter().zip(target_values).zip(&update);
            survived.map(|((value, &old), delta)| (value - f64::from(old)) * delta).sum()
        };
        let widened: Vec<_> = nearest_values.iter().map(|&value| f64::from(value)).collect();
        let near = along(&widened);
        // What nearest rounding keeps anyway is not taken back.
        let share = if squared > 0.0 { (near / squared).clamp(share.min(1.0), 1.0) } else { 1.0 };
        let wanted: Vec<_> =
            target.iter().zip(&update).map(|(&old, delta)| f64::from(old) + share * delta).collect();
        #[expect(clippy::cast_possible_truncation, reason = "f32 weights are what codes are chosen for")]
        let code = |(column, weight): (usize, &f64)| match scales(column) {
            [0.0, ..] => 0,
            scales => nearest(scheme, *weight as f32, scales),
        };
        let codes: Vec<_> = wanted.iter().enumerate().map(code).collect();
        let decoded = |(column, &code): (usize, &u32)| f64::from(value(scheme, code, scales(column)));
        let values: Vec<_> = codes.iter().enumerate().map(decoded).collect();
        let error: Vec<_> = values.iter().zip(&wanted).map(|(value, wanted)| value - wanted).collect();
        let gradient = (0..error.len())
            .map(|column| moments.row(column).iter().zip(&error).map(|(moment, error)| moment * error).sum());
        let gradient: Vec<f64> = gradient.collect();
        let need = if squared > 0.0 { share * squared } else { 0.0 };
        let (mut left, mut delta) = (need - along(&values), update.clone());
        // From above, everything is turned round: goals are approached from below.
        if left < 0.0 {
            left = -left;
            delta.iter_mut().for_each(|delta| *delta = -*delta);
        }
        let steps = (0..codes.len()).map(|column| {
            let reach = [true, false].map(|up| neighbour(scheme, codes[column], up));
            let reach = reach
                .into_iter()
                .flatten()
                .map(|code| f64::from(value(scheme, code, scales(column))) - values[column]);
            reach.fold(0.0, |most: f64, step| most.max(step.abs())).powi(2) * moments.diagonal(column)
        });
        let size = steps.sum();
        let outcome = KeptRow { moved: 0, update: squared, nearest: near, kept: 0.0 };
        Self {
            scheme,
            scales,
            moments,
            delta,
            update,
            codes,
            values,
            gradient,
            left,
            limit: need.abs() * TOLERANCE,
            size,
            outcome,
        }
    }

    fn run(&mut self) {
        let mut price = 0.0;
        // Far above what a row takes (a few moves for every ten weights); it ends without.
        for _ in 0..64 * self.codes.len().max(256) {
            match self.choose(price) {
                Choice::Worth(step) => self.take(&step),
                Choice::At(dearer, step) => {
                    price = dearer.max(price);
                    self.take(&step);
                }
                Choice::Last(step) => return self.take(&step),
                Choice::None => return,
            }
        }
    }

    fn choose(&self, price: f64) -> Choice {
        let short = self.left > self.limit;
        let room = if short { self.left + self.limit } else { (self.left + self.limit).max(0.0) };
        let fits = |step: &Step| {
            (step.brings <= 0.0 || step.brings <= room) && (short || step.brings >= self.left - self.limit)
        };
        let (mut worth, mut cheapest, mut last) = (None, None, None);
        // The first of equals stays.
        let keep = |best: &mut Option<(f64, Step)>, by: f64, step: Step| {
            if best.is_none_or(|(least, _)| by < least) {
                *best = Some((by, step));
            }
        };
        for step in self.steps() {
            let ratio = step.costs / step.brings;
            if fits(&step) {
                keep(&mut worth, step.costs - price * step.brings, step);
                if step.brings > 0.0 {
                    keep(&mut cheapest, ratio, step);
                }
            }
            if step.brings > 0.0 && step.brings < 2.0 * self.left {
                keep(&mut last, ratio, step);
            }
        }
        match (worth, cheapest, last) {
            (Some((change, step)), ..) if change < -NEGLIGIBLE * self.size => Choice::Worth(step),
            (_, Some((ratio, step)), _) if short => Choice::At(ratio, step),
            (_, None, Some((_, step))) if short => Choice::Last(step),
            _ => Choice::None,
        }
    }

    /// All steps, those up before those down.
    fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        [true, false].into_iter().flat_map(move |up| {
            (0..self.codes.len()).filter_map(move |column| {
                let scales = (self.scales)(column);
                let code = neighbour(self.scheme, self.codes[column], up).filter(|_| scales[0] != 0.0)?;
                let value = f64::from(value(self.scheme, code, scales));
                let change = value - self.values[column];
                let costs =
                    2.0 * change * self.gradient[column] + change * change * self.moments.diagonal(column);
                Some(Step { column, code, value, brings: change * self.delta[column], costs })
            })
        })
    }

    fn take(&mut self, step: &Step) {
        let change = step.value - self.values[step.column];
        self.codes[step.column] = step.code;
        self.values[step.column] = step.value;
        self.left -= step.brings;
        let moments = self.moments.row(step.column);
        self.gradient.iter_mut().zip(moments).for_each(|(slope, moment)| *slope += change * moment);
    }

    fn survived(&self, target_values: &[f32]) -> f64 {
        let survived = self.values.iter().zip(target_values).zip(&self.update);
        survived.map(|((value, &old), delta)| (value - f64::from(old)) * delta).sum()
    }
}
