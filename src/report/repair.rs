//! Roundings that keep the update beside nearest rounding: in the record, and as text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::judgement::Estimate;
use super::schema::Report;
use super::style::Style;
use super::table::{rounded, signed, with_half};
use crate::audit::{self, Findings, GOOD_ENOUGH, Statistics};
use crate::quant::Rounding;

/// [`Repair::rounding`] of an arm in kept rounding.
pub(super) const KEPT: &str = "kept";

/// [`Repair::rounding`] of a released file.
pub(super) const RELEASED: &str = "released";

/// One unlearned checkpoint in one rounding that is not the nearest, or a released file of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Repair {
    /// The checkpoint's name.
    pub unlearned: String,
    /// Scheme and rounding, such as `int4-g128+keep=0.9`.
    pub precision: String,
    /// The same scheme in nearest rounding.
    pub nearest: String,
    /// `kept`, `aligned`, `stochastic`, or `released` where a file's own weights were asked.
    pub rounding: String,
    /// The share of the update that was to be kept, by kept rounding or by what a released file's record says.
    pub keep: Option<f64>,
    /// A released file's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What survives of the update; `null` if the weights were not looked at.
    pub survival: Option<f64>,
    /// The same in nearest rounding.
    pub survival_nearest: Option<f64>,
    /// Codes that are not the nearest.
    pub moved: Option<u64>,
    /// Of how many.
    pub weights: Option<u64>,
    /// Nearest rounding keeps so much of the update that nothing needs repair.
    pub nothing_to_repair: bool,
    /// `--keep auto` chose this share.
    pub chosen: bool,
    /// VerbMem forget, KnowMem forget, KnowMem retain.
    pub changes: Vec<MetricChange>,
}

/// How a metric differs, x100, paired by example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricChange {
    /// The metric.
    pub metric: String,
    /// From nearest rounding.
    pub from_nearest: Option<Estimate>,
    /// From the model at full precision.
    pub from_full: Option<Estimate>,
}

/// What `--keep auto` chose for an unlearned checkpoint and a scheme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chosen {
    /// The checkpoint's name.
    pub unlearned: String,
    /// The scheme.
    pub nearest: String,
    /// Whether it is one of several released files; else it is a share of kept rounding.
    #[serde(default)]
    pub released: bool,
    /// What is enough; `null` if no share that was run is.
    pub precision: Option<String>,
}

pub(super) fn chosen(findings: &Findings, statistics: &Statistics) -> Vec<Chosen> {
    let chosen = |chosen: audit::Chosen| Chosen {
        unlearned: findings.plan.models[chosen.unlearned].name.clone(),
        nearest: chosen.precision.to_string(),
        released: chosen.released,
        precision: chosen.dose.map(|dose| dose.to_string()),
    };
    audit::chosen_doses(findings, statistics).into_iter().map(chosen).collect()
}

pub(super) fn repairs(findings: &Findings, statistics: &Statistics) -> Vec<Repair> {
    let doses = audit::chosen_doses(findings, statistics);
    let repair = |repaired: &audit::Repaired| {
        let audit::Repaired { unlearned, precision, changes } = repaired;
        let own = findings.survival(*unlearned, *precision);
        let value = |survival: Option<&audit::Survival>| survival.and_then(|survival| survival.value.value());
        let nearest = value(findings.survival(*unlearned, precision.plain()));
        let moved = own.and_then(|own| own.moved);
        let rounding = match precision.rounding() {
            // Arms in nearest rounding need no repair: what is here without another rounding is a file's.
            Rounding::Nearest => RELEASED,
            Rounding::Kept(_) => KEPT,
            Rounding::Aligned => "aligned",
            Rounding::Stochastic(_) => "stochastic",
        };
        let plan = &findings.plan;
        let is_own =
            |chosen: &audit::Chosen| chosen.unlearned == *unlearned && chosen.dose == Some(*precision);
        let change = |change: &audit::MetricChange| MetricChange {
            metric: change.metric.to_owned(),
            from_nearest: change.from_nearest.map(Into::into),
            from_full: change.from_full.map(Into::into),
        };
        Repair {
            unlearned: plan.models[*unlearned].name.clone(),
            precision: precision.to_string(),
            nearest: precision.plain().to_string(),
            rounding: rounding.to_owned(),
            // The digits that the user gave.
            keep: plan.share_of(*unlearned, *precision).and_then(|share| share.to_string().parse().ok()),
            path: (rounding == RELEASED).then(|| plan.path_of(*unlearned, *precision).display().to_string()),
            survival: value(own),
            survival_nearest: nearest,
            moved: moved.map(|(moved, _)| moved),
            weights: moved.map(|(_, weights)| weights),
            nothing_to_repair: nearest.is_some_and(|nearest| nearest > GOOD_ENOUGH),
            chosen: doses.iter().any(is_own),
            changes: changes.iter().map(change).collect(),
        }
    };
    statistics.repaired.iter().map(repair).collect()
}

