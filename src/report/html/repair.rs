//! Roundings that keep the update, and recovery against survival.

use super::chart::{Chart, Line, Mark};
use super::figures::of;
use super::svg::domain;
use super::table::{Cell, Table, estimate, figure, fixed, metric, none};
use super::{Figure, MEANS, Section, verdict_class};
use crate::report::repair::{KEPT, RELEASED, Repair, sentences};
use crate::report::schema::{Arm, Metric, Report};

/// What the repairs do and cost; with several doses, the picture of cause and effect.
pub(super) fn repair(report: &Report) -> Section {
    let section = Section::new("repair", "Rounding that keeps the update");
    if report.repairs.is_empty() {
        return section.say(
            "No arm was run in another rounding than the nearest (--repair, --dose), nor a released file.",
        );
    }
    let mut section = section.say(
        "Kept rounding moves a few codes to the neighbouring value until the wanted share of the unlearning update survives. \
         What was forgotten should stay so at little cost to the retain set. A released file stands by its own weights, however \
         they were rounded.",
    );
    section.paragraphs.extend(sentences(report));
    let same = |a: &Repair, b: &Repair| (&a.unlearned, &a.nearest) == (&b.unlearned, &b.nearest);
    for (index, repairs) in report.repairs.chunk_by(same).enumerate() {
        let doses: Vec<_> = repairs.iter().filter(|repair| repair.keep.is_some()).collect();
        let several = |rounding| doses.iter().filter(|repair| repair.rounding == rounding).count() > 1;
        if several(KEPT) || several(RELEASED) {
            section.figures.push(figure_of(report, index, &doses));
        }
    }
    let columns = [
        "unlearned",
        "rounding",
        "survival",
        "codes moved, %",
        "VerbMem ↓",
        "KnowMem ↓",
        "KnowMem retain ↑",
        "retain, from fp16",
        "retain, from nearest",
    ];
    let mut table = Table::new("Before and after, with 95 % intervals", 2, columns);
    for repairs in report.repairs.chunk_by(same) {
        if let Some(first) = repairs.first() {
            row(report, &mut table, first, None);
        }
        repairs.iter().for_each(|repair| row(report, &mut table, repair, Some(repair)));
    }
    section.tables.push(table);
    section
}

fn arm<'a>(report: &'a Report, name: &str, precision: &str) -> Option<&'a Arm> {
    report.arms.iter().find(|arm| arm.name == name && arm.precision == precision)
}

/// What nearest rounding is called in the picture.
const NEAREST: &str = "nearest";

/// A repair's row, or that of the nearest rounding beside it.
fn row(report: &Report, table: &mut Table, of_model: &Repair, repair: Option<&Repair>) {
    let (precision, survival) = match repair {
        Some(repair) => (&repair.precision, repair.survival),
        None => (&of_model.nearest, of_model.survival_nearest),
    };
    let Some(arm) = arm(report, &of_model.unlearned, precision) else { return };
    let moved = repair.and_then(|repair| Some(100.0 * repair.moved? as f64 / repair.weights?.max(1) as f64));
    let number = |value: Option<f64>| value.map_or_else(|| none(None), |value| fixed(value, 2).into());
    let retain = repair.and_then(|repair| repair.changes.last());
    let change = |change: Option<_>| change.map_or_else(|| none(None), |change| estimate(&change, 1.0, 1));
    let texts = [&of_model.unlearned, precision].map(|text| Cell::from(text.as_str()));
    let metrics = MEANS.map(|(name, _)| metric(of(arm, name)));
    let changes = [retain.and_then(|retain| retain.from_full), retain.and_then(|retain| retain.from_nearest)];
    table.add(
        texts.into_iter().chain([number(survival), number(moved)]).chain(metrics).chain(changes.map(change)),
    );
}

/// Recovery, and the retain metric, against survival: kept rounding and released files at several shares, with nearest
/// rounding's own point.
fn figure_of(report: &Report, index: usize, doses: &[&Repair]) -> Figure {
    let (name, nearest) = (&doses[0].unlearned, &doses[0].nearest);
    // Without a look at the weights, a kept share is where it was to land, and the nearest has no place.
    let mut points: Vec<(f64, &str, &str)> = doses
        .iter()
        .filter_map(|dose| {
            Some((dose.survival.or(dose.keep)?, dose.precision.as_str(), dose.rounding.as_str()))
        })
        .collect();
    points.extend(doses[0].survival_nearest.map(|survival| (survival, nearest.as_str(), NEAREST)));
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let verdict = |precision: &str| {
        let found = report.verdicts.iter().find(|v| v.unlearned == *name && v.precision == precision);
        found.map_or("", |found| verdict_class(&found.verdict)).to_owned()
    };
    let value = |key: &str, precision: &str| -> Option<Mark> {
        let class = verdict(precision);
        if key == "knowmem_retain" {
            let Metric { value, ci95, .. } = of(arm(report, name, precision)?, key);
            return Some(Mark { value: (*value)?, ci95: *ci95, class });
        }
        let mut rows = report.recovery.iter();
        let row =
            rows.find(|row| row.unlearned == *name && row.precision == precision && row.metric == key)?;
        let percent = |share: f64| 100.0 * share;
        let ci95 = row.of_gap_to_target_same_precision_ci95.map(|ends| ends.map(percent));
        Some(Mark { value: percent(row.of_gap_to_target_same_precision?), ci95, class })
    };
    let titles = [
        ("verbmem_forget", "VerbMem that came back, %"),
        ("knowmem_forget", "KnowMem that came back, %"),
        ("knowmem_retain", "KnowMem, retain set"),
    ];
    let chart = |(key, title): (&str, &str)| {
        let line = |label: &str, class: &'static str| Line {
            label: label.to_owned(),
            class,
            marks: points
                .iter()
                .map(|(_, precision, rounding)| (*rounding == label).then(|| value(key, precision))?)
                .collect(),
            prominent: true,
            bridges: true,
        };
        let lines = [(KEPT, "unlearned"), (RELEASED, "retrain"), (NEAREST, "target")];
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|(label, _)| points.iter().any(|(.., rounding)| rounding == label))
            .map(|(label, class)| line(label, class))
            .collect();
        let marks = || lines.iter().flat_map(|line| &line.marks).flatten();
        let ends = marks().flat_map(|mark| mark.ci95.unwrap_or([mark.value; 2])).chain([100.0]);
        let places = points.iter().map(|(survival, ..)| (*survival, fixed(*survival, 2)));
        Chart {
            id: format!("dose{index}-{key}"),
            title: title.to_owned(),
            about: format!("{title}, of {name}, against the survival of the update at {nearest}."),
            places: places.collect(),
            domain: domain(ends),
            decimals: 1,
            lines,
        }
    };
    let charts: Vec<_> = titles.map(chart).into_iter().filter(|chart| !chart.is_empty()).collect();
    let columns = ["rounding", "survival", "VerbMem back, %", "KnowMem back, %", "KnowMem retain ↑"];
    let mut numbers = Table::new(format!("The numbers: {name}"), 1, columns).folded();
    for (survival, precision, _) in &points {
        let cells = titles.map(|(key, _)| {
            let mark = value(key, precision);
            figure(
                mark.as_ref().map(|mark| mark.value),
                mark.as_ref().and_then(|mark| mark.ci95),
                None,
                1.0,
                1,
            )
        });
        let names = [Cell::from(*precision), fixed(*survival, 2).into()];
        numbers.add(names.into_iter().chain(cells));
    }
    let title = format!("{name} at {nearest}: what comes back against what survives");
    Figure { title, badges: Vec::new(), charts, gaps: Vec::new(), numbers }
}
