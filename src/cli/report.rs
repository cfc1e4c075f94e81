//! `undertext report`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use clap::Args;

use super::folder::REPORT;
use super::output::{JsonArgs, Output, print, write};
use crate::error::{Error, Result};
use crate::report::{Report, report_html, schema};

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// What `undertext audit --json=FILE` or `undertext demo --json=FILE` wrote, or a run's folder
    #[arg(value_name = "REPORT.JSON|DIR")]
    #[arg(required_unless_present = "schema")]
    record: Option<PathBuf>,

    /// Print the JSON Schema of the record instead
    #[arg(long, hide = true, exclusive = true)]
    schema: bool,

    /// Where the page goes [default: beside the record, with the extension html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    #[command(flatten)]
    json: JsonArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Made<'a> {
    record: &'a Path,
    html: &'a Path,
}

/// Makes the page of a record and says where it is.
pub(super) fn run(args: ReportArgs) -> Result<()> {
    let record = match args.record {
        Some(record) if !args.schema => record,
        _ => return print(&Output::to_json(&Report::json_schema())?),
    };
    let record = if record.is_dir() { record.join(REPORT) } else { record };
    let report = read(&record)?;
    let html = args.html.unwrap_or_else(|| record.with_extension("html"));
    Output::File(record.clone()).differs_from(Some(&html))?;
    let output = Output::new(args.json);
    output.differs_from(Some(&html))?;
    write(&html, &report_html(&report))?;
    output.emit(&Made { record: &record, html: &html }, |_| format!("{}\n", html.display()))
}

/// Reads a record.
///
/// # Errors
///
/// If it cannot be read, or is none of this version's.
pub(super) fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read(path).map_err(Error::read(path))?;
    let malformed = |what: &str, found: String, expected: &str| Error::Malformed {
        path: path.to_path_buf(),
        what: what.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let broken = |error: serde_json::Error| {
        malformed(
            "record",
            error.to_string(),
            "what `undertext audit --json` or `undertext demo --json` writes",
        )
    };
    let value: Value = serde_json::from_slice(&text).map_err(broken)?;
    match value.get("schema_version").and_then(Value::as_u64) {
        None => {}
        Some(version) if version == u64::from(schema::VERSION) => {}
        Some(version) => {
            let expected = schema::VERSION.to_string();
            return Err(malformed("schema_version", version.to_string(), &expected));
        }
    }
    serde_json::from_value(value).map_err(broken)
}
