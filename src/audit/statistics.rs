//! How sure the figures of an audit are.

use super::findings::{ArmResult, Field, Findings, MEANS, RECOVERED, Recovered, Reference};
use super::plan::{Plan, Role};
use super::repair::{MetricChange, Repaired};
use super::verdict::Criteria;
use super::weighted::{Known, interval, plain, ratio, sum};
use crate::metrics::bootstrap::Resamples;
use crate::metrics::hypothesis::{Alternative, holm, sign_flip_test};
use crate::metrics::membership::{priv_leak, resampled_aucs};
use crate::quant::Precision;

/// Lower and upper end of a 95 % percentile interval; none where there is nothing to resample, or where the statistic is
/// not defined on so many resamples that an end would fall among these.
pub type Interval = Option<[f64; 2]>;

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its 95 % interval.
    pub ci95: Interval,
}

/// Intervals of one arm's metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmIntervals {
    /// VerbMem forget, KnowMem forget, KnowMem retain, x100.
    pub means: [Interval; 3],
    /// Probability, exact memorization and extraction strength of the same sets' true answers, x100.
    pub truths: [[Interval; 3]; 3],
    /// PrivLeak against each reference, as [`Findings::priv_leak`].
    pub priv_leak: Vec<Interval>,
}

/// What supports one metric's recovery.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Examples that were asked, and that were scored.
    pub asked: usize,
    /// Examples that were scored.
    pub n: usize,
    /// Of [`Recovery::of_gap_to_target`](crate::metrics::recovery::Recovery).
    pub of_gap_to_target: Interval,
    /// Of `of_gap_to_target_same_precision`.
    pub of_gap_to_target_same_precision: Interval,
    /// Of `share_of_target_same_precision`.
    pub share_of_target_same_precision: Interval,
    /// `target - u`, both at full precision, x100: what was forgotten.
    pub gap: Option<Estimate>,
    /// `target at the same precision - u`, x100: what could come back.
    pub gap_same_precision: Option<Estimate>,
    /// The target's own score less that of the retrained model (0 without one), full precision, x100: what there was to
    /// forget.
    pub known: Option<Estimate>,
    /// `((q - u) - (retrain_q - retrain)) / (target at the same precision - u)`: the recovered share less what
    /// quantization gives even a model that never learned it. None without a retrained model.
    pub beyond_retrain: Option<Estimate>,
    /// One-sided permutation test of q > u, example by example.
    pub p_recovered: Option<f64>,
    /// The same, adjusted for the whole table.
    pub p_recovered_holm: Option<f64>,
    /// One-sided permutation test of `q - u < held_below (target at the same precision - u)`, example by example: small if
    /// it is sure that less than that share is back.
    pub p_held: Option<f64>,
    /// The same, adjusted for the whole table.
    pub p_held_holm: Option<f64>,
}

/// What quantization alone does to a model that was not made to forget.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// Index in [`Plan::models`]: the target or the retrained model.
    pub model: usize,
    /// The precision that is held against full precision.
    pub precision: Precision,
    /// The metric's name in reports.
    pub metric: &'static str,
    /// Quantized less full precision, x100.
    pub change: Estimate,
    /// Two-sided permutation test of no change, not adjusted.
    pub p: Option<f64>,
}

/// Everything that resampling says.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// In the order of [`Findings::arms`].
    pub arms: Vec<ArmIntervals>,
    /// In the order of [`Findings::recovery`].
    pub recovery: Vec<(Recovered, Evidence)>,
    /// Target, then retrained model; by precision, then metric.
    pub controls: Vec<Control>,
    /// By model, then by scheme: the arms in roundings that are not the nearest, and released files.
    pub repaired: Vec<Repaired>,
}

/// Streams of the generator: one for each question set, so that none depends on another.
const MEAN_STREAMS: [u64; 3] = [0, 1, 2];
const FORGET_STREAM: u64 = 3;
const HOLDOUT_STREAM: u64 = 4;
const SIGNS_STREAM: u64 = 5;

impl Statistics {
    /// Resamples the examples behind the findings, all arms alike.
    #[must_use]
    pub fn of(findings: &Findings) -> Self {
        let resampled = Resampled::new(findings);
        let arms = findings.arms.iter().enumerate().map(|(place, arm)| resampled.intervals(place, arm));
        let recovery = findings.recovery().into_iter().map(|recovered| {
            let evidence = resampled.evidence(&recovered);
            (recovered, evidence)
        });
        let mut statistics = Self {
            arms: arms.collect(),
            recovery: recovery.collect(),
            controls: resampled.controls(),
            repaired: resampled.repaired(),
        };
        statistics.adjust(|evidence| (evidence.p_recovered, &mut evidence.p_recovered_holm));
        statistics.adjust(|evidence| (evidence.p_held, &mut evidence.p_held_holm));
        statistics
    }

