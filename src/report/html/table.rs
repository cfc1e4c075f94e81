//! Tables of the page, and how figures are written in them.

use askama::Template;
use askama::filters::HtmlSafe;

use crate::report::judgement::Estimate;
use crate::report::schema::Metric;
use crate::report::table::rounded;

/// A table; its first column names the rows.
#[derive(Clone, Debug, PartialEq, Template)]
#[template(path = "table.html", config = "src/report/html/askama.toml")]
pub(super) struct Table {
    pub(super) caption: String,
    /// The name of each column, and whether it has numbers.
    pub(super) columns: Vec<(String, bool)>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Hidden at first, behind its caption.
    pub(super) folded: bool,
}

impl HtmlSafe for Table {}

/// What stands in one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    /// In small letters under it: why there is no figure.
    pub(super) note: String,
    pub(super) class: String,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Table {
    /// Without rows; the first `texts` columns are text and the others numbers.
    pub(super) fn new<S: Into<String>>(
        caption: impl Into<String>,
        texts: usize,
        columns: impl IntoIterator<Item = S>,
    ) -> Self {
        let columns = columns.into_iter().enumerate();
        let columns = columns.map(|(index, name)| (name.into(), index >= texts)).collect();
        Self { caption: caption.into(), columns, rows: Vec::new(), folded: false }
    }

    pub(super) fn folded(self) -> Self {
        Self { folded: true, ..self }
    }

    pub(super) fn add<C: Into<Cell>>(&mut self, row: impl IntoIterator<Item = C>) {
        self.rows.push(row.into_iter().map(Into::into).collect());
    }

    /// The cells of a row, each with whether it is a number.
    fn cells<'a>(&'a self, row: &'a [Cell]) -> impl Iterator<Item = (&'a Cell, bool)> {
        let numbers = self.columns.iter().map(|(_, is_number)| *is_number);
        row.iter().zip(numbers.chain(std::iter::repeat(true)))
    }
}

/// A dash, and why.
pub(super) fn none(reason: Option<&str>) -> Cell {
    Cell { text: "–".to_owned(), note: reason.unwrap_or_default().to_owned(), class: String::new() }
}

/// A figure with its interval, `scale` times as large.
pub(super) fn figure(
    value: Option<f64>,
    ci95: Option<[f64; 2]>,
    reason: Option<&str>,
    scale: f64,
    decimals: usize,
) -> Cell {
    let Some(value) = value else { return none(reason) };
    let number = |value: f64| fixed(scale * value, decimals);
    match ci95 {
        Some([low, high]) => format!("{} [{}, {}]", number(value), number(low), number(high)).into(),
        None => number(value).into(),
    }
}

/// A metric, one decimal.
pub(super) fn metric(metric: &Metric) -> Cell {
    figure(metric.value, metric.ci95, metric.reason.as_deref(), 1.0, 1)
}

/// An estimate of whatever unit.
pub(super) fn estimate(estimate: &Estimate, scale: f64, decimals: usize) -> Cell {
    figure(Some(estimate.value), estimate.ci95, None, scale, decimals)
}

/// A p-value.
pub(super) fn p_value(p: Option<f64>) -> Cell {
    match p {
        None => none(None),
        Some(p) if p < 0.001 => "<0.001".into(),
        Some(p) => format!("{p:.3}").into(),
    }
}

/// So many decimals, never -0.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    let steps = 10f64.powi(i32::try_from(decimals).unwrap_or(0));
    format!("{:.decimals$}", rounded(value, steps))
}

/// As few decimals as it needs, at most six.
pub(super) fn trimmed(value: f64) -> String {
    rounded(value, 1e6).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_intervals_or_reasons() {
        assert_eq!(figure(Some(0.914), Some([0.8, 1.0]), None, 100.0, 0).text, "91 [80, 100]");
        assert_eq!(figure(Some(-0.0001), None, None, 1.0, 1).text, "0.0");
        let missing = figure(None, None, Some("too short"), 1.0, 1);
        assert_eq!((missing.text.as_str(), missing.note.as_str()), ("–", "too short"));
        assert_eq!([p_value(Some(0.0001)).text, p_value(Some(0.5)).text], ["<0.001", "0.500"]);
        assert_eq!([0.30000000000000004, 20.0, -0.0].map(trimmed), ["0.3", "20", "0"]);
    }

    #[test]
    fn a_table_names_its_rows_and_columns() {
        let mut table = Table::new("What <is>", 1, ["model", "value"]);
        table.add([Cell::from("a&b"), none(Some("why"))]);
        let html = table.to_string();
        for part in [
            "<caption>What &#60;is&#62;</caption>",
            r#"<th scope="col">model</th>"#,
            r#"<th scope="row">a&#38;b</th>"#,
            "<small>why</small>",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(table.folded().to_string().contains("<details>"));
    }
}