/// What the forget metrics and the retain metric do under each rounding.
pub(super) fn repairs_text(report: &Report, style: Style) -> String {
    let header = [
        "unlearned",
        "rounding",
        "survival ↑",
        "codes moved",
        "VerbMem ↓",
        "KnowMem ↓",
        "KnowMem retain ↑",
        "retain, from fp16",
        "retain, from nearest",
    ];
    let mut table = Grid::new(style, &header.map(str::to_owned), 2);
    let mut row = |name: &str, precision: &str, survival: Option<f64>, repair: Option<&Repair>| {
        let Some(arm) = report.arms.iter().find(|arm| arm.name == name && arm.precision == precision) else {
            return;
        };
        let number = |value: Option<f64>, scale: f64, decimals: usize| {
            value.map_or_else(dash, |value| format!("{:.decimals$}", rounded(value, scale)))
        };
        let moved = repair.and_then(|repair| Some((repair.moved?, repair.weights?)));
        let mut cells = vec![
            name.to_owned(),
            precision.to_owned(),
            number(survival, 100.0, 2),
            moved.map_or_else(dash, |(moved, weights)| {
                format!("{:.2} %", 100.0 * moved as f64 / weights.max(1) as f64)
            }),
        ];
        let metrics = [&arm.metrics.verbmem_forget, &arm.metrics.knowmem_forget, &arm.metrics.knowmem_retain];
        cells.extend(metrics.map(|metric| with_half(&number(metric.value, 10.0, 1), metric.ci95)));
        let retain = repair.and_then(|repair| repair.changes.last());
        let change = |change: Option<Estimate>| {
            change.map_or_else(dash, |change| with_half(&signed(Some(change.value)), change.ci95))
        };
        cells.push(change(retain.and_then(|retain| retain.from_full)));
        cells.push(change(retain.and_then(|retain| retain.from_nearest)));
        table.add(&cells);
    };
    let mut before: Option<&Repair> = None;
    for repair in &report.repairs {
        if before
            .is_none_or(|before| (&before.unlearned, &before.nearest) != (&repair.unlearned, &repair.nearest))
        {
            row(&repair.unlearned, &repair.nearest, repair.survival_nearest, None);
        }
        row(&repair.unlearned, &repair.precision, repair.survival, Some(repair));
        before = Some(repair);
    }
    let mut text = table.text();
    for sentence in sentences(report) {
        text += &format!("\n{}", style.prose(&sentence));
    }
    text
}

/// What there is to say of the repairs as a whole.
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let mut sentences = Vec::new();
    for Chosen { unlearned, nearest, released, precision } in &report.chosen_doses {
        let of_file = |precision: &str| {
            let mut repairs = report.repairs.iter();
            let own = repairs.find(|repair| repair.unlearned == *unlearned && repair.precision == *precision);
            let said = own.and_then(|own| Some(format!(" (keep={}, {})", own.keep?, own.path.as_ref()?)));
            said.unwrap_or_default()
        };
        sentences.push(match (precision, released) {
            (Some(precision), _) => format!(
                "{unlearned}: {precision}{} has the smallest share whose forget metrics are within the intervals of fp16.",
                of_file(precision)
            ),
            (None, false) => format!("{unlearned}: no share of {nearest} that was run forgets as fp16 does."),
            (None, true) => format!("{unlearned}: no released file in {nearest} forgets as fp16 does."),
        });
    }
    let mut good = Vec::new();
    for repair in report.repairs.iter().filter(|repair| repair.nothing_to_repair) {
        let sentence = format!(
            "{}: nothing needs repair at {}: nearest rounding keeps {:.2} of the update.",
            repair.unlearned,
            repair.nearest,
            rounded(repair.survival_nearest.unwrap_or_default(), 100.0)
        );
        if !good.contains(&sentence) {
            good.push(sentence);
        }
    }
    sentences.extend(good);
    sentences
}

fn dash() -> String {
    "-".to_owned()
}
