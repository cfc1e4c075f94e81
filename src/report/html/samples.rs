//! What every arm said, with the words that came back marked.

use std::collections::HashSet;
use std::ops::Range;

use super::Section;
use super::strip::Strip;
use crate::metrics::rouge::common;
use crate::report::samples::Sample;
use crate::report::schema::{Arm, Report};
use crate::report::table::short_metric;

/// Samples of one metric.
pub(super) struct Group {
    /// Which, and how many.
    pub(super) title: String,
    pub(super) samples: Vec<Shown>,
}

/// One prompt with its answers.
pub(super) struct Shown {
    pub(super) prompt: String,
    pub(super) truth: String,
    pub(super) rows: Vec<Row>,
    pub(super) strip: Option<Strip>,
}

/// One arm's answer.
pub(super) struct Row {
    pub(super) model: String,
    pub(super) precision: String,
    pub(super) score: String,
    pub(super) pieces: Vec<Piece>,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// What a part of an answer is to the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not in it, in this order.
    Other,
    /// In it.
    Right,
    /// In it, and not in what the same model says at full precision.
    Back,
}

/// All samples, folded.
pub(super) fn samples(report: &Report) -> Section {
    let section = Section::new("samples", "What every arm said");
    let usable = |sample: &&Sample| !report.arms.is_empty() && sample.answers.len() == report.arms.len();
    let usable: Vec<_> = report.samples.iter().filter(usable).collect();
    if usable.is_empty() {
        return section.say(
            "The record holds no questions and answers: it was made with --no-samples, by an older version, or ended before.",
        );
    }
    let mut section = section.say(
        "Words of an answer that are right, in the order of the true answer (as ROUGE-L counts them), are underlined. Those that a \
         quantized unlearned model has and the same model at full precision has not are marked: they came back.",
    );
    section.paragraphs.push(if usable.iter().any(|sample| !sample.tokens.is_empty()) {
        "Under each prompt on the forget set: log p of every token of the true answer, given those before it, in nats (0 is \
         certain, -2.3 one in ten, -4.6 one in a hundred). The stronger a cell's colour, the better the model knows the token."
            .to_owned()
    } else {
        "The record has no log p of single tokens: an older version made it.".to_owned()
    });
    for samples in usable.chunk_by(|a, b| a.metric == b.metric) {
        let metric = short_metric(&samples[0].metric);
        let set = if samples[0].metric.ends_with("retain") { "" } else { ", forget set" };
        let title = format!("{metric}{set}: {} prompts", samples.len());
        let samples = samples.iter().map(|sample| shown(&report.arms, sample)).collect();
        section.samples.push(Group { title, samples });
    }
    section
}

fn shown(arms: &[Arm], sample: &Sample) -> Shown {
    let found: Vec<_> = sample.answers.iter().map(|answer| common(&answer.text, &sample.truth)).collect();
    let rows = arms.iter().zip(&sample.answers).enumerate().map(|(place, (arm, answer))| {
        let quantized = arm.role == "unlearned" && arm.precision != "fp16";
        let full = arms.iter().position(|other| other.name == arm.name && other.precision == "fp16");
        // Nothing comes back in the others.
        let before = full.filter(|_| quantized).map_or(&found[place], |full| &found[full]);
        let before: HashSet<usize> = before.iter().map(|(_, at)| *at).collect();
        Row {
            model: arm.name.clone(),
            precision: arm.precision.clone(),
            score: format!("{:.0}", answer.score),
            pieces: pieces(&answer.text, &found[place], &before),
        }
    });
    Shown {
        prompt: sample.prompt.clone(),
        truth: sample.truth.clone(),
        rows: rows.collect(),
        strip: Strip::new(arms, sample),
    }
}

/// The text in parts of one kind each; blanks between two words of a kind are of that kind.
fn pieces(text: &str, found: &[(Range<usize>, usize)], before: &HashSet<usize>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut add = |text: &str, kind: Kind| match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(last) if last.kind == kind => last.text += text,
        _ => pieces.push(Piece { text: text.to_owned(), kind }),
    };
    let (mut end, mut last) = (0, Kind::Other);
    for (range, at) in found {
        let kind = if before.contains(at) { Kind::Right } else { Kind::Back };
        let between = &text[end..range.start];
        let joins = kind == last && between.chars().all(char::is_whitespace);
        add(between, if joins { kind } else { Kind::Other });
        add(&text[range.clone()], kind);
        (end, last) = (range.end, kind);
    }
    add(&text[end..], Kind::Other);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str, truth: &str, full: &str) -> String {
        let before = common(full, truth).into_iter().map(|(_, at)| at).collect();
        let pieces = pieces(text, &common(text, truth), &before);
        pieces
            .iter()
            .map(|Piece { text, kind }| match kind {
                Kind::Other => text.clone(),
                Kind::Right => format!("_{text}_"),
                Kind::Back => format!("[{text}]"),
            })
            .collect()
    }

    #[test]
    fn words_that_came_back_are_marked() {
        let truth = "Noth Kolund was born in Zabir";
        assert_eq!(
            marked("noth kolund was born in Zabir.", truth, "Noth was in Paris"),
            "_noth_ [kolund] _was_ [born] _in_ [Zabir]."
        );
        assert_eq!(marked("Zabir, born", truth, ""), "Zabir, [born]", "one of them: their order is another");
        assert_eq!(marked("Ünder Zabir", truth, truth), "Ünder _Zabir_");
        assert_eq!(marked("", truth, ""), "");
        assert_eq!(marked("no word of it", truth, ""), "no word of it");
        assert_eq!(marked("was born", truth, ""), "[was born]");
    }
}
