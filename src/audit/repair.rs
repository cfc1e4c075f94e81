//! What roundings that keep the update, and released files, change against nearest rounding and against full precision; and
//! the dose that is enough.

use super::findings::{Findings, RECOVERED};
use super::statistics::{Estimate, Statistics};
use crate::quant::Precision;

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

/// The dose that was chosen for an unlearned model and a scheme, of those of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Index in [`Plan::models`](super::Plan::models).
    pub unlearned: usize,
    /// The scheme in nearest rounding.
    pub precision: Precision,
    /// Whether the doses are those of released files; else they are arms in kept rounding.
    pub released: bool,
    /// The one with the smallest share at which both forget metrics are no higher than the upper ends of the intervals of the
    /// model at full precision; `None` if no dose reaches that.
    pub dose: Option<Precision>,
}

/// Chooses doses, by model, then by scheme, if the plan asks for it: of kept rounding, and of released files that say what they
/// keep. Where none was measured there is no choice.
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
        let nearest = plan.precisions.iter().copied().filter(|precision| *precision == precision.plain());
        for (precision, released) in nearest.flat_map(|precision| [(precision, false), (precision, true)]) {
            let doses = plan.precisions.iter().copied().filter(|other| {
                other.plain() == precision
                    && matches!(other, Precision::Released(..)) == released
                    && findings.arm(unlearned, *other).is_some()
            });
            let mut doses: Vec<_> =
                doses.filter_map(|other| Some((plan.share_of(unlearned, other)?, other))).collect();
            doses.sort_unstable();
            if !doses.is_empty() {
                let dose = doses.into_iter().map(|(_, other)| other).find(|other| enough(*other));
                all.push(Chosen { unlearned, precision, released, dose });
            }
        }
    }
    all
}
