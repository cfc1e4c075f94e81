//! One picture: lines with intervals over a few precisions or steps.

use std::fmt::{self, Write};

use askama::filters::HtmlSafe;

use super::svg::{Escaped, Scale, apart, path, shortened, text, ticks};
use super::table::trimmed;

/// Widths and heights in the picture's own units; it scales.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
const TOP: f64 = 34.0;
const LEFT: f64 = 38.0;
const BOTTOM: f64 = 28.0;
/// About the width of a character of a label, and the height of a line of them.
const LETTER: f64 = 6.3;
const LINE: f64 = 13.0;
/// Characters of a label that are shown.
const LONGEST: usize = 13;

/// A measured value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mark {
    pub(super) value: f64,
    pub(super) ci95: Option<[f64; 2]>,
    /// Class of the mark, such as its verdict.
    pub(super) class: String,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) label: String,
    /// Class of the line.
    pub(super) class: &'static str,
    /// One a place on the axis.
    pub(super) marks: Vec<Option<Mark>>,
    /// Whether whiskers are drawn and, with few marks, their numbers written.
    pub(super) prominent: bool,
    /// Whether the line runs on where it has no mark.
    pub(super) bridges: bool,
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    /// Begins its elements' ids: no other picture of the page may have it.
    pub(super) id: String,
    pub(super) title: String,
    /// What is on which axis, for those who do not see it; the values are added.
    pub(super) about: String,
    /// The places on the horizontal axis, with their names.
    pub(super) places: Vec<(f64, String)>,
    pub(super) domain: [f64; 2],
    /// Decimals of the values.
    pub(super) decimals: usize,
    pub(super) lines: Vec<Line>,
}

impl HtmlSafe for Chart {}

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.draw(f)
    }
}

