//! Kept rounding that looks at what a matrix multiplies: codes that keep a share of an update and whose error is least in the
//! outputs.
//!
//! With `t` the target's weights of a row, `u` the unlearned ones, `d = u - t`, `Q(t)` nearest rounding of `t` and
//! `A` the second moments of the inputs, the wanted weights are `w = t + p d`, `p` being the share to keep (or what nearest
//! rounding keeps, if that is more; at most 1). Of every group's scale in nearest rounding of `u` and some smaller ones, that is
//! taken at which the nearest codes of `u` err least, each weight's square error by `A_jj`: clipping a few large weights serves
//! the others (AWQ, arXiv 2306.00978, clips for the outputs' error on tokens instead). At these scales `s` codes `c` are chosen, so that
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

use super::codec::value;
use super::ladder::{neighbour, put, scales};
use super::rescale::{nearest, rescale};
use super::{Kept, KeptRow, Packed, Scheme, decode, encode};

/// Added to the moments' diagonal, of mean 1.
const DAMPING: f64 = 0.01;

/// What the scale of nearest rounding is multiplied by.
const FACTORS: [f32; 11] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6];

/// The goal is reached within this part of it.
const TOLERANCE: f64 = 1.0 / 64.0;

/// Rows whose first gradients are made in one pass over the moments, which do not fit a cache.
const ROWS: usize = 8;

/// Steps that are looked at side by side; columns are multiples of it.
const LANES: usize = 8;

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

