//! Sections that open with pictures.

use super::chart::{Chart, Line, Mark};
use super::svg::domain;
use super::table::{Cell, Table, estimate, figure, metric, none, trimmed};
use super::{Badge, Figure, MEANS, Section, distinct, verdict_class};
use crate::quant::{Precision, Rounding};
use crate::report::divergence::Divergence;
use crate::report::judgement::{Curve, Estimate, Series};
use crate::report::schema::{Arm, Metric, Report};
use crate::report::table::short_metric;

/// Classes of lines that stand for models or precisions.
pub(super) const LINES: [&str; 6] = ["line0", "line1", "line2", "line3", "line4", "line5"];

/// One of an arm's means by its name.
pub(super) fn of<'a>(arm: &'a Arm, metric: &str) -> &'a Metric {
    match metric {
        "verbmem_forget" => &arm.metrics.verbmem_forget,
        "knowmem_forget" => &arm.metrics.knowmem_forget,
        _ => &arm.metrics.knowmem_retain,
    }
}

/// Whether a precision is in nearest rounding; the others have a section of their own. A name that this version does not
/// know is shown.
fn is_nearest(precision: &str) -> bool {
    precision.parse::<Precision>().map_or(true, |precision| precision.rounding() == Rounding::Nearest)
}

/// The picture that carries the verdict: each unlearned model between the target and the retrained model.
pub(super) fn what_came_back(report: &Report) -> Section {
    let section = Section::new("came-back", "What came back");
    let with_role = |role: &'static str| report.arms.iter().filter(move |arm| arm.role == role);
    let unlearned = distinct(with_role("unlearned").map(|arm| arm.name.as_str()));
    if unlearned.is_empty() {
        return section.say("No unlearned model was measured, so there is nothing to draw.");
    }
    let mut section = section.say(
        "A score on the forget set that stays down near the retrained model is forgotten; one that rises to the target when \
         quantized has come back. The retain set should stay up. Whiskers are 95 % intervals; marks have the colour of \
         the verdict at that precision.",
    );
    let precisions = report.arms.iter().map(|arm| arm.precision.as_str());
    let precisions = distinct(precisions.filter(|precision| is_nearest(precision)));
    for (index, name) in unlearned.iter().enumerate() {
        let models = [("target", None), ("unlearned", Some(*name)), ("retrain", None)];
        let models: Vec<_> = models
            .into_iter()
            .filter_map(|(role, name)| {
                let name = name.or_else(|| with_role(role).next().map(|arm| arm.name.as_str()))?;
                Some((role, name))
            })
            .collect();
        section.figures.push(small_multiple(report, index, name, &models, &precisions));
    }
    section
}

