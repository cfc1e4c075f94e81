//! How much of each unlearned checkpoint's update each precision keeps, beside what came back.

use super::codes::{CodesPlan, compare_codes};
use super::divergence::{AnswerSet, FourWay};
use super::fate::{Fate, MatrixFate, fates};
use super::findings::Findings;
use super::plan::Plan;
use super::rounded::{Tallies, Values, tally};
use super::statistics::Statistics;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::metrics::Measured;
use crate::metrics::correlation::spearman;
use crate::quant::{Precision, Rounding};

/// One unlearned checkpoint at one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Survival {
    /// Index in [`Plan::models`].
    pub unlearned: usize,
    /// The precision that both checkpoints are quantized to.
    pub precision: Precision,
    /// `<Q(u) - Q(t), u - t> / <u - t, u - t>` over all quantized weights: 1 all of the update, 0 nothing.
    pub value: Measured,
    /// Codes that are not the nearest, of how many; `None` in nearest rounding, of a released file, and where the pair cannot
    /// be compared.
    pub moved: Option<(u64, u64)>,
    /// Of what `value` is made: every quantized matrix in the order of use. Empty where the pair cannot be compared.
    pub matrices: Vec<MatrixFate>,
}

impl Survival {
    fn new(
        unlearned: usize,
        precision: Precision,
        matrices: Result<Vec<MatrixFate>, &Error>,
        moved: Option<(u64, u64)>,
    ) -> Self {
        let (value, matrices) = match matrices {
            Ok(matrices) => {
                (Fate::sum(&matrices).survival().map_or_else(no_update, Measured::Value), matrices)
            }
            Err(error) => (Measured::Missing(error.to_string()), Vec::new()),
        };
        Self { unlearned, precision, value, moved, matrices }
    }

    /// What the tallies of a precision say, or why there are none.
    fn tallied(
        unlearned: usize,
        precision: Precision,
        tallies: Result<&Tallies, &Error>,
        index: usize,
    ) -> Self {
        let matrices = tallies.map(|tallies| tallies.fates(index));
        Self::new(unlearned, precision, matrices, tallies.ok().and_then(|tallies| tallies.moved(index)))
    }
}

/// Reads the target and these of the plan's unlearned models once more, and gives the survivals with the bytes read.
///
/// `watch` is told the checkpoint, and how many of how many weights are done. A pair that cannot be compared (another
/// architecture) has no survival, with the reason: the audit's own figures do not need it.
pub fn measure_survival(
    plan: &Plan,
    unlearned: &[usize],
    watch: &mut dyn FnMut(&str, u64, u64),
) -> (Vec<Survival>, u64) {
    let schemes = plan.precisions.iter().filter_map(|&precision| match precision {
        Precision::Quantized(scheme, Rounding::Nearest) => Some(scheme),
        Precision::Full | Precision::Quantized(..) | Precision::Released(..) => None,
    });
    let schemes: Vec<_> = schemes.collect();
    let (mut all, mut bytes) = (Vec::new(), 0);
    if schemes.is_empty() {
        return (all, bytes);
    }
    let released: Vec<_> = plan.released.iter().map(|file| Checkpoint::open(&file.path)).collect();
    for &unlearned in unlearned {
        let model = &plan.models[unlearned];
        let codes = CodesPlan {
            target: plan.models[Plan::TARGET].path.clone(),
            unlearned: model.path.clone(),
            schemes: schemes.clone(),
            quantize_head: plan.quantize_head,
        };
        let (ways, broken) = ways(plan, unlearned, &released);
        for (precision, error) in broken {
            all.push(Survival::new(unlearned, precision, Err(error), None));
        }
        let passes = if ways.is_empty() { 1 } else { 2 };
        let mut weights = 0;
        let asked = codes.clone();
        let codes = compare_codes(codes, &mut |done, total| {
            weights = total;
            watch(&model.name, done, passes * total);
            Ok(())
        });
        bytes += codes.as_ref().map_or(0, |codes| codes.disk_bytes);
        for (index, &scheme) in schemes.iter().enumerate() {
            let matrices = codes.as_ref().map(|codes| fates(codes, index));
            all.push(Survival::new(unlearned, Precision::nearest(scheme), matrices, None));
        }
        if ways.is_empty() {
            continue;
        }
        let (precisions, ways): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
        let tallies = tally(&asked, &ways, &mut |done, _| {
            watch(&model.name, (weights + done).min(2 * weights), 2 * weights);
        });
        bytes += tallies.as_ref().map_or(0, |tallies| tallies.bytes);
        for (index, &precision) in precisions.iter().enumerate() {
            all.push(Survival::tallied(unlearned, precision, tallies.as_ref(), index));
        }
    }
    (all, bytes)
}