/// Rounds `unlearned`, at scales of its own, so that `share` of its update from `target` survives in every row, with the least
/// error in the outputs; both are `[rows, cols]`, and `moments` are those of the columns' inputs. Codes count as moved if they are
/// not those of nearest rounding, which has scales of its own.
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
    let (near, values) = (packed.clone(), decode(&packed));
    rescale(&mut packed, &grouping, unlearned, &FACTORS, |range, values| {
        let errors = range.zip(values).map(|(place, &value)| {
            let error = f64::from(value) - f64::from(unlearned[place]);
            error * error * moments.diagonal(place % cols)
        });
        errors.sum()
    });
    let rescaled: Packed = packed.clone();
    let (rescaled, grouping) = (&rescaled, &grouping);
    let row_words = cols / scheme.per_word();
    let blocks = packed.words.par_chunks_mut(ROWS * row_words).enumerate();
    let rows = blocks.flat_map_iter(|(block, words)| {
        let first = block * ROWS;
        let ranges = (first..first + words.len() / row_words).map(|row| row * cols..(row + 1) * cols);
        let mut searches: Vec<_> = ranges
            .map(|range| {
                let start = range.start;
                let own_scales = move |column: usize| scales(rescaled, grouping, start + column);
                let search = Search::new(
                    scheme,
                    own_scales,
                    [&target[range.clone()], &unlearned[range.clone()]],
                    [&targets[range.clone()], &values[range.clone()]],
                    moments,
                    f64::from(share),
                );
                (range, search)
            })
            .collect();
        // In the order of the columns for every gradient, whatever the block.
        for column in 0..cols {
            let moments = moments.row(column);
            searches.iter_mut().for_each(|(_, search)| search.start(column, moments));
        }
        let outcomes =
            searches.into_iter().zip(words.chunks_mut(row_words)).map(|((range, mut search), words)| {
                search.run();
                for (column, code) in search.codes.iter().enumerate() {
                    search.outcome.moved += u64::from(*code != near.code(range.start + column));
                    put(scheme, words, column, *code);
                }
                search.outcome.kept = search.survived(&targets[range]);
                search.outcome
            });
        outcomes.collect::<Vec<_>>()
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
    /// `c s - w` of the first codes.
    error: Vec<f64>,
    /// `A (c s - w)`.
    gradient: Vec<f64>,
    /// The steps up and those down.
    steps: [Steps; 2],
    /// How much is still to survive, along `delta`.
    left: f64,
    limit: f64,
    /// The scale of the error.
    size: f64,
    outcome: KeptRow,
}

/// Every code's way to one of its neighbours, column by column.
struct Steps {
    /// Twice the change of the value; this times the gradient, and [`Self::square`], is what a step adds to the error.
    doubled: Vec<f64>,
    /// The change's square times the moment.
    square: Vec<f64>,
    /// What a step brings; NaN where there is no neighbour, so that no bound holds for it.
    brings: Vec<f64>,
}

impl Steps {
    /// The least of `key`, if it is finite, and the first column that has it. `key` is of what a step costs and brings.
    fn least(&self, gradient: &[f64], key: impl Fn(f64, f64) -> f64) -> Option<(f64, usize)> {
        let chunks = || {
            let own =
                chunks_of(&self.doubled).iter().zip(chunks_of(&self.square)).zip(chunks_of(&self.brings));
            own.zip(chunks_of(gradient))
                .map(|(((doubled, square), brings), slopes)| [doubled, square, brings, slopes])
        };
        let keys = |[doubled, square, brings, slopes]: [&[f64; LANES]; 4]| {
            let lane = |lane: usize| key(doubled[lane] * slopes[lane] + square[lane], brings[lane]);
            std::array::from_fn::<f64, LANES, _>(lane)
        };
        let mut lanes = [f64::INFINITY; LANES];
        for chunk in chunks() {
            let found = keys(chunk);
            for (least, key) in lanes.iter_mut().zip(found) {
                *least = if key < *least { key } else { *least };
            }
        }
        let least = lanes.into_iter().fold(f64::INFINITY, |least, key| if key < least { key } else { least });
        if least.is_infinite() {
            return None;
        }
        let place = |(index, chunk)| Some(index * LANES + keys(chunk).iter().position(|key| *key == least)?);
        chunks().enumerate().find_map(place).map(|column| (least, column))
    }
}

/// Columns side by side.
fn chunks_of(values: &[f64]) -> &[[f64; LANES]] {
    values.as_chunks().0
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
    up: bool,
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
        let need = if squared > 0.0 { share * squared } else { 0.0 };
        let (mut left, mut delta) = (need - along(&values), update.clone());
        // From above, everything is turned round: goals are approached from below.
        if left < 0.0 {
            left = -left;
            delta.iter_mut().for_each(|delta| *delta = -*delta);
        }
        let outcome = KeptRow { moved: 0, update: squared, nearest: near, kept: 0.0 };
        let n = codes.len();
        let none = || Steps { doubled: vec![0.0; n], square: vec![0.0; n], brings: vec![f64::NAN; n] };
        let mut search = Self {
            scheme,
            scales,
            moments,
            delta,
            update,
            codes,
            values,
            error,
            gradient: vec![0.0; n],
            steps: [none(), none()],
            left,
            limit: need.abs() * TOLERANCE,
            size: 0.0,
            outcome,
        };
        (0..n).for_each(|column| search.look(column));
        let squares = |column: usize| search.steps.iter().map(move |steps| steps.square[column]);
        search.size = (0..n).map(|column| squares(column).fold(0.0, f64::max)).sum();
        search
    }

    /// Adds to the gradients what the first code of a column does to them.
    fn start(&mut self, column: usize, moments: &[f64]) {
        let error = self.error[column];
        self.gradient.iter_mut().zip(moments).for_each(|(slope, moment)| *slope += moment * error);
    }

    /// Looks where a column's code can go.
    fn look(&mut self, column: usize) {
        let (code, scales) = (self.codes[column], (self.scales)(column));
        let diagonal = self.moments.diagonal(column);
        for (steps, up) in self.steps.iter_mut().zip([true, false]) {
            let next = neighbour(self.scheme, code, up).filter(|_| scales[0] != 0.0);
            let change = next.map(|next| f64::from(value(self.scheme, next, scales)) - self.values[column]);
            steps.doubled[column] = change.map_or(0.0, |change| 2.0 * change);
            steps.square[column] = change.map_or(0.0, |change| change * change * diagonal);
            steps.brings[column] = change.map_or(f64::NAN, |change| change * self.delta[column]);
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
        let most = (self.left + self.limit).max(0.0);
        let least = if short { f64::NEG_INFINITY } else { self.left - self.limit };
        let fits = |brings: f64| brings <= most && brings >= least;
        let or_none = |is: bool, key: f64| if is { key } else { f64::INFINITY };
        let worth = self.first(|costs, brings| or_none(fits(brings), costs - price * brings));
        if let Some((change, step)) = worth
            && change < -NEGLIGIBLE * self.size
        {
            return Choice::Worth(step);
        }
        if !short {
            return Choice::None;
        }
        let cheapest = self.first(|costs, brings| or_none(fits(brings) && brings > 0.0, costs / brings));
        if let Some((ratio, step)) = cheapest {
            return Choice::At(ratio, step);
        }
        let twice = 2.0 * self.left;
        let last = self.first(|costs, brings| or_none(brings > 0.0 && brings < twice, costs / brings));
        last.map_or(Choice::None, |(_, step)| Choice::Last(step))
    }

    /// The step with the least key, which is of its costs and what it brings; of equals the first, those up before those down.
    fn first(&self, key: impl Fn(f64, f64) -> f64 + Copy) -> Option<(f64, Step)> {
        let [up, down] = &self.steps;
        let up = up.least(&self.gradient, key).map(|(least, column)| (least, Step { column, up: true }));
        let down = down.least(&self.gradient, key).map(|(least, column)| (least, Step { column, up: false }));
        match (up, down) {
            (Some(up), Some(down)) if down.0 < up.0 => Some(down),
            (None, down) => down,
            (up, _) => up,
        }
    }

    fn take(&mut self, Step { column, up }: &Step) {
        let column = *column;
        let Some(code) = neighbour(self.scheme, self.codes[column], *up) else {
            unreachable!("a step to no code")
        };
        let steps = &self.steps[usize::from(!up)];
        let change = steps.doubled[column] / 2.0;
        self.left -= steps.brings[column];
        self.codes[column] = code;
        self.values[column] = f64::from(value(self.scheme, code, (self.scales)(column)));
        let moments = self.moments.row(column);
        self.gradient.iter_mut().zip(moments).for_each(|(slope, moment)| *slope += change * moment);
        self.look(column);
    }

    fn survived(&self, target_values: &[f32]) -> f64 {
        let survived = self.values.iter().zip(target_values).zip(&self.update);
        survived.map(|((value, &old), delta)| (value - f64::from(old)) * delta).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Draw;

    /// As a plain look at every step finds it: of equals the first, and none where no step is possible.
    #[test]
    fn the_least_step_is_the_first_of_equals() {
        let n = 6 * LANES;
        let draw = Draw::new(7, "steps");
        // Few values, so that there are many equals; some columns without a step.
        let values = |stream: u64| -> Vec<f64> {
            (0..n as u64)
                .map(|index| f64::from((draw.at(stream * 1000 + index) * 4.0).floor()) - 2.0)
                .collect()
        };
        for round in 0..50 {
            let mut steps = Steps {
                doubled: values(4 * round),
                square: values(4 * round + 1),
                brings: values(4 * round + 2),
            };
            let gradient = values(4 * round + 3);
            for column in (0..n).step_by(3) {
                steps.brings[column] = f64::NAN;
            }
            for most in [-3.0, -1.0, 2.0] {
                let key = |costs: f64, brings: f64| {
                    if brings <= most { costs - 0.5 * brings } else { f64::INFINITY }
                };
                let mut want: Option<(f64, usize)> = None;
                for (column, slope) in gradient.iter().enumerate() {
                    let costs = steps.doubled[column] * slope + steps.square[column];
                    let found = key(costs, steps.brings[column]);
                    if found.is_finite() && want.is_none_or(|(least, _)| found < least) {
                        want = Some((found, column));
                    }
                }
                assert_eq!(steps.least(&gradient, key), want, "round {round}, most {most}");
                assert_eq!(want.is_none(), most < -2.0);
            }
        }
    }
}
