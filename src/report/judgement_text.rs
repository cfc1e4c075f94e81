//! How sure the figures are and what they amount to, as text.

use std::fmt::Write;

use super::divergence::{divergences, truths};
use super::grid::Grid;
use super::judgement::{Control, Curve, Point, Series};
use super::repair::repairs_text;
use super::schema::{Recovery, Report};
use super::style::{Meaning, Style, printable};
use super::table::{percent, percent_ci, rounded, short_metric, signed, with_half};

/// Everything after the table of arms.
pub(super) fn write_judgement(text: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let names = unlearned(report);
    let mut section = |title: &str, table: &str| {
        let title = style.prose(&printable(title));
        let title = if title.is_empty() { title } else { title + "\n" };
        writeln!(text, "\n{title}{table}")
    };
    for name in &names {
        section(&format!("What quantization brings back in {name}"), &recovery(report, name, style))?;
    }
    let judged = &report.statistics;
    if !names.is_empty() {
        let legend = format!(
            "[ ] 95 % interval   p back: of such figures if nothing came back   p held: if {} or more of the gap came back\n\
             (paired permutation tests, Holm-corrected over all rows)",
            percent(Some(judged.held_below))
        );
        section("", &style.legend(&legend))?;
    }
    if !report.repairs.is_empty() {
        let title = "Rounding that keeps the update: what it brings and what it costs";
        section(title, &repairs_text(report, style))?;
    }
    if !report.controls.is_empty() {
        let title = "Controls: what quantization alone does, in points";
        section(title, &controls(&report.controls, style))?;
    }
    if !report.arms.is_empty() {
        let title = "True answers, token by token: probability, exact memorization, extraction strength";
        section(title, &truths(report, style))?;
    }
    if !report.divergence.is_empty() {
        let title = "KL(unlearned || target), nats a token of the true answers: at full precision, of both quantized, and by \
            how much that\nbrings them closer; own: KL to the same model at full precision, on the forget set";
        section(title, &divergences(report, style))?;
    }
    for series in &report.series {
        section(&format!("Against {}", series.name), &curves(series, style))?;
    }
    if !report.verdicts.is_empty() {
        let title = format!(
            "Verdicts: more than {} of the gap to the target at the same precision is back, or less than {}",
            percent(Some(judged.resurrected_above)),
            percent(Some(judged.held_below))
        );
        section(&title, &verdicts(report, style))?;
    }
    let known = report.survival_rank_correlation.iter().filter_map(|found| {
        Some(format!(
            "{:.2} for {} ({} arms)",
            rounded(found.spearman?, 100.0),
            short_metric(&found.metric),
            found.n
        ))
    });
    let known: Vec<_> = known.collect();
    if !known.is_empty() {
        let title = "Rank correlation of an update's survival with what came back:";
        section(title, &style.prose(&format!("{}.", known.join(", "))))?;
    }
    Ok(())
}

/// Names of the unlearned models that recovery is known of, in order.
fn unlearned(report: &Report) -> Vec<&str> {
    let mut names: Vec<_> = report.recovery.iter().map(|recovery| recovery.unlearned.as_str()).collect();
    names.dedup();
    names
}

/// The three ratios of one unlearned model, with what supports them.
fn recovery(report: &Report, unlearned: &str, style: Style) -> String {
    let header = [
        "precision",
        "metric",
        "of gap to target ↓",
        "of gap, same precision ↓",
        "share, same precision ↓",
        "p back",
        "p held",
        "survival ↑",
    ];
    let mut table = Grid::new(style, &header.map(str::to_owned), 2);
    for recovery in report.recovery.iter().filter(|recovery| recovery.unlearned == unlearned) {
        let mut verdicts = report.verdicts.iter();
        let verdict = verdicts.find(|verdict| {
            (&verdict.unlearned, &verdict.precision) == (&recovery.unlearned, &recovery.precision)
        });
        let Recovery { precision, metric, p_recovered_holm, p_held_holm, survival, .. } = recovery;
        let ratios = [
            (recovery.of_gap_to_target, recovery.of_gap_to_target_ci95),
            (recovery.of_gap_to_target_same_precision, recovery.of_gap_to_target_same_precision_ci95),
            (recovery.share_of_target_same_precision, recovery.share_of_target_same_precision_ci95),
        ];
        let mut row = vec![precision.clone(), short_metric(metric).to_owned()];
        row.extend(ratios.map(|(ratio, ci95)| percent_ci(ratio, ci95)));
        row.extend([p_recovered_holm, p_held_holm].map(|p| p_value(*p)));
        row.push(survival.map_or_else(dash, |survival| format!("{:.2}", rounded(survival, 100.0))));
        table.add(&row);
        let ci95 = recovery.of_gap_to_target_same_precision_ci95;
        table.mark(3, amounts_to(ci95, verdict.map(|verdict| verdict.verdict.as_str()), report));
    }
    table.text()
}