    /// Corrects one family of p-values for its size.
    fn adjust(&mut self, field: impl Fn(&mut Evidence) -> (Option<f64>, &mut Option<f64>)) {
        let p: Vec<_> = self.recovery.iter_mut().filter_map(|(_, evidence)| field(evidence).0).collect();
        let mut adjusted = holm(&p).into_iter();
        for (_, evidence) in &mut self.recovery {
            let (p, place) = field(evidence);
            *place = p.and_then(|_| adjusted.next());
        }
    }
}

/// The means and AUCs of all arms on the same resamples.
struct Resampled<'a> {
    findings: &'a Findings,
    criteria: Criteria,
    /// By metric of [`MEANS`], then arm; x100. Empty where an arm has no value.
    means: [Vec<Vec<f64>>; 3],
    /// By arm.
    aucs: Vec<Vec<f64>>,
    /// Of the three sets' true answers, by arm.
    truths: Vec<[[Interval; 3]; 3]>,
}

impl<'a> Resampled<'a> {
    fn new(findings: &'a Findings) -> Self {
        let criteria = findings.plan.criteria;
        let draws = |stream, n| Resamples::new(criteria.seed, stream, n, criteria.resamples);
        // All arms answered the same questions, so the first one's number is everybody's.
        let first = findings.arms.first();
        let means = [0, 1, 2].map(|metric: usize| {
            let (_, field) = MEANS[metric];
            let draws = draws(MEAN_STREAMS[metric], first.map_or(0, |arm| field(arm).n()));
            let of = |arm: &ArmResult| {
                let metric = field(arm);
                let scores = metric.value.value().map_or(&[][..], |_| &metric.scores);
                draws.means(scores).into_iter().map(|mean| 100.0 * mean).collect()
            };
            findings.arms.iter().map(of).collect()
        });
        let forget = draws(FORGET_STREAM, first.map_or(0, |arm| arm.auc.forget.len()));
        let holdout = draws(HOLDOUT_STREAM, first.map_or(0, |arm| arm.auc.holdout.len()));
        let aucs = |arm: &ArmResult| match arm.auc.value.value() {
            Some(_) => resampled_aucs(&arm.auc.forget, &arm.auc.holdout, &forget, &holdout),
            None => Vec::new(),
        };
        let aucs = findings.arms.iter().map(aucs).collect();
        let mut truths = vec![[[None; 3]; 3]; findings.arms.len()];
        for set in 0..3 {
            // As the answers that were generated for the same examples.
            let draws = draws(MEAN_STREAMS[set], first.map_or(0, |arm| arm.truths[set].probability.n()));
            for (intervals, arm) in truths.iter_mut().zip(&findings.arms) {
                intervals[set] = arm.truths[set].metrics().map(|metric| {
                    let means = draws.means(&metric.scores).into_iter();
                    plain(&means.map(|mean| 100.0 * mean).collect::<Vec<_>>())
                });
            }
        }
        Self { findings, criteria, means, aucs, truths }
    }

    fn intervals(&self, place: usize, arm: &ArmResult) -> ArmIntervals {
        let means = [0, 1, 2].map(|metric: usize| plain(&self.means[metric][place]));
        let leak = |reference: Reference, constant: Option<f64>| {
            let retrain =
                self.findings.plan.retrain().and_then(|model| self.findings.place(model, Precision::Full));
            let references = match reference {
                Reference::Retrain => retrain.map_or(&[][..], |place| &self.aucs[place]),
                Reference::Corpus | Reference::Half => &[],
            };
            let of = |(resample, &auc): (usize, &f64)| match reference {
                Reference::Retrain => {
                    references.get(resample).and_then(|&other| priv_leak(auc, other).value())
                }
                Reference::Corpus | Reference::Half => priv_leak(auc, constant?).value(),
            };
            interval(self.aucs[place].iter().enumerate().map(of))
        };
        let leaks = self.findings.priv_leak(arm);
        let priv_leak = leaks.iter().map(|found| leak(found.reference, found.reference_auc.value()));
        ArmIntervals { means, truths: self.truths[place], priv_leak: priv_leak.collect() }
    }

