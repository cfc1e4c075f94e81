//! Unlearned checkpoints as steps of a series: MUSE's C5 (more to forget at once) and C6 (one request after another).

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::findings::{Findings, MEANS};
use super::statistics::{Interval, Statistics};
use crate::error::{Error, Result};
use crate::metrics::Measured;
use crate::quant::Precision;

/// A series as the user gives it: `size=models/k1@0.8,models/k2@1.6`.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesRequest {
    /// What its values are of.
    pub name: String,
    /// Checkpoint directories and the values they stand for.
    pub steps: Vec<(PathBuf, f64)>,
}

impl FromStr for SeriesRequest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |found: &str| refuse(found, "NAME=DIR@VALUE,DIR@VALUE,... with numbers as values");
        let (name, steps) = text.split_once('=').ok_or_else(|| wrong(text))?;
        let step = |step: &str| {
            // A directory's name may hold an @ itself: the last one counts.
            let (path, value) = step.rsplit_once('@').filter(|(path, _)| !path.is_empty())?;
            let value: f64 = value.trim().parse().ok().filter(|value: &f64| value.is_finite())?;
            Some((PathBuf::from(path.trim()), value))
        };
        let steps = steps.split(',').map(|text| step(text).ok_or_else(|| wrong(text)));
        let steps: Vec<_> = steps.collect::<Result<_>>()?;
        if name.trim().is_empty() {
            return Err(wrong(text));
        }
        Ok(Self { name: name.trim().to_owned(), steps })
    }
}

/// A series whose steps are models of the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What its values are of.
    pub name: String,
    /// By ascending value.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What was forgotten, in whatever unit the series has.
    pub value: f64,
    /// Index in [`Plan::models`](super::Plan::models).
    pub model: usize,
}

/// Finds the steps' models and orders them by value.
///
/// # Errors
///
/// [`Error::Flag`] if a series has fewer than two steps, two of one value, or the name of another.
pub(super) fn resolve(asked: Vec<SeriesRequest>, model: impl Fn(&Path) -> usize) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = Vec::new();
    for SeriesRequest { name, steps } in asked {
        let mut steps: Vec<_> =
            steps.iter().map(|(path, value)| Step { value: *value, model: model(path) }).collect();
        steps.sort_by(|a, b| a.value.total_cmp(&b.value));
        if steps.len() < 2 {
            return Err(refuse(&name, "a series of at least two steps"));
        }
        if let Some(pair) = steps.windows(2).find(|pair| pair[0].value >= pair[1].value) {
            let found = format!("{name}: {} twice", pair[0].value);
            return Err(refuse(&found, "each value of a series once"));
        }
        if all.iter().any(|other| other.name == name) {
            return Err(refuse(&name, "each series under its own name"));
        }
        all.push(Series { name, steps });
    }
    Ok(all)
}

fn refuse(found: &str, expected: &str) -> Error {
    Error::Flag { flag: "--series", found: found.to_owned(), expected: expected.to_owned() }
}

/// One metric at one precision over the steps of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The metric's name in reports.
    pub metric: &'static str,
    /// The precision of all its points.
    pub precision: Precision,
    /// One a step.
    pub points: Vec<Point>,
}

/// One step's figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The metric; missing if the arm was not measured.
    pub value: Measured,
    /// Its 95 % interval.
    pub ci95: Interval,
}

impl Series {
    /// The curve of every metric at every precision, by metric.
    #[must_use]
    pub fn curves(&self, findings: &Findings, statistics: &Statistics) -> Vec<Curve> {
        let names = MEANS.iter().map(|(name, _)| *name).chain(["privleak"]);
        // A released file is one model's.
        let all = findings.plan.precisions.iter().copied();
        let precisions: Vec<_> =
            all.filter(|precision| !matches!(precision, Precision::Released(..))).collect();
        let curves = names.flat_map(|metric| precisions.iter().map(move |&precision| (metric, precision)));
        curves
            .map(|(metric, precision)| {
                let point = |step: &Step| point(findings, statistics, step.model, precision, metric);
                Curve { metric, precision, points: self.steps.iter().map(point).collect() }
            })
            .collect()
    }
}

fn point(
    findings: &Findings,
    statistics: &Statistics,
    model: usize,
    precision: Precision,
    metric: &str,
) -> Point {
    let Some(place) = findings.place(model, precision) else {
        return Point { value: Measured::Missing("it was not measured".to_owned()), ci95: None };
    };
    let (arm, intervals) = (&findings.arms[place], &statistics.arms[place]);
    match MEANS.iter().position(|(name, _)| *name == metric) {
        Some(mean) => Point { value: MEANS[mean].1(arm).value.clone(), ci95: intervals.means[mean] },
        None => {
            let leak = findings.priv_leak(arm).into_iter().next();
            let none = || Measured::Missing("there is no reference".to_owned());
            let ci95 = intervals.priv_leak.first().copied().flatten();
            Point { value: leak.map_or_else(none, |leak| leak.value), ci95 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SeriesRequest> {
        text.parse()
    }

    #[test]
    fn series_are_read() {
        let series = parse("size=models/k@1@0.8, k2@16").unwrap();
        assert_eq!(series.name, "size");
        assert_eq!(series.steps, [("models/k@1".into(), 0.8), ("k2".into(), 16.0)]);
        for text in ["size", "=a@1,b@2", "size=a", "size=a@1,b", "size=@1", "size=a@x", "size=a@nan", "size="]
        {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn steps_are_ordered_and_checked() {
        let models = |path: &Path| if path == Path::new("a") { 1 } else { 2 };
        let read = |texts: &[&str]| resolve(texts.iter().map(|text| parse(text).unwrap()).collect(), models);
        let series = read(&["size=b@2,a@1"]).unwrap();
        assert_eq!(series[0].steps, [Step { value: 1.0, model: 1 }, Step { value: 2.0, model: 2 }]);
        for texts in [&["size=a@1"][..], &["size=a@1,b@1"], &["size=a@1,b@2", "size=a@1,b@2"]] {
            assert_eq!(read(texts).unwrap_err().exit_code(), 2, "{texts:?}");
        }
    }
}
