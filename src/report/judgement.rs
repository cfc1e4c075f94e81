//! The part of the record that says how sure the figures are and what they amount to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::maps::{SurvivalMap, survival_map};
use crate::audit::{self, ALPHA, CONFIDENCE, Findings, closeness_correlation, rank_correlation, verdicts};
use crate::metrics::Measured;

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// 95 % confidence interval.
    pub ci95: Option<[f64; 2]>,
}

/// How figures were resampled and judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Statistics {
    /// Of every interval.
    pub confidence: f64,
    /// Error rate of the tests over the whole table.
    pub alpha: f64,
    /// Resamples of the bootstrap, and signs of a permutation test that cannot go through all.
    pub resamples: usize,
    /// Of the random generator.
    pub seed: u64,
    /// A recovered share above this is a resurrection.
    pub resurrected_above: f64,
    /// A recovered share below this is none.
    pub held_below: f64,
    /// A retain metric below this share of the target's is a collapse.
    pub collapsed_below: f64,
    /// Points that must have been there to forget, to lose and to bring back.
    pub least_gap: f64,
}

/// What quantization alone does to a model that was not made to forget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Control {
    /// The checkpoint's name.
    pub name: String,
    /// `target` or `retrain`.
    pub role: String,
    /// What is held against full precision.
    pub precision: String,
    /// The metric.
    pub metric: String,
    /// Its change, x100.
    pub change: f64,
    /// 95 % confidence interval.
    pub ci95: Option<[f64; 2]>,
    /// Paired permutation test of no change, two-sided, not corrected.
    pub p: Option<f64>,
}

/// How much of an update outlives quantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Survival {
    /// The unlearned checkpoint's name.
    pub unlearned: String,
    /// The precision.
    pub precision: String,
    /// `<Q(u) - Q(t), u - t> / <u - t, u - t>`.
    pub value: Option<f64>,
    /// Codes that are not the nearest, in a rounding that is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<u64>,
    /// Of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<u64>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// By layer and module; absent where the two checkpoints cannot be compared, and in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<SurvivalMap>,
}

/// Spearman's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankCorrelation {
    /// The metric that recovery is of; `closer_forget` is the share by which KL to the target shrinks on the forget set.
    pub metric: String,
    /// -1: the less survives, the more comes back.
    pub spearman: Option<f64>,
    /// Arms.
    pub n: usize,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The verdict on one unlearned checkpoint at one precision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The checkpoint's name.
    pub unlearned: String,
    /// The precision.
    pub precision: String,
    /// `resurrected`, `held`, `inconclusive` or `void`.
    pub verdict: String,
    /// Why, with the numbers.
    pub because: String,
}

/// Unlearned checkpoints as steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    /// What its values are of.
    pub name: String,
    /// By ascending value.
    pub steps: Vec<Step>,
    /// By metric, then precision.
    pub curves: Vec<Curve>,
}

/// One step of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// The value.
    pub value: f64,
    /// The unlearned checkpoint's name.
    pub unlearned: String,
}

/// A metric over the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Curve {
    /// The metric.
    pub metric: String,
    /// The precision.
    pub precision: String,
    /// One a step.
    pub points: Vec<Point>,
}

/// A metric at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// The metric, as in the arm.
    pub value: Option<f64>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// 95 % confidence interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
}

impl From<audit::Estimate> for Estimate {
    fn from(estimate: audit::Estimate) -> Self {
        Self { value: estimate.value, ci95: estimate.ci95 }
    }
}

impl From<&audit::Criteria> for Statistics {
    fn from(criteria: &audit::Criteria) -> Self {
        let audit::Criteria { resamples, seed, resurrected_above, held_below, collapsed_below, least_gap } =
            *criteria;
        Self {
            confidence: CONFIDENCE,
            alpha: ALPHA,
            resamples,
            seed,
            resurrected_above,
            held_below,
            collapsed_below,
            least_gap,
        }
    }
}

fn parts(measured: &Measured) -> (Option<f64>, Option<String>) {
    (measured.value(), measured.reason().map(str::to_owned))
}

pub(super) fn controls(findings: &Findings, statistics: &audit::Statistics) -> Vec<Control> {
    let control = |control: &audit::Control| {
        let model = &findings.plan.models[control.model];
        Control {
            name: model.name.clone(),
            role: model.role.name().to_owned(),
            precision: control.precision.to_string(),
            metric: control.metric.to_owned(),
            change: control.change.value,
            ci95: control.change.ci95,
            p: control.p,
        }
    };
    statistics.controls.iter().map(control).collect()
}

pub(super) fn survival(findings: &Findings) -> Vec<Survival> {
    let survival = |survival: &audit::Survival| {
        let (value, reason) = parts(&survival.value);
        let unlearned = findings.plan.models[survival.unlearned].name.clone();
        let (moved, weights) = survival.moved.unzip();
        let (precision, map) = (survival.precision.to_string(), survival_map(survival));
        Survival { unlearned, precision, value, moved, weights, reason, map }
    };
    findings.survival.iter().map(survival).collect()
}

/// The name of what is no metric: how much closer the quantized pair comes on the forget set.
pub(super) const CLOSER: &str = "closer_forget";

pub(super) fn correlations(
    findings: &Findings,
    statistics: &audit::Statistics,
    divergence: &[audit::FourWay],
) -> Vec<RankCorrelation> {
    if findings.survival.is_empty() {
        return Vec::new();
    }
    let of = |metric: &str, (found, n): (Measured, usize)| {
        let (spearman, reason) = parts(&found);
        RankCorrelation { metric: metric.to_owned(), spearman, n, reason }
    };
    let recovered = ["verbmem_forget", "knowmem_forget"]
        .map(|metric| of(metric, rank_correlation(findings, statistics, metric)));
    let closer = (!divergence.is_empty()).then(|| of(CLOSER, closeness_correlation(findings, divergence)));
    recovered.into_iter().chain(closer).collect()
}

pub(super) fn judged(findings: &Findings, statistics: &audit::Statistics) -> Vec<Verdict> {
    let verdict = |verdict: audit::Verdict| Verdict {
        unlearned: findings.plan.models[verdict.unlearned].name.clone(),
        precision: verdict.precision.to_string(),
        verdict: verdict.outcome.name().to_owned(),
        because: verdict.because,
    };
    verdicts(findings, statistics).into_iter().map(verdict).collect()
}

pub(super) fn series(findings: &Findings, statistics: &audit::Statistics) -> Vec<Series> {
    let point = |point: &audit::Point| {
        let (value, reason) = parts(&point.value);
        Point { value, reason, ci95: point.ci95 }
    };
    let curve = |curve: audit::Curve| Curve {
        metric: curve.metric.to_owned(),
        precision: curve.precision.to_string(),
        points: curve.points.iter().map(point).collect(),
    };
    let step = |step: &audit::Step| Step {
        value: step.value,
        unlearned: findings.plan.models[step.model].name.clone(),
    };
    let series = |series: &audit::Series| Series {
        name: series.name.clone(),
        steps: series.steps.iter().map(step).collect(),
        curves: series.curves(findings, statistics).into_iter().map(curve).collect(),
    };
    findings.plan.series.iter().map(series).collect()
}