impl Chart {
    fn draw(&self, f: &mut dyn Write) -> fmt::Result {
        let longest = self.lines.iter().map(|line| line.label.chars().count().min(LONGEST)).max();
        let right = WIDTH - 10.0 - LETTER * longest.unwrap_or(0) as f64;
        let names = self.places.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
        let inset = (right - LEFT) / (2.0 * self.places.len().max(2) as f64);
        let room = (right - LEFT - 2.0 * inset) / self.places.len().saturating_sub(1).max(1) as f64;
        // Names too long to stand side by side are turned.
        let turned = names as f64 * LETTER > room.max(2.0 * inset);
        let bottom = HEIGHT - BOTTOM;
        let height = HEIGHT + if turned { LETTER * names.min(LONGEST) as f64 * 0.7 } else { 0.0 };
        let ends = self
            .places
            .iter()
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], (x, _)| [low.min(*x), high.max(*x)]);
        let x = Scale::new(ends, [LEFT + inset, right - inset]);
        let y = Scale::new(self.domain, [bottom, TOP]);

        let id = Escaped(&self.id);
        write!(
            f,
            r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-labelledby="{id}-title {id}-desc">"#
        )?;
        write!(f, r#"<title id="{id}-title">{}</title>"#, Escaped(&self.title))?;
        write!(f, r#"<desc id="{id}-desc">{}</desc>"#, Escaped(&self.description()))?;
        text(f, [0.0, 14.0], "heading", "start", &self.title)?;
        for tick in ticks(self.domain, 4) {
            let at = y.at(tick);
            write!(f, r#"<path class="grid" d="{}"/>"#, path([Some([LEFT, at]), Some([right, at])]))?;
            text(f, [LEFT - 5.0, at + 3.5], "tick", "end", &trimmed(tick))?;
        }
        let mut free_from = f64::NEG_INFINITY;
        for (place, name) in &self.places {
            let (at, name) = (x.at(*place), shortened(name, LONGEST));
            let half = LETTER * name.chars().count() as f64 / 2.0;
            // A name that would run into the one before it is left out: the table has them all.
            if turned && at >= free_from {
                free_from = at + LINE;
                let (left, top) = (at + 4.0, bottom + 12.0);
                write!(
                    f,
                    r#"<text class="tick" text-anchor="end" transform="translate({left:.1} {top:.1}) rotate(-40)">{}</text>"#,
                    Escaped(&name)
                )?;
            } else if !turned && at - half >= free_from {
                text(f, [at, bottom + 16.0], "tick", "middle", &name)?;
                free_from = at + half;
            }
        }
        let (above, below): (Vec<_>, Vec<_>) = self.lines.iter().partition(|line| line.prominent);
        for line in below.into_iter().chain(above) {
            self.line(f, line, x, y)?;
        }
        self.labels(f, right, y)?;
        write!(f, "</svg>")
    }

    fn line(&self, f: &mut dyn Write, line: &Line, x: Scale, y: Scale) -> fmt::Result {
        let marks = || self.places.iter().zip(&line.marks).enumerate();
        let points =
            marks().map(|(_, ((place, _), mark))| Some([x.at(*place), y.clamped(mark.as_ref()?.value)]));
        let points = points.filter(|point| point.is_some() || !line.bridges);
        write!(f, r#"<g class="{}"><path class="line" d="{}"/>"#, line.class, path(points))?;
        for (index, ((place, _), mark)) in marks() {
            let Some(Mark { value, ci95, class }) = mark else { continue };
            let (x, middle) = (x.at(*place), y.clamped(*value));
            let mut ends = [middle, middle];
            if let (Some(ci95), true) = (ci95, line.prominent) {
                let [low, high] = ci95.map(|end| y.clamped(end));
                ends = [middle.min(high), middle.max(low)];
                let cap = |y: f64| path([Some([x - 4.0, y]), Some([x + 4.0, y])]);
                let bar = path([Some([x, low]), Some([x, high])]);
                write!(f, r#"<path class="whisker {class}" d="{bar}{}{}"/>"#, cap(low), cap(high))?;
            }
            let radius = if line.prominent { 4.0 } else { 2.2 };
            write!(f, r#"<circle class="mark {class}" cx="{x:.1}" cy="{middle:.1}" r="{radius}"/>"#)?;
            if line.prominent && self.places.len() <= 4 {
                let number = format!("{value:.*}", self.decimals);
                let foot = self.free(index, ends, y);
                // A line that comes or goes steeply on the number's side of the mark would run through it.
                let steep = |index: Option<usize>| {
                    let other = index.and_then(|index| line.marks.get(index)?.as_ref());
                    let by = other.map_or(0.0, |other| y.clamped(other.value) - middle);
                    by.abs() > 2.0 * LINE && (by > 0.0) == (foot > middle)
                };
                let (x, anchor) = match (steep(index.checked_sub(1)), steep(Some(index + 1))) {
                    (true, false) => (x - 4.0, "start"),
                    (false, true) => (x + 6.0, "end"),
                    _ => (x, "middle"),
                };
                text(f, [x, foot], "value", anchor, &number)?;
            }
        }
        write!(f, "</g>")
    }

    /// Where a number's foot stands at a place: above the whisker's `ends`, or below if other lines run there.
    fn free(&self, index: usize, ends: [f64; 2], y: Scale) -> f64 {
        let others = || self.lines.iter().filter(|line| !line.prominent);
        let others = || others().filter_map(|line| line.marks.get(index)?.as_ref());
        let clear = |foot: f64| {
            others()
                .map(|mark| (y.clamped(mark.value) - (foot - LINE / 3.0)).abs())
                .fold(f64::INFINITY, f64::min)
        };
        let (above, below) = (ends[0] - 6.0, ends[1] + LINE);
        if above >= TOP - 8.0 && clear(above) >= LINE / 2.0 || below > HEIGHT - BOTTOM {
            return above.max(TOP - 8.0);
        }
        if clear(below) > clear(above) { below } else { above.max(TOP - 8.0) }
    }

    /// Every line's name at its right end, none over another.
    fn labels(&self, f: &mut dyn Write, right: f64, y: Scale) -> fmt::Result {
        let last = |line: &Line| line.marks.iter().rev().flatten().next().map(|mark| y.clamped(mark.value));
        let ends: Vec<_> = self.lines.iter().filter_map(|line| Some((line, last(line)?))).collect();
        let wanted: Vec<_> = ends.iter().map(|(_, y)| *y).collect();
        let places = apart(&wanted, LINE, [TOP, HEIGHT - BOTTOM]);
        for ((line, _), place) in ends.iter().zip(places) {
            write!(f, r#"<g class="{}">"#, line.class)?;
            text(f, [right + 4.0, place + 4.0], "label", "start", &shortened(&line.label, LONGEST))?;
            write!(f, "</g>")?;
        }
        Ok(())
    }

    /// The picture in words.
    fn description(&self) -> String {
        let mut words = self.about.clone();
        for line in &self.lines {
            let values = self.places.iter().zip(&line.marks).map(|((_, name), mark)| match mark {
                None => format!("{name} not known"),
                Some(Mark { value, ci95: Some([low, high]), .. }) if line.prominent => {
                    let decimals = self.decimals;
                    format!("{name} {value:.decimals$} (95 % interval {low:.decimals$} to {high:.decimals$})")
                }
                Some(mark) => format!("{name} {:.*}", self.decimals, mark.value),
            });
            let values: Vec<_> = values.collect();
            // Writing to a string cannot fail.
            let _ = write!(words, " {}: {}.", line.label, values.join(", "));
        }
        words
    }

    /// Whether there is anything to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.marks.iter().all(Option::is_none))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(places: &[&str], values: &[Option<f64>]) -> Chart {
        let mark =
            |value: f64| Mark { value, ci95: Some([value - 1.0, value + 1.0]), class: "held".to_owned() };
        Chart {
            id: "c".to_owned(),
            title: "A & B".to_owned(),
            about: "About.".to_owned(),
            places: places.iter().enumerate().map(|(x, name)| (x as f64, (*name).to_owned())).collect(),
            domain: [0.0, 100.0],
            decimals: 1,
            lines: vec![Line {
                label: "<b>".to_owned(),
                class: "unlearned",
                marks: values.iter().map(|value| value.map(mark)).collect(),
                prominent: true,
                bridges: false,
            }],
        }
    }

    #[test]
    fn a_picture_says_what_it_shows() {
        let svg = chart(&["fp16", "int8", "int4"], &[Some(20.0), None, Some(90.0)]).to_string();
        for part in [
            r#"role="img" aria-labelledby="c-title c-desc""#,
            "A &amp; B</title>",
            "About. &lt;b&gt;: fp16 20.0 (95 % interval 19.0 to 21.0), int8 not known, int4 90.0 (95 %",
            r#"class="whisker held""#,
        ] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!svg.contains("<b>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn long_names_are_turned_and_nothing_is_not_a_picture() {
        let long = chart(&["int4-asym-g128", "int4-asym-g64", "int4-g32"], &[Some(1.0); 3]).to_string();
        assert!(long.contains("rotate("), "{long}");
        let mut near = chart(&["int4-asym-g128", "int4-asym-g64", "int4-g32", "nf4-b64"], &[Some(1.0); 4]);
        near.places[1].0 = 0.1;
        let near = near.to_string();
        assert_eq!((near.matches("rotate(").count(), near.matches("<circle").count()), (3, 4), "{near}");
        assert!(!chart(&["fp16", "int8", "int4"], &[Some(1.0); 3]).to_string().contains("rotate("));
        assert!(chart(&["fp16"], &[None]).is_empty());
        assert!(!chart(&["fp16"], &[Some(1.0)]).to_string().contains("NaN"));
        assert!(!chart(&[], &[]).to_string().contains("inf"));
    }
}