    fn evidence(&self, recovered: &Recovered) -> Evidence {
        let Some(metric) = RECOVERED.iter().position(|(name, _)| *name == recovered.metric) else {
            return Evidence::default();
        };
        let Recovered { unlearned, precision, .. } = *recovered;
        let full = Precision::Full;
        let arm = |model: usize, precision| self.arm(metric, model, precision);
        let quantized = arm(unlearned, precision);
        let (target, target_q) = (arm(Plan::TARGET, full), arm(Plan::TARGET, precision));
        let before = arm(unlearned, full);
        let retrain = self.findings.plan.retrain();
        let placebo = retrain.and_then(|model| Some((arm(model, full)?, arm(model, precision)?)));
        let mut evidence = Evidence::default();
        let Some(q) = quantized else { return evidence };
        (evidence.asked, evidence.n) = (q.asked, q.scores.len());
        if let Some(t) = target_q {
            evidence.share_of_target_same_precision = ratio(&[(1.0, q)], &[(1.0, t)]).ci95;
        }
        if let Some(t) = target {
            let subtract = retrain.and_then(|model| arm(model, full)).map(|arm| (-1.0, arm));
            evidence.known = Some(sum(&[Some((1.0, t)), subtract].into_iter().flatten().collect::<Vec<_>>()));
        }
        let Some(u) = before else { return evidence };
        evidence.p_recovered = self.p(&[(1.0, q), (-1.0, u)], Alternative::Greater);
        if let Some(t) = target {
            evidence.gap = Some(sum(&[(1.0, t), (-1.0, u)]));
            evidence.of_gap_to_target = ratio(&[(1.0, q), (-1.0, u)], &[(1.0, t), (-1.0, u)]).ci95;
        }
        if let Some(t) = target_q {
            let gap = [(1.0, t), (-1.0, u)];
            evidence.gap_same_precision = Some(sum(&gap));
            evidence.of_gap_to_target_same_precision = ratio(&[(1.0, q), (-1.0, u)], &gap).ci95;
            if let Some((r, r_q)) = placebo {
                let excess = [(1.0, q), (-1.0, u), (-1.0, r_q), (1.0, r)];
                let estimate = ratio(&excess, &gap);
                evidence.beyond_retrain = estimate.value.is_finite().then_some(estimate);
            }
            // The share lies below h if and only if this mean lies below 0, the gap being positive: Fieller's way to test a
            // ratio without dividing.
            let h = self.criteria.held_below;
            evidence.p_held = self.p(&[(1.0, q), (h - 1.0, u), (-h, t)], Alternative::Less);
        }
        evidence
    }

    fn controls(&self) -> Vec<Control> {
        let plan = &self.findings.plan;
        let arms = self.findings.arms.iter();
        let quantized = arms
            .filter(|arm| plan.models[arm.model].role != Role::Unlearned && arm.precision != Precision::Full);
        let mut controls = Vec::new();
        for arm in quantized {
            for (place, (metric, _)) in MEANS.iter().enumerate() {
                let pair = self.arm(place, arm.model, arm.precision).zip(self.arm(
                    place,
                    arm.model,
                    Precision::Full,
                ));
                if let Some((q, full)) = pair {
                    let change = [(1.0, q), (-1.0, full)];
                    controls.push(Control {
                        model: arm.model,
                        precision: arm.precision,
                        metric,
                        change: sum(&change),
                        p: self.p(&change, Alternative::TwoSided),
                    });
                }
            }
        }
        controls
    }

    fn repaired(&self) -> Vec<Repaired> {
        let arms = self.findings.quantized_unlearned();
        let rounded = arms.filter(|arm| arm.precision != arm.precision.plain());
        let repaired = |arm: &ArmResult| {
            let change = |(place, (metric, _)): (usize, &(&'static str, Field))| {
                let own = self.arm(place, arm.model, arm.precision);
                let from = |precision| {
                    let other = self.arm(place, arm.model, precision);
                    own.zip(other).map(|(own, other)| sum(&[(1.0, own), (-1.0, other)]))
                };
                MetricChange {
                    metric,
                    from_nearest: from(arm.precision.plain()),
                    from_full: from(Precision::Full),
                }
            };
            let changes = MEANS.iter().enumerate().map(change).collect();
            Repaired { unlearned: arm.model, precision: arm.precision, changes }
        };
        let mut all: Vec<_> = rounded.map(repaired).collect();
        let precisions = &self.findings.plan.precisions;
        let scheme = |precision: Precision| precisions.iter().position(|other| *other == precision.plain());
        all.sort_by_key(|repaired| (repaired.unlearned, scheme(repaired.precision)));
        all
    }

    /// What is known of an arm's mean; `None` if it has none.
    fn arm(&self, metric: usize, model: usize, precision: Precision) -> Option<Known<'_>> {
        let place = self.findings.place(model, precision)?;
        let field: Field = MEANS[metric].1;
        let found = field(&self.findings.arms[place]);
        let value = found.value.value()?;
        Some(Known { value, asked: found.asked, scores: &found.scores, means: &self.means[metric][place] })
    }

    /// The test of a weighted sum of paired scores.
    fn p(&self, terms: &[(f64, Known<'_>)], alternative: Alternative) -> Option<f64> {
        let n = terms.first().map_or(0, |(_, arm)| arm.scores.len());
        if terms.iter().any(|(_, arm)| arm.scores.len() != n) {
            return None;
        }
        let differences: Vec<f64> = (0..n)
            .map(|example| terms.iter().map(|(weight, arm)| weight * arm.scores[example]).sum())
            .collect();
        let Criteria { seed, resamples, .. } = self.criteria;
        sign_flip_test(&differences, alternative, seed, SIGNS_STREAM, resamples)
    }
}
