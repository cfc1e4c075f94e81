//! The result for people.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, presets};

use super::schema::{Arm, Device, Devices, Metric, Recovery, Report};

/// Where a text goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A terminal: tables fit its width and have a line under the header.
    Terminal,
    /// A pipe or a file: tables as wide as they are, blanks between the columns, no other character.
    Plain,
}

/// The report as tables, then one sentence for each unlearned model.
#[must_use]
pub fn report_text(report: &Report, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, report, style);
    text
}

fn write_report(text: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    writeln!(text, "{}", arms(report, style).trim_fmt())?;
    writeln!(text)?;
    writeln!(text, "↓ less is better forgotten   ↑ more is better kept   →0 nearer to 0 betrays less")?;
    if let Some(arm) = report.arms.first() {
        let [verbatim, forget, retain] = counts(arm);
        let texts = arm.metrics.privleak.n;
        writeln!(
            text,
            "Measured on {verbatim} continuations, {forget} and {retain} questions, {texts} texts for each row."
        )?;
    }
    let truncated = report.plan.truncated_per_arm;
    if truncated > 0 {
        writeln!(text, "{truncated} prompts for each row were longer than the context and were cut.")?;
    }
    for unlearned in unlearned(report) {
        let table = recovery(report, unlearned, style).trim_fmt();
        writeln!(text, "\nWhat quantization brings back in {unlearned}\n{table}")?;
    }
    let sentences: Vec<_> = unlearned(report).into_iter().map(|name| sentence(report, name)).collect();
    if !sentences.is_empty() {
        writeln!(text, "\n{}", sentences.join("\n"))?;
    }
    if let (false, Some(stopped)) = (report.complete, &report.stopped) {
        writeln!(text, "\nIncomplete: the run ended early ({stopped}).")?;
    }
    Ok(())
}

/// Examples behind the three means.
fn counts(arm: &Arm) -> [usize; 3] {
    let metrics = &arm.metrics;
    [metrics.verbmem_forget.n, metrics.knowmem_forget.n, metrics.knowmem_retain.n]
}

/// Names of the unlearned models that recovery is known of, in order.
fn unlearned(report: &Report) -> Vec<&str> {
    let mut names: Vec<_> = report.recovery.iter().map(|recovery| recovery.unlearned.as_str()).collect();
    names.dedup();
    names
}

/// Every arm with its metrics.
fn arms(report: &Report, style: Style) -> Table {
    let references: Vec<_> = report.arms.first().map_or_else(Vec::new, |arm| {
        let leak = &arm.metrics.privleak;
        std::iter::once(&leak.reference).chain(leak.others.iter().map(|other| &other.reference)).collect()
    });
    let mut header = vec!["model".to_owned(), "role".to_owned(), "precision".to_owned()];
    header.extend(["VerbMem ↓", "KnowMem ↓", "KnowMem retain ↑"].map(str::to_owned));
    header.extend(references.iter().map(|reference| format!("PrivLeak →0 (to {reference})")));
    let mut table = table(style, &header, 3);
    for arm in &report.arms {
        let metrics = &arm.metrics;
        let mean = |metric: &Metric| number(metric.value);
        let mut row = vec![arm.name.clone(), arm.role.clone(), precision(arm)];
        row.extend([&metrics.verbmem_forget, &metrics.knowmem_forget, &metrics.knowmem_retain].map(mean));
        row.push(signed(metrics.privleak.value));
        row.extend(metrics.privleak.others.iter().map(|other| signed(other.value)));
        add(&mut table, &row, 3);
    }
    table
}

/// The precision, with the dtype where `fp16` is another one.
fn precision(arm: &Arm) -> String {
    match (arm.precision.as_str(), arm.scheme.as_str()) {
        ("fp16", "f16") => "fp16".to_owned(),
        ("fp16", stored) => format!("fp16 ({stored})"),
        (other, _) => other.to_owned(),
    }
}

