//! The four-way picture of logits: unlearned against target, at full precision and quantized, and each against its own full
//! precision, on the true answers.

use std::ops::Range;

use super::findings::Findings;
use super::plan::{Plan, Role};
use super::statistics::{Estimate, Interval};
use super::store::Sums;
use super::weighted::interval;
use crate::engine::Observation;
use crate::error::Result;
use crate::metrics::bootstrap::Resamples;
use crate::model::Pair;
use crate::quant::Precision;

/// Model and precision.
type Arm = (usize, Precision);

/// Which answers arms are compared on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSet {
    /// VerbMem's and KnowMem's on the forget set.
    Forget,
    /// KnowMem's on the retain set.
    Retain,
}

impl AnswerSet {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forget, Self::Retain];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Forget => "forget",
            Self::Retain => "retain",
        }
    }

    /// The generator's stream: one for each set, after those of the metrics.
    fn stream(self) -> u64 {
        match self {
            Self::Forget => 6,
            Self::Retain => 7,
        }
    }
}

/// What sets two arms apart on one true answer: sums over its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AnswerApart {
    /// Tokens.
    pub positions: usize,
    /// KL(reference || arm), nats.
    pub kl: f64,
    /// KL(arm || reference), nats.
    pub reverse_kl: f64,
    /// Tokens at which both find the same one likeliest.
    pub same_top: usize,
}

/// What sets two arms apart on a set of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Apart {
    /// Which answers.
    pub set: AnswerSet,
    /// The one that the other is held against.
    pub reference: Arm,
    /// The other.
    pub arm: Arm,
    /// In the order of the files.
    pub answers: Vec<AnswerApart>,
}

/// How an unlearned model's distance from the target changes with quantization. KL in nats a token.
#[derive(Clone, Debug, PartialEq)]
pub struct FourWay {
    /// Which answers.
    pub set: AnswerSet,
    /// Index in [`Plan::models`].
    pub unlearned: usize,
    /// The precision that is held against full precision.
    pub precision: Precision,
    /// KL(unlearned || target), both at full precision.
    pub to_target_full: Estimate,
    /// KL(unlearned || target), both at this precision.
    pub to_target: Estimate,
    /// By how much the second is smaller than the first, as a share of it; negative if they part. Missing if the models do
    /// not differ at full precision.
    pub closer: Option<Estimate>,
    /// KL(unlearned at full precision || at this precision).
    pub to_own_full: Estimate,
    /// The same of the target: what quantization alone does.
    pub target_to_own_full: Estimate,
    /// Share of tokens at which unlearned and target, both at this precision, find the same one likeliest.
    pub same_top: Estimate,
    /// The same at full precision.
    pub same_top_full: Estimate,
    /// Answers.
    pub n: usize,
    /// Their tokens.
    pub positions: usize,
}

/// The pairs that the picture takes among `arms`.
pub(super) fn pairs(plan: &Plan, arms: &[Arm]) -> Vec<Pair> {
    let place = |model: usize, precision: Precision| {
        let wanted = (model, plan.precision_of(model, precision));
        arms.iter().position(|arm| *arm == wanted)
    };
    let mut pairs = Vec::new();
    for (arm, &(model, precision)) in arms.iter().enumerate() {
        // The target at the same precision, then the model itself at full precision.
        let target = place(Plan::TARGET, precision).filter(|_| plan.models[model].role == Role::Unlearned);
        let full = place(model, Precision::Full)
            .filter(|_| precision != Precision::Full && plan.models[model].role != Role::Retrain);
        pairs.extend([target, full].into_iter().flatten().map(|reference| Pair { reference, arm }));
    }
    pairs
}