/// What an interval of the share that verdicts look at amounts to; never more than the verdict itself, which takes tests too.
fn amounts_to(ci95: Option<[f64; 2]>, verdict: Option<&str>, report: &Report) -> Meaning {
    let judged = &report.statistics;
    match ci95 {
        Some(_) if verdict == Some("void") => Meaning::Faint,
        Some(_) if verdict == Some("inconclusive") => Meaning::Unsure,
        Some([low, _]) if low > judged.resurrected_above => Meaning::Bad,
        Some([_, high]) if high < judged.held_below => Meaning::Good,
        Some(_) => Meaning::Unsure,
        None => Meaning::Plain,
    }
}

/// A model and a precision a row, a metric a column.
fn controls(controls: &[Control], style: Style) -> String {
    let header = ["model", "precision", "VerbMem", "KnowMem", "KnowMem retain"];
    let mut table = Grid::new(style, &header.map(str::to_owned), 2);
    let same = |a: &Control, b: &Control| (&a.name, &a.precision) == (&b.name, &b.precision);
    for row in controls.chunk_by(same) {
        let mut cells = vec![row[0].name.clone(), row[0].precision.clone()];
        let metrics = ["verbmem_forget", "knowmem_forget", "knowmem_retain"];
        cells.extend(metrics.map(|metric| {
            let found = row.iter().find(|control| control.metric == metric);
            found.map_or_else(dash, |control| with_half(&signed(Some(control.change)), control.ci95))
        }));
        table.add(&cells);
    }
    table.text()
}

/// A metric and a precision a row, a step a column.
fn curves(series: &Series, style: Style) -> String {
    let mut header = vec!["metric".to_owned(), "precision".to_owned()];
    header.extend(series.steps.iter().map(|step| step.value.to_string()));
    let mut table = Grid::new(style, &header, 2);
    for Curve { metric, precision, points } in &series.curves {
        let mut row = vec![short_metric(metric).to_owned(), precision.clone()];
        let signs = metric == "privleak";
        row.extend(points.iter().map(|Point { value, ci95, .. }| match value {
            Some(value) if !signs => with_half(&format!("{:.1}", rounded(*value, 10.0)), *ci95),
            value => with_half(&signed(*value), *ci95),
        }));
        table.add(&row);
    }
    table.text()
}

fn verdicts(report: &Report, style: Style) -> String {
    let header = ["unlearned", "precision", "verdict", "because"];
    let mut table = Grid::new(style, &header.map(str::to_owned), 4);
    for verdict in &report.verdicts {
        let row = [&verdict.unlearned, &verdict.precision, &verdict.verdict.to_uppercase(), &verdict.because];
        table.add(&row.map(ToOwned::to_owned));
        table.mark(
            2,
            match verdict.verdict.as_str() {
                "resurrected" => Meaning::Bad,
                "held" => Meaning::Good,
                "inconclusive" => Meaning::Unsure,
                _ => Meaning::Faint,
            },
        );
    }
    table.text()
}

fn p_value(p: Option<f64>) -> String {
    match p {
        Some(p) if p < 0.001 => "<0.001".to_owned(),
        Some(p) => format!("{p:.3}"),
        None => dash(),
    }
}

fn dash() -> String {
    "-".to_owned()
}
