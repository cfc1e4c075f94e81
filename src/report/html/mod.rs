//! The report as one HTML file: no script, nothing fetched, made from the record alone.

mod chart;
mod figures;
mod heat;
mod judged;
mod localized;
mod ran;
mod repair;
mod roc;
mod samples;
mod strip;
mod svg;
mod table;

use askama::Template;

use self::chart::Chart;
use self::table::Table;
use super::schema::Report;

/// The report as a page.
#[must_use]
pub fn report_html(report: &Report) -> String {
    let page = Page {
        headline: judged::headline(report),
        banner: banner(report),
        facts: ran::facts(report),
        sections: vec![
            figures::what_came_back(report),
            judged::verdicts(report),
            judged::recovery(report),
            figures::divergence(report),
            judged::truths(report),
            judged::controls(report),
            survival(report),
            localized::localized(report),
            repair::repair(report),
            figures::series(report),
            privleak(report),
            judged::arms(report),
            samples::samples(report),
            ran::provenance(report),
        ],
        style: include_str!("templates/style.css"),
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = page.render_into(&mut text);
    text
}

/// What stands on the page.
#[derive(Template)]
#[template(path = "page.html", config = "src/report/html/askama.toml")]
struct Page {
    /// The verdict in one sentence.
    headline: String,
    /// What the reader must know before anything else.
    banner: Option<String>,
    /// What it is about, in short.
    facts: Vec<(&'static str, String)>,
    sections: Vec<Section>,
    style: &'static str,
}

/// A part of the page. One without figures and tables says why in its paragraphs.
#[derive(Default)]
struct Section {
    id: &'static str,
    title: &'static str,
    paragraphs: Vec<String>,
    figures: Vec<Figure>,
    tables: Vec<Table>,
    maps: Vec<heat::Maps>,
    curves: Vec<roc::Roc>,
    samples: Vec<samples::Group>,
    /// Small print under the tables.
    notes: Vec<String>,
}

/// Pictures of one thing, with their numbers.
struct Figure {
    title: String,
    badges: Vec<Badge>,
    charts: Vec<Chart>,
    /// What is not in the pictures, and why.
    gaps: Vec<String>,
    numbers: Table,
}

/// A verdict's word with what it is on.
struct Badge {
    on: String,
    class: String,
    word: String,
}

impl Section {
    fn new(id: &'static str, title: &'static str) -> Self {
        Self { id, title, ..Self::default() }
    }

    /// One more paragraph.
    fn say(mut self, text: impl Into<String>) -> Self {
        self.paragraphs.push(text.into());
        self
    }
}

/// What survives: in all, then where.
fn survival(report: &Report) -> Section {
    let section = judged::survival(report);
    if report.survival.is_empty() { section } else { heat::survival(report, section) }
}

/// Whether likelihoods betray what was trained on: the curves, then their areas.
fn privleak(report: &Report) -> Section {
    let section = judged::privleak(report);
    if report.arms.is_empty() { section } else { roc::add(report, section) }
}

fn banner(report: &Report) -> Option<String> {
    if report.complete {
        return None;
    }
    let why = report.stopped.as_ref().map_or_else(String::new, |stopped| format!(" ({stopped})"));
    let count = report.arms.len();
    Some(format!(
        "Incomplete: the run ended early{why}. This page shows the {count} arms that were measured."
    ))
}

/// The class of a verdict's colour; a word that is not known has none.
fn verdict_class(verdict: &str) -> &'static str {
    match verdict {
        "resurrected" => "resurrected",
        "held" => "held",
        "inconclusive" => "inconclusive",
        "void" => "void",
        _ => "unknown",
    }
}

/// `values` without repetitions, in order of first appearance.
fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// `a, b and c`.
fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The three means with what their axis is called.
const MEANS: [(&str, &str); 3] = [
    ("verbmem_forget", "VerbMem, forget set"),
    ("knowmem_forget", "KnowMem, forget set"),
    ("knowmem_retain", "KnowMem, retain set"),
];
