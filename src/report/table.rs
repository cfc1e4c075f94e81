//! The result for people.

use std::fmt::Write;

use super::grid::Grid;
use super::judgement_text::write_judgement;
use super::schema::{Arm, Metric, Report};
use super::style::{Meaning, Style, printable};

/// The report as tables, the verdicts last.
#[must_use]
pub fn report_text(report: &Report, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, report, style);
    text
}

fn write_report(text: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    writeln!(text, "{}", arms(report, style))?;
    writeln!(text)?;
    let words = "↓ less is better forgotten   ↑ more is better kept   →0 nearer to 0 betrays less   ± half the 95 % interval";
    writeln!(text, "{}", style.legend(words))?;
    if let Some(arm) = report.arms.first() {
        let [verbatim, forget, retain] = counts(arm);
        let texts = arm.metrics.privleak.n;
        let measured = format!(
            "Measured on {verbatim} continuations, {forget} and {retain} questions, {texts} texts for each row."
        );
        writeln!(text, "{}", style.prose(&measured))?;
    }
    let truncated = report.plan.truncated_per_arm;
    if truncated > 0 {
        let cut = format!("{truncated} prompts for each row were longer than the context and were cut.");
        writeln!(text, "{}", style.prose(&cut))?;
    }
    write_judgement(text, report, style)?;
    if let (false, Some(stopped)) = (report.complete, &report.stopped) {
        let incomplete = style.prose(&printable(&format!("Incomplete: the run ended early ({stopped}).")));
        writeln!(text, "\n{}", style.paint(Meaning::Bad, &incomplete))?;
    }
    Ok(())
}

/// Examples behind the three means.
fn counts(arm: &Arm) -> [usize; 3] {
    let metrics = &arm.metrics;
    [metrics.verbmem_forget.n, metrics.knowmem_forget.n, metrics.knowmem_retain.n]
}

/// Every arm with its metrics.
fn arms(report: &Report, style: Style) -> String {
    let references: Vec<_> = report.arms.first().map_or_else(Vec::new, |arm| {
        let leak = &arm.metrics.privleak;
        std::iter::once(&leak.reference).chain(leak.others.iter().map(|other| &other.reference)).collect()
    });
    let mut header = vec!["model".to_owned(), "role".to_owned(), "precision".to_owned()];
    header.extend(["VerbMem ↓", "KnowMem ↓", "KnowMem retain ↑"].map(str::to_owned));
    header.extend(references.iter().map(|reference| format!("PrivLeak →0 (to {reference})")));
    let mut table = Grid::new(style, &header, 3);
    for arm in &report.arms {
        let metrics = &arm.metrics;
        let mean = |metric: &Metric| with_half(&number(metric.value), metric.ci95);
        let mut row = vec![arm.name.clone(), arm.role.clone(), precision(arm)];
        row.extend([&metrics.verbmem_forget, &metrics.knowmem_forget, &metrics.knowmem_retain].map(mean));
        let leak = &metrics.privleak;
        row.push(with_half(&signed(leak.value), leak.ci95));
        row.extend(leak.others.iter().map(|other| with_half(&signed(other.value), other.ci95)));
        table.add(&row);
    }
    table.text()
}

/// The precision, with the dtype where `fp16` is another one.
fn precision(arm: &Arm) -> String {
    match (arm.precision.as_str(), arm.scheme.as_str()) {
        ("fp16", "f16") => "fp16".to_owned(),
        ("fp16", stored) => format!("fp16 ({stored})"),
        (other, _) => other.to_owned(),
    }
}

/// A metric's name in text.
pub(super) fn short_metric(metric: &str) -> &str {
    match metric {
        "verbmem_forget" => "VerbMem",
        "knowmem_forget" => "KnowMem",
        "knowmem_retain" => "KnowMem retain",
        "privleak" => "PrivLeak",
        "closer_forget" => "the share by which KL to the target shrinks",
        other => other,
    }
}

/// One decimal, or a dash.
pub(super) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", rounded(value, 10.0)))
}

/// A number with half the width of its interval.
pub(super) fn with_half(number: &str, ci95: Option<[f64; 2]>) -> String {
    match ci95 {
        Some([low, high]) => format!("{number} ± {:.1}", rounded((high - low) / 2.0, 10.0)),
        None => number.to_owned(),
    }
}

/// One decimal with its sign, or a dash.
pub(super) fn signed(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:+.1}", rounded(value, 10.0)))
}

/// A ratio as a percentage, or a dash.
pub(super) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.0} %", rounded(100.0 * ratio, 1.0)))
}

/// A ratio as a percentage with its interval, `97 % [94, 100]`, or a dash.
pub(super) fn percent_ci(ratio: Option<f64>, ci95: Option<[f64; 2]>) -> String {
    match ci95 {
        Some(ends) => {
            let [low, high] = ends.map(|end| rounded(100.0 * end, 1.0));
            format!("{} [{low:.0}, {high:.0}]", percent(ratio))
        }
        None => percent(ratio),
    }
}

/// `value` rounded to `1 / steps`, and never -0.
pub(super) fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps + 0.0
}