/// The three ratios of one unlearned model.
fn recovery(report: &Report, unlearned: &str, style: Style) -> Table {
    let header = [
        "precision",
        "metric",
        "of the gap to target",
        "of the gap to target, same precision",
        "share of target, same precision",
    ];
    let mut table = table(style, &header.map(str::to_owned), 2);
    for recovery in report.recovery.iter().filter(|recovery| recovery.unlearned == unlearned) {
        let metric = match recovery.metric.as_str() {
            "verbmem_forget" => "VerbMem",
            "knowmem_forget" => "KnowMem",
            other => other,
        };
        let ratios = [
            recovery.of_gap_to_target,
            recovery.of_gap_to_target_same_precision,
            recovery.share_of_target_same_precision,
        ];
        let mut row = vec![recovery.precision.clone(), metric.to_owned()];
        row.extend(ratios.map(percent));
        add(&mut table, &row, 2);
    }
    table
}

/// What one unlearned model's figures say, the most first.
fn sentence(report: &Report, unlearned: &str) -> String {
    let of_model =
        |recovery: &&Recovery| recovery.unlearned == unlearned && recovery.metric == "knowmem_forget";
    let mut recoveries: Vec<_> = report.recovery.iter().filter(of_model).collect();
    let ratio = |recovery: &Recovery| recovery.of_gap_to_target.unwrap_or(f64::NEG_INFINITY);
    recoveries.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
    let mut parts = Vec::new();
    for recovery in recoveries {
        let Recovery { precision, of_gap_to_target, reason, .. } = recovery;
        parts.push(match of_gap_to_target {
            Some(_) if parts.is_empty() => format!(
                "{precision} brings back {} of the forgotten knowledge (KnowMem, gap to the target at full precision)",
                percent(*of_gap_to_target)
            ),
            Some(_) => format!("{precision} brings back {}", percent(*of_gap_to_target)),
            None => {
                let reason = reason.as_deref().unwrap_or_default();
                let reason = reason.split("; ").next().unwrap_or_default();
                format!("{precision} has no figure ({})", reason.trim_start_matches("of_gap_to_target: "))
            }
        });
    }
    format!("{unlearned}: {}.", parts.join("; "))
}

/// The adapters of this machine.
#[must_use]
pub fn devices_text(devices: &Devices, style: Style) -> String {
    let header = ["index", "name", "backend", "type", "driver", "f16", "subgroups"];
    let mut table = table(style, &header.map(str::to_owned), header.len());
    for device in &devices.devices {
        let Device { index, name, backend, kind, driver, f16, subgroups: [least, most] } = device;
        let subgroups = match (least, most) {
            (0, 0) => "no".to_owned(),
            (least, most) if least == most => least.to_string(),
            (least, most) => format!("{least} to {most}"),
        };
        let index = index.map_or_else(|| "cpu".to_owned(), |index| index.to_string());
        let f16 = if *f16 { "yes" } else { "no" };
        let row = [&index, name, backend, kind, driver, f16, &subgroups].map(str::to_owned);
        add(&mut table, &row, header.len());
    }
    format!("{}\n", table.trim_fmt())
}

/// A table whose first `texts` columns are text and the others numbers.
pub(super) fn table(style: Style, header: &[String], texts: usize) -> Table {
    let mut table = Table::new();
    match style {
        Style::Terminal => {
            table.load_style(presets::UTF8_NO_BORDERS.row_separator(LineStyle::none()));
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        Style::Plain => {
            table.load_style(presets::NOTHING);
            table.set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
        }
    }
    table.set_header(header.iter().enumerate().map(|(column, text)| cell(text, column >= texts)));
    table
}

pub(super) fn add(table: &mut Table, row: &[String], texts: usize) {
    table.add_row(row.iter().enumerate().map(|(column, text)| cell(text, column >= texts)));
}

fn cell(text: &str, is_number: bool) -> Cell {
    let alignment = if is_number { CellAlignment::Right } else { CellAlignment::Left };
    Cell::new(text).set_alignment(alignment)
}

/// One decimal, or a dash.
fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", rounded(value, 10.0)))
}

/// One decimal with its sign, or a dash.
fn signed(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:+.1}", rounded(value, 10.0)))
}

/// A ratio as a percentage, or a dash.
pub(super) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.0} %", rounded(100.0 * ratio, 1.0)))
}

/// `value` rounded to `1 / steps`, and never -0.
pub(super) fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps + 0.0
}
