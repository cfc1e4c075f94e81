//! What sets the arms of an audit apart, in its record and as text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::judgement::Estimate;
use super::schema::{Arm, Report};
use super::style::Style;
use super::table::{percent_ci, rounded};
use crate::audit::{self, Findings};

/// How far an unlearned model is from the target on the true answers, at full precision and quantized. If quantization
/// resurrects, the quantized pair comes together on the forget set. KL in nats a token, shares in 0..=1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// `forget` or `retain`.
    pub set: String,
    /// The unlearned checkpoint's name.
    pub unlearned: String,
    /// The precision that is held against full precision.
    pub precision: String,
    /// KL(unlearned || target), both at full precision.
    pub to_target_full: Estimate,
    /// KL(unlearned || target), both at this precision.
    pub to_target: Estimate,
    /// `1 - to_target / to_target_full`; `null` if the models do not differ at full precision.
    pub closer: Option<Estimate>,
    /// KL(unlearned at full precision || at this precision).
    pub to_own_full: Estimate,
    /// The same of the target: what quantization alone does.
    pub target_to_own_full: Estimate,
    /// Share of tokens at which unlearned and target at this precision find the same one likeliest.
    pub same_top: Estimate,
    /// The same at full precision.
    pub same_top_full: Estimate,
    /// Answers, which are what is resampled.
    pub n: usize,
    /// Their tokens.
    pub positions: usize,
}

/// The rows of a record.
pub(super) fn rows(findings: &Findings, rows: &[audit::FourWay]) -> Vec<Divergence> {
    let row = |row: &audit::FourWay| Divergence {
        set: row.set.name().to_owned(),
        unlearned: findings.plan.models[row.unlearned].name.clone(),
        precision: row.precision.to_string(),
        to_target_full: row.to_target_full.into(),
        to_target: row.to_target.into(),
        closer: row.closer.map(Into::into),
        to_own_full: row.to_own_full.into(),
        target_to_own_full: row.target_to_own_full.into(),
        same_top: row.same_top.into(),
        same_top_full: row.same_top_full.into(),
        n: row.n,
        positions: row.positions,
    };
    rows.iter().map(row).collect()
}

/// The rows as a table, the sets side by side.
pub(super) fn divergences(report: &Report, style: Style) -> String {
    let mut header = vec!["unlearned".to_owned(), "precision".to_owned()];
    for set in ["forget", "retain"] {
        header.extend([format!("{set}: fp16"), "both".to_owned(), "closer".to_owned()]);
    }
    header.extend(["own", "target's own"].map(str::to_owned));
    let mut table = Grid::new(style, &header, 2);
    let rows = |set: &'static str| report.divergence.iter().filter(move |row| row.set == set);
    let nats = |nats: &Estimate| format!("{:.3}", rounded(nats.value, 1000.0));
    for forget in rows("forget") {
        let retain = rows("retain")
            .find(|row| (&row.unlearned, &row.precision) == (&forget.unlearned, &forget.precision));
        let mut row = vec![forget.unlearned.clone(), forget.precision.clone()];
        for set in [Some(forget), retain] {
            row.extend(set.map_or_else(
                || ["-", "-", "-"].map(str::to_owned),
                |set| [nats(&set.to_target_full), nats(&set.to_target), share(set.closer.as_ref())],
            ));
        }
        row.extend([&forget.to_own_full, &forget.target_to_own_full].map(nats));
        table.add(&row);
    }
    table.text()
}

fn share(share: Option<&Estimate>) -> String {
    percent_ci(share.map(|share| share.value), share.and_then(|share| share.ci95))
}

/// How well every arm knows the true answers.
pub(super) fn truths(report: &Report, style: Style) -> String {
    let mut header = vec!["model".to_owned(), "precision".to_owned()];
    // As the columns of the sets above: the first names the set.
    for set in ["VerbMem", "KnowMem"] {
        header.extend([format!("{set} p ↓"), "exact ↓".to_owned(), "extract ↓".to_owned()]);
    }
    header.push("retain p ↑".to_owned());
    let mut table = Grid::new(style, &header, 2);
    let number = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", rounded(value, 10.0)))
    };
    for Arm { name, precision, metrics, .. } in &report.arms {
        let mut row = vec![name.clone(), precision.clone()];
        for metric in [&metrics.verbmem_forget, &metrics.knowmem_forget] {
            let truth = metric.truth.as_ref();
            row.push(number(truth.and_then(|truth| truth.probability.value)));
            row.push(number(truth.and_then(|truth| truth.exact_memorization.value)));
            row.push(number(truth.and_then(|truth| truth.extraction_strength.value)));
        }
        row.push(number(metrics.knowmem_retain.truth.as_ref().and_then(|truth| truth.probability.value)));
        table.add(&row);
    }
    table.text()
}
