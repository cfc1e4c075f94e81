//! Every figure of a record on a row of its own.

use super::{cell, table};
use crate::report::schema::{Arm, Metric, Recovery, Report};

const HEADER: [&str; 11] = [
    "model",
    "role",
    "precision",
    "scheme",
    "metric",
    "value",
    "ci95_low",
    "ci95_high",
    "n",
    "n_asked",
    "reason",
];

/// The arms' figures, then what quantization brought back; scales are the record's (metrics x100, ratios plain).
pub(super) fn text(report: &Report) -> String {
    let arms = report.arms.iter().flat_map(arm_rows);
    let recovery = report.recovery.iter().flat_map(|row| recovery_rows(report, row));
    table(HEADER, arms.chain(recovery))
}

/// A figure, and what it is of.
struct Figure<'a> {
    metric: String,
    value: Option<f64>,
    ci95: Option<[f64; 2]>,
    n: [usize; 2],
    reason: Option<&'a str>,
}

impl Figure<'_> {
    fn row(self, [model, role, precision, scheme]: [&str; 4]) -> [String; 11] {
        let [low, high] = self.ci95.map_or([None; 2], |ends| ends.map(Some));
        let [n, n_asked] = self.n.map(|n| n.to_string());
        let [model, role, precision, scheme] = [model, role, precision, scheme].map(str::to_owned);
        let reason = self.reason.unwrap_or_default().to_owned();
        [
            model,
            role,
            precision,
            scheme,
            self.metric,
            cell(self.value),
            cell(low),
            cell(high),
            n,
            n_asked,
            reason,
        ]
    }
}

fn arm_rows(arm: &Arm) -> Vec<[String; 11]> {
    let metrics = &arm.metrics;
    let mut figures = Vec::new();
    for (name, metric) in [
        ("verbmem_forget", &metrics.verbmem_forget),
        ("knowmem_forget", &metrics.knowmem_forget),
        ("knowmem_retain", &metrics.knowmem_retain),
    ] {
        figures.push(mean(name.to_owned(), metric));
        if let Some(truth) = &metric.truth {
            for (part, metric) in [
                ("probability", &truth.probability),
                ("exact_memorization", &truth.exact_memorization),
                ("extraction_strength", &truth.extraction_strength),
            ] {
                figures.push(mean(format!("{name}.{part}"), metric));
            }
        }
    }
    let leak = &metrics.privleak;
    let n = [leak.n, leak.n_asked];
    let reason = leak.reason.as_deref();
    for (metric, value, ci95) in [
        ("privleak", leak.value, leak.ci95),
        ("auc", leak.auc, None),
        ("reference_auc", leak.reference_auc, None),
    ] {
        let reason = reason.filter(|_| value.is_none());
        figures.push(Figure { metric: metric.to_owned(), value, ci95, n, reason });
    }
    let of = [arm.name.as_str(), &arm.role, &arm.precision, &arm.scheme];
    figures.into_iter().map(|figure| figure.row(of)).collect()
}

fn mean(name: String, metric: &Metric) -> Figure<'_> {
    Figure {
        metric: name,
        value: metric.value,
        ci95: metric.ci95,
        n: [metric.n, metric.n_asked],
        reason: metric.reason.as_deref(),
    }
}

fn recovery_rows(report: &Report, row: &Recovery) -> Vec<[String; 11]> {
    let arm = report.arms.iter().find(|arm| arm.name == row.unlearned && arm.precision == row.precision);
    let scheme = arm.map_or("", |arm| &arm.scheme);
    let of = [row.unlearned.as_str(), "unlearned", &row.precision, scheme];
    let figures = [
        ("of_gap_to_target", row.of_gap_to_target, row.of_gap_to_target_ci95),
        (
            "of_gap_to_target_same_precision",
            row.of_gap_to_target_same_precision,
            row.of_gap_to_target_same_precision_ci95,
        ),
        (
            "share_of_target_same_precision",
            row.share_of_target_same_precision,
            row.share_of_target_same_precision_ci95,
        ),
    ];
    let figures = figures.map(|(name, value, ci95)| {
        // One text names all ratios that lack something.
        let begins = format!("{name}: ");
        let reasons = row.reason.iter().flat_map(|reason| reason.split("; "));
        let reason = reasons.filter_map(|reason| reason.strip_prefix(begins.as_str())).next();
        let metric = format!("recovery.{}.{name}", row.metric);
        Figure { metric, value, ci95, n: [row.n, row.n_asked], reason }
    });
    figures.map(|figure| figure.row(of)).into()
}
