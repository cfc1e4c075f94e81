//! What roundings that keep the update, and released files, change against nearest rounding and against full precision; and
//! the dose that is enough.

use super::findings::{Findings, RECOVERED};
use super::statistics::{Estimate, Statistics};
use crate::quant::{Precision, Rounding};

/// One unlearned model at one rounding that is not the nearest, or as released.
#[derive(Clone, Debug, PartialEq)]
pub struct Repaired {
    /// Index in [`Plan::models`](super::Plan::models).
    pub unlearned: usize,
    /// Scheme and rounding.
    pub precision: Precision,
    /// VerbMem forget, KnowMem forget, KnowMem retain.
    pub changes: Vec<MetricChange>,
}

/// How a metric differs, x100, example by example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricChange {
    /// The metric's name in reports.
    pub metric: &'static str,
    /// From nearest rounding in the same scheme.
    pub from_nearest: Option<Estimate>,
    /// From full precision.
    pub from_full: Option<Estimate>,
}

/// The dose of kept rounding that was chosen for an unlearned model and a scheme.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Index in [`Plan::models`](super::Plan::models).
    pub unlearned: usize,
    /// The scheme in nearest rounding.
    pub precision: Precision,
    /// The scheme in kept rounding with the smallest share at which both forget metrics are no higher than the upper ends of
    /// the intervals of the model at full precision; `None` if no dose reaches that.
    pub dose: Option<Precision>,
}

/// Chooses doses, by model, then by scheme, if the plan asks for it. A scheme none of whose doses was measured is left out.
#[must_use]
pub fn chosen_doses(findings: &Findings, statistics: &Statistics) -> Vec<Chosen> {
    let plan = &findings.plan;
    if !plan.choose_dose {
        return Vec::new();
    }
    let mut all = Vec::new();
    for unlearned in plan.unlearned() {
        let limits = findings.place(unlearned, Precision::Full).map(|place| statistics.arms[place].means);
        let enough = |precision: Precision| {
            RECOVERED.iter().enumerate().all(|(metric, (_, field))| {
                let value = findings.arm(unlearned, precision).and_then(|arm| field(arm).value.value());
                let limit = limits.and_then(|means| means[metric]);
                value.zip(limit).is_some_and(|(value, [_, high])| value <= high)
            })
        };
        for &precision in plan.precisions.iter().filter(|precision| precision.rounding() == Rounding::Nearest)
        {
            let same =
                |other: &Precision| other.plain() == precision && findings.arm(unlearned, *other).is_some();
            let shares = plan.precisions.iter().copied().filter(same);
            let mut shares: Vec<_> = shares
                .filter_map(|other| match other.rounding() {
                    Rounding::Kept(share) => Some((share, other)),
                    _ => None,
                })
                .collect();
            shares.sort_unstable();
            if !shares.is_empty() {
                let dose = shares.into_iter().map(|(_, other)| other).find(|other| enough(*other));
                all.push(Chosen { unlearned, precision, dose });
            }
        }
    }
    all
}