/// What the pairs' answers come to. `answers` are by arm, `sums` by pair, both by task; `sets` are the ranges of
/// [`AnswerSet::ALL`] among the tasks.
pub(super) fn apart(
    arms: &[Arm],
    pairs: &[Pair],
    answers: &[Result<Vec<Observation>>],
    sums: &[Vec<Option<Sums>>],
    sets: &[Range<usize>; 2],
) -> Vec<Apart> {
    let scored = |arm: usize, task: usize| match answers[arm].as_ref().ok().map(|tasks| &tasks[task]) {
        Some(Observation::Scored { argmax, .. }) => Some(argmax),
        _ => None,
    };
    let mut found = Vec::new();
    for (pair, tasks) in pairs.iter().zip(sums) {
        for (set, range) in AnswerSet::ALL.into_iter().zip(sets) {
            let answer = |task: usize| {
                let (reference, own) = (scored(pair.reference, task)?, scored(pair.arm, task)?);
                let Sums { positions, kl, reverse_kl } = tasks[task]?;
                let same_top = reference.iter().zip(own).filter(|(a, b)| a == b).count();
                Some(AnswerApart { positions, kl, reverse_kl, same_top })
            };
            // An arm that failed is set apart from nothing.
            let Some(answers) = range.clone().map(answer).collect::<Option<Vec<_>>>() else { continue };
            let (reference, arm) = (arms[pair.reference], arms[pair.arm]);
            found.push(Apart { set, reference, arm, answers });
        }
    }
    found
}

/// The picture, by set, then by model and precision.
#[must_use]
pub fn four_way(findings: &Findings) -> Vec<FourWay> {
    let mut rows = Vec::new();
    for set in AnswerSet::ALL {
        let of_set: Vec<_> = findings.apart.iter().filter(|apart| apart.set == set).collect();
        let Some(n) = of_set.first().map(|apart| apart.answers.len()) else { continue };
        let criteria = findings.plan.criteria;
        let draws = Resamples::new(criteria.seed, set.stream(), n, criteria.resamples);
        let of = |reference: Arm, arm: Arm| {
            of_set.iter().find(|apart| (apart.reference, apart.arm) == (reference, arm))
        };
        for arm in findings.quantized_unlearned() {
            let (unlearned, precision) = (arm.model, arm.precision);
            let full = Precision::Full;
            let target = (Plan::TARGET, findings.plan.precision_of(Plan::TARGET, precision));
            let four = (
                of((Plan::TARGET, full), (unlearned, full)),
                of(target, (unlearned, precision)),
                of((unlearned, full), (unlearned, precision)),
                of((Plan::TARGET, full), target),
            );
            let (Some(at_full), Some(quantized), Some(own), Some(target)) = four else { continue };
            let [at_full, quantized, own, target] =
                [at_full, quantized, own, target].map(|apart| &apart.answers);
            let kl = |answer: &AnswerApart| answer.kl;
            let reverse = |answer: &AnswerApart| answer.reverse_kl;
            let same = |answer: &AnswerApart| answer.same_top as f64;
            let tokens = |answer: &AnswerApart| answer.positions as f64;
            let ratio = |answers: &[AnswerApart], upper: fn(&AnswerApart) -> f64| {
                quotient(&draws, |answer| upper(&answers[answer]), |answer| tokens(&answers[answer]))
            };
            let closer = quotient(
                &draws,
                |answer| reverse(&at_full[answer]) - reverse(&quantized[answer]),
                |answer| reverse(&at_full[answer]),
            );
            rows.push(FourWay {
                set,
                unlearned,
                precision,
                to_target_full: ratio(at_full, reverse),
                to_target: ratio(quantized, reverse),
                closer: closer.value.is_finite().then_some(closer),
                to_own_full: ratio(own, kl),
                target_to_own_full: ratio(target, kl),
                same_top: ratio(quantized, same),
                same_top_full: ratio(at_full, same),
                n,
                positions: quantized.iter().map(|answer| answer.positions).sum(),
            });
        }
    }
    rows
}

/// A sum over answers by another one, with its interval; not finite, or undefined on a resample, where the lower is not
/// positive.
pub(super) fn quotient(
    draws: &Resamples,
    upper: impl Fn(usize) -> f64,
    lower: impl Fn(usize) -> f64,
) -> Estimate {
    let n = draws.examples();
    let (upper, lower): (Vec<f64>, Vec<f64>) = (0..n).map(|answer| (upper(answer), lower(answer))).unzip();
    let divide = |upper: f64, lower: f64| (lower > 0.0).then(|| upper / lower);
    let on = |drawn: &[u32]| {
        let sum = |values: &[f64]| drawn.iter().map(|&answer| values[answer as usize]).sum::<f64>();
        divide(sum(&upper), sum(&lower))
    };
    let ci95: Interval = interval(draws.iter().map(on));
    Estimate { value: divide(upper.iter().sum(), lower.iter().sum()).unwrap_or(f64::NAN), ci95 }
}