fn small_multiple(
    report: &Report,
    index: usize,
    name: &str,
    models: &[(&'static str, &str)],
    precisions: &[&str],
) -> Figure {
    let verdicts = || report.verdicts.iter().filter(|verdict| verdict.unlearned == name);
    let arm = |role: &str, name: &str, precision: &str| {
        report.arms.iter().find(|arm| (&*arm.role, &*arm.name, &*arm.precision) == (role, name, precision))
    };
    let class = |role: &str, precision: &str| {
        let verdict = verdicts().find(|verdict| role == "unlearned" && verdict.precision == precision);
        verdict.map_or("", |verdict| verdict_class(&verdict.verdict)).to_owned()
    };
    let chart = |(metric, title): (&str, &str)| {
        let line = |&(role, name): &(&'static str, &str)| {
            let mark = |precision: &&str| {
                let Metric { value, ci95, .. } = of(arm(role, name, precision)?, metric);
                Some(Mark { value: (*value)?, ci95: *ci95, class: class(role, precision) })
            };
            let marks = precisions.iter().map(mark).collect();
            Line {
                label: role.to_owned(),
                class: role,
                marks,
                prominent: role == "unlearned",
                bridges: false,
            }
        };
        let better =
            if metric == "knowmem_retain" { "more is better kept" } else { "less is better forgotten" };
        Chart {
            id: format!("model{index}-{metric}"),
            title: title.to_owned(),
            about: format!("{title}, of {name}: scores from 0 to 100 by precision; {better}."),
            places: precisions.iter().enumerate().map(|(x, name)| (x as f64, (*name).to_owned())).collect(),
            domain: [0.0, 100.0],
            decimals: 1,
            lines: models.iter().map(line).collect(),
        }
    };
    let (charts, empty): (Vec<_>, Vec<_>) = MEANS.map(chart).into_iter().partition(|chart| !chart.is_empty());
    let gaps = empty.iter().map(|chart| format!("{}: no model has a score.", chart.title)).collect();

    let columns = ["model", "role", "precision", "VerbMem ↓", "KnowMem ↓", "KnowMem retain ↑"];
    let mut numbers = Table::new(format!("The numbers: {name}"), 3, columns).folded();
    for (role, name) in models {
        for arm in precisions.iter().filter_map(|precision| arm(role, name, precision)) {
            let texts = [&arm.name, &arm.role, &arm.precision].map(|text| Cell::from(text.as_str()));
            numbers.add(texts.into_iter().chain(MEANS.map(|(name, _)| metric(of(arm, name)))));
        }
    }
    let badge = |verdict: &crate::report::judgement::Verdict| Badge {
        on: verdict.precision.clone(),
        class: verdict_class(&verdict.verdict).to_owned(),
        word: verdict.verdict.clone(),
    };
    Figure { title: name.to_owned(), badges: verdicts().map(badge).collect(), charts, gaps, numbers }
}

/// The four-way picture: how far unlearned and target are from each other, before and after.
pub(super) fn divergence(report: &Report) -> Section {
    let section = Section::new("divergence", "Distance from the target, token by token");
    if report.divergence.is_empty() {
        return section.say(
            "The record has no distances between arms: it was made with --no-divergence, one arm at a time, by an older \
             version, or ended before.",
        );
    }
    let mut section = section.say(
        "KL(unlearned || target) in nats a token of the true answers, both at the same precision. If quantization \
         resurrects, the quantized pair comes together on the forget set.",
    );
    let sets = distinct(report.divergence.iter().map(|row| row.set.as_str()));
    let charts = sets.iter().enumerate().map(|(index, set)| distances(report, index, set));
    let charts = charts.filter(|chart| !chart.is_empty()).collect();
    let columns = [
        "unlearned",
        "precision",
        "set",
        "to target, full precision",
        "to target, both quantized",
        "closer by, %",
        "to itself unquantized",
        "target to itself unquantized",
        "same top token, %",
        "same, full precision, %",
        "answers",
        "tokens",
    ];
    let mut table = Table::new("KL in nats a token, with 95 % intervals", 3, columns).folded();
    for row in &report.divergence {
        let texts = [&row.unlearned, &row.precision, &row.set].map(|text| Cell::from(text.as_str()));
        let nats = |value: &Estimate| estimate(value, 1.0, 3);
        let closer = row.closer.as_ref();
        table.add(texts.into_iter().chain([
            nats(&row.to_target_full),
            nats(&row.to_target),
            closer.map_or_else(
                || none(Some("no distance at full precision")),
                |closer| estimate(closer, 100.0, 0),
            ),
            nats(&row.to_own_full),
            nats(&row.target_to_own_full),
            estimate(&row.same_top, 100.0, 0),
            estimate(&row.same_top_full, 100.0, 0),
            row.n.to_string().into(),
            row.positions.to_string().into(),
        ]));
    }
    let title = "Unlearned against target".to_owned();
    section.figures.push(Figure { title, badges: Vec::new(), charts, gaps: Vec::new(), numbers: table });
    section
}

/// One set's distances: a model a line, from full precision over the others.
fn distances(report: &Report, index: usize, set: &str) -> Chart {
    let rows = || report.divergence.iter().filter(move |row| row.set == set);
    let precisions = rows().map(|row| row.precision.as_str());
    let precisions = distinct(precisions.filter(|precision| is_nearest(precision)));
    let mark =
        |estimate: &Estimate| Mark { value: estimate.value, ci95: estimate.ci95, class: String::new() };
    let line = |(index, name): (usize, &&str)| {
        let mine = || rows().filter(|row| row.unlearned == *name);
        let at =
            |precision: &&str| mine().find(|row| row.precision == *precision).map(|row| mark(&row.to_target));
        let full = mine().next().map(|row: &Divergence| mark(&row.to_target_full));
        let marks = std::iter::once(full).chain(precisions.iter().map(at)).collect();
        Line {
            label: (*name).to_owned(),
            class: LINES[index % LINES.len()],
            marks,
            prominent: false,
            bridges: false,
        }
    };
    let lines: Vec<_> =
        distinct(rows().map(|row| row.unlearned.as_str())).iter().enumerate().map(line).collect();
    let places = std::iter::once("fp16").chain(precisions.iter().copied()).enumerate();
    Chart {
        id: format!("kl{index}"),
        title: format!("KL to the target, {set} set"),
        about: format!("Nats a token between each unlearned model and the target by precision, {set} set."),
        places: places.map(|(x, name)| (x as f64, name.to_owned())).collect(),
        domain: domain(lines.iter().flat_map(|line| &line.marks).flatten().map(|mark| mark.value)),
        decimals: 2,
        lines,
    }
}

/// Every metric against the steps of each series.
pub(super) fn series(report: &Report) -> Section {
    let mut section = Section::new("series", "Series");
    if report.series.is_empty() {
        return section.say("No checkpoints were declared as steps of a series (--series).");
    }
    section.figures = report.series.iter().enumerate().map(|(index, series)| curves(index, series)).collect();
    section
}

fn curves(index: usize, series: &Series) -> Figure {
    let metrics = distinct(series.curves.iter().map(|curve| curve.metric.as_str()));
    let chart = |(place, metric): (usize, &&str)| {
        let line = |(index, curve): (usize, &Curve)| {
            let marks = curve
                .points
                .iter()
                .map(|point| Some(Mark { value: point.value?, ci95: point.ci95, class: String::new() }));
            let class = LINES[index % LINES.len()];
            Line {
                label: curve.precision.clone(),
                class,
                marks: marks.collect(),
                prominent: false,
                bridges: false,
            }
        };
        let mine = series.curves.iter().filter(|curve| curve.metric == *metric);
        let lines: Vec<_> = mine.enumerate().map(line).collect();
        let values = lines.iter().flat_map(|line| &line.marks).flatten().map(|mark| mark.value);
        let title = format!("{} against {}", short_metric(metric), series.name);
        Chart {
            id: format!("series{index}-{place}"),
            about: format!("{title}, by precision."),
            title,
            places: series.steps.iter().map(|step| (step.value, trimmed(step.value))).collect(),
            domain: if *metric == "privleak" { domain(values) } else { [0.0, 100.0] },
            decimals: 1,
            lines,
        }
    };
    let charts = metrics.iter().enumerate().map(chart);
    let (charts, empty): (Vec<_>, Vec<_>) = charts.partition(|chart| !chart.is_empty());
    let gaps = empty.iter().map(|chart| format!("{}: no step has a value.", chart.title)).collect();
    let columns = ["metric".to_owned(), "precision".to_owned()].into_iter();
    let steps = series.steps.iter().map(|step| format!("{} ({})", trimmed(step.value), step.unlearned));
    let mut numbers = Table::new(format!("The numbers: {}", series.name), 2, columns.chain(steps)).folded();
    for Curve { metric, precision, points } in &series.curves {
        let texts = [Cell::from(short_metric(metric)), Cell::from(precision.as_str())];
        let points =
            points.iter().map(|point| figure(point.value, point.ci95, point.reason.as_deref(), 1.0, 1));
        numbers.add(texts.into_iter().chain(points));
    }
    Figure { title: format!("Against {}", series.name), badges: Vec::new(), charts, gaps, numbers }
}