/// An unlearned model's precisions with where their values come from.
type Ways<'a> = Vec<(Precision, Values<'a>)>;

/// How an unlearned model is quantized other than to nearest codes, in the order of the plan; and released files that cannot be
/// opened.
fn ways<'a>(
    plan: &Plan,
    unlearned: usize,
    released: &'a [Result<Checkpoint, Error>],
) -> (Ways<'a>, Vec<(Precision, &'a Error)>) {
    let (mut ways, mut broken) = (Vec::new(), Vec::new());
    for &precision in &plan.precisions {
        match precision {
            Precision::Full | Precision::Quantized(_, Rounding::Nearest) => {}
            Precision::Quantized(scheme, rounding) => {
                ways.push((precision, Values::Rounded(scheme, rounding)));
            }
            Precision::Released(scheme, _) => match plan.released_as(unlearned, precision) {
                None => {}
                Some(file) => match &released[file] {
                    Ok(file) => ways.push((precision, Values::Released(scheme, file))),
                    Err(error) => broken.push((precision, error)),
                },
            },
        }
    }
    (ways, broken)
}

fn no_update() -> Measured {
    Measured::Missing("no weight changed, or a quantized value is beyond f32".to_owned())
}

impl Findings {
    /// The survival of an unlearned model at a precision, if it was looked at.
    #[must_use]
    pub fn survival(&self, unlearned: usize, precision: Precision) -> Option<&Survival> {
        self.survival.iter().find(|found| found.unlearned == unlearned && found.precision == precision)
    }
}

/// What is ranked: hundredths, as tables show them. A precision that keeps all of every update gives survivals that differ in
/// the fourth digit, and an order of these would be noise.
fn hundredths(survival: f64, recovered: f64) -> (f64, f64) {
    ((100.0 * survival).round(), (100.0 * recovered).round())
}

/// Spearman's rank correlation of survival with the recovered share of the gap to the target at the same precision, over
/// all quantized unlearned arms that have both; with the number of these. Ranks are those of hundredths.
#[must_use]
pub fn rank_correlation(findings: &Findings, statistics: &Statistics, metric: &str) -> (Measured, usize) {
    let recovery = statistics.recovery.iter().filter(|(recovered, _)| recovered.metric == metric);
    let pair = recovery.filter_map(|(recovered, _)| {
        let survival = findings.survival(recovered.unlearned, recovered.precision)?.value.value()?;
        Some(hundredths(survival, recovered.ratios.of_gap_to_target_same_precision.value()?))
    });
    let pairs: Vec<_> = pair.collect();
    (spearman(&pairs), pairs.len())
}

/// The same with the share by which unlearned model and target come closer on the forget set's answers
/// ([`FourWay::closer`]), which is finer than greedy text.
#[must_use]
pub fn closeness_correlation(findings: &Findings, rows: &[FourWay]) -> (Measured, usize) {
    let rows = rows.iter().filter(|row| row.set == AnswerSet::Forget);
    let pair = rows.filter_map(|row| {
        let survival = findings.survival(row.unlearned, row.precision)?.value.value()?;
        Some(hundredths(survival, row.closer?.value))
    });
    let pairs: Vec<_> = pair.collect();
    (spearman(&pairs), pairs.len())
}
