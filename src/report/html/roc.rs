//! One model's ROC curves: forget texts against texts never seen, a line a precision.

use std::fmt::{self, Write};

use askama::filters::HtmlSafe;

use super::figures::LINES;
use super::svg::{Escaped, Scale, path, shortened, text, ticks};
use super::table::{fixed, trimmed};
use super::{Section, distinct};
use crate::report::schema::{Arm, Report};

/// Lengths in the picture's own units; the plot is a square.
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 214.0;
const LEFT: f64 = 34.0;
const TOP: f64 = 24.0;
const SIDE: f64 = 154.0;
const LABELS: f64 = LEFT + SIDE + 12.0;
const LINE: f64 = 16.0;
/// Characters of a precision that are shown.
const LONGEST: usize = 14;

/// One precision's curve.
struct Curve {
    precision: String,
    auc: Option<f64>,
    points: Vec<[f64; 2]>,
}

/// The curves of a model.
pub(super) struct Roc {
    /// Begins its elements' ids: no other picture of the page may have it.
    id: String,
    title: String,
    curves: Vec<Curve>,
}

impl HtmlSafe for Roc {}

/// Adds a picture of every model that has a curve.
pub(super) fn add(report: &Report, mut section: Section) -> Section {
    let has = |arm: &&Arm| arm.metrics.privleak.roc.len() > 1;
    let names = distinct(report.arms.iter().filter(has).map(|arm| arm.name.as_str()));
    if names.is_empty() {
        return section.say("The record has no ROC curves: an older version made it, or no arm has an AUC.");
    }
    section.paragraphs.push(
        "The curves: going from the most familiar texts to the least, the share of the holdout texts met so far against the share \
         of the forget texts. Below the diagonal the forget texts are the more familiar ones, as if still memorised; the area \
         under a curve is its AUC."
            .to_owned(),
    );
    for (index, name) in names.iter().enumerate() {
        let arms: Vec<_> = report.arms.iter().filter(|arm| arm.name == *name).filter(has).collect();
        let role = arms.first().map_or("", |arm| arm.role.as_str());
        let title = if *name == role { role.to_owned() } else { format!("{name} ({role})") };
        let curve = |arm: &&Arm| {
            let leak = &arm.metrics.privleak;
            Curve { precision: arm.precision.clone(), auc: leak.auc, points: leak.roc.clone() }
        };
        let curves = arms.iter().map(curve).collect();
        section.curves.push(Roc { id: format!("roc{index}"), title, curves });
    }
    section
}

impl fmt::Display for Roc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bottom = TOP + SIDE;
        let (x, y) = (Scale::new([0.0, 1.0], [LEFT, LEFT + SIDE]), Scale::new([0.0, 1.0], [bottom, TOP]));
        let height = HEIGHT.max(TOP + LINE * (self.curves.len() + 2) as f64);
        let id = Escaped(&self.id);
        write!(
            f,
            r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-labelledby="{id}-title {id}-desc">"#
        )?;
        write!(f, r#"<title id="{id}-title">ROC curve: {}</title>"#, Escaped(&self.title))?;
        write!(f, r#"<desc id="{id}-desc">{}</desc>"#, Escaped(&self.description()))?;
        text(f, [0.0, 13.0], "heading", "start", &shortened(&self.title, 48))?;
        for tick in ticks([0.0, 1.0], 2) {
            let (across, up) = (x.at(tick), y.at(tick));
            let lines = [
                path([Some([LEFT, up]), Some([LEFT + SIDE, up])]),
                path([Some([across, TOP]), Some([across, bottom])]),
            ];
            write!(f, r#"<path class="grid" d="{}"/>"#, lines.concat())?;
            text(f, [LEFT - 5.0, up + 3.5], "tick", "end", &trimmed(tick))?;
            text(f, [across, bottom + 14.0], "tick", "middle", &trimmed(tick))?;
        }
        text(f, [LEFT + SIDE / 2.0, bottom + 28.0], "tick", "middle", "share of forget texts")?;
        let (left, middle) = (9.0, TOP + SIDE / 2.0);
        write!(
            f,
            r#"<text class="tick" text-anchor="middle" transform="translate({left} {middle}) rotate(-90)">of holdout texts</text>"#
        )?;
        write!(
            f,
            r#"<path class="diagonal" d="{}"/>"#,
            path([[0.0; 2], [1.0; 2]].map(|[a, b]| Some([x.at(a), y.at(b)])))
        )?;
        text(f, [LABELS, TOP + 4.0], "tick", "start", "AUC")?;
        for (index, curve) in self.curves.iter().enumerate() {
            let points = curve.points.iter().map(|[across, up]| Some([x.clamped(*across), y.clamped(*up)]));
            let foot = TOP + 4.0 + LINE * (index + 1) as f64;
            let sample = path([[0.0, -4.0], [22.0, -4.0]].map(|[by, up]| Some([LABELS + by, foot + up])));
            write!(
                f,
                r#"<g class="{}"><path class="line" d="{}{sample}"/>"#,
                LINES[index % LINES.len()],
                path(points)
            )?;
            let label = format!("{} {}", area(curve.auc), shortened(&curve.precision, LONGEST));
            text(f, [LABELS + 27.0, foot], "label", "start", &label)?;
            write!(f, "</g>")?;
        }
        write!(f, "</svg>")
    }
}

impl Roc {
    /// The picture in words.
    fn description(&self) -> String {
        let mut words =
            "Share of the holdout texts against the share of the forget texts, from the most familiar on; \
                         the diagonal is no difference."
                .to_owned();
        for Curve { precision, auc, points } in &self.curves {
            let at = [0.25, 0.5, 0.75].map(|share| format!("{} at {share}", fixed(height(points, share), 2)));
            // Writing to a string cannot fail.
            let _ = write!(words, " {precision}: AUC {}, {}.", area(*auc), at.join(", "));
        }
        words
    }
}

fn area(auc: Option<f64>) -> String {
    auc.map_or_else(|| "–".to_owned(), |auc| fixed(auc, 3))
}

/// How high a curve is at a place; the upper end where it goes straight up.
fn height(points: &[[f64; 2]], at: f64) -> f64 {
    let beyond = points.partition_point(|[x, _]| *x <= at);
    let [x, y] = points.get(beyond.saturating_sub(1)).copied().unwrap_or_default();
    match points.get(beyond) {
        Some([right, up]) if *right > x => y + (up - y) * (at - x) / (right - x),
        _ => y,
    }
}

#[cfg(test)]
mod tests {
    use super::height;

    #[test]
    fn a_curve_has_a_height_everywhere() {
        let points = [[0.0, 0.0], [0.25, 0.0], [0.25, 0.5], [0.75, 1.0], [1.0, 1.0]];
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|at| height(&points, at)), [0.0, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(height(&[], 0.5), 0.0);
    }
}
