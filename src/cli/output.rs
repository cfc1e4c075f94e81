//! stdout and report files.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anstream::{AutoStream, ColorChoice};
use clap::Args;
use serde::Serialize;

use super::json::rows;
pub(super) use super::stderr::{error, notice, say};
use crate::checkpoint::files::replace;
use crate::error::{Error, Result};
use crate::report::Style;

/// Columns of a terminal that does not say how many it has, or says nonsense.
const WIDTH: u16 = 80;

/// Least columns that a text is made to fit.
const LEAST_WIDTH: u16 = 20;

/// `--json`.
#[derive(Clone, Debug, Args)]
pub(super) struct JsonArgs {
    /// Print one JSON value instead of text; with =FILE, print text and write the JSON there
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "absent, without a value, with a value")]
    json: Option<Option<PathBuf>>,
}

/// Where a command's result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Text to stdout.
    Text,
    /// One JSON value to stdout.
    Json,
    /// Text to stdout, JSON to the file.
    File(PathBuf),
}

impl Output {
    /// Reads the value of `--json`.
    pub(super) fn new(args: JsonArgs) -> Self {
        match args.json {
            None => Self::Text,
            Some(None) => Self::Json,
            Some(Some(path)) => Self::File(path),
        }
    }

    /// Fails if the page would go to the JSON's file.
    pub(super) fn differs_from(&self, html: Option<&Path>) -> Result<()> {
        match (self, html) {
            (Self::File(json), Some(html)) if json == html => Err(Error::Flag {
                flag: "--html",
                found: html.display().to_string(),
                expected: "another file than the record's".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Hands a result over: `value` as JSON or `text`, as the user asked.
    pub(super) fn emit(&self, value: &impl Serialize, text: impl FnOnce(Style) -> String) -> Result<()> {
        match self {
            Self::Json => return print(&Self::to_json(value)?),
            Self::File(path) => write(path, &Self::to_json(value)?)?,
            Self::Text => {}
        }
        print(&text(style()))
    }

    /// The value as a file's text.
    pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
        let json = serde_json::to_string_pretty(value);
        let json = json.map_err(|error| Error::write(Path::new("JSON"))(error.into()))?;
        Ok(rows(&json) + "\n")
    }

    /// Writes the file, if there is one; only then is the value made.
    pub(super) fn save<T: Serialize>(&self, value: impl FnOnce() -> T) -> Result<()> {
        match self {
            Self::File(path) => write(path, &Self::to_json(&value())?),
            Self::Text | Self::Json => Ok(()),
        }
    }
}

/// What stdout can show.
fn style() -> Style {
    let stdout = std::io::stdout();
    let width = || {
        let found = terminal_size::terminal_size_of(&stdout).map(|(terminal_size::Width(width), _)| width);
        found.filter(|width| *width >= LEAST_WIDTH).unwrap_or(WIDTH)
    };
    Style {
        width: stdout.is_terminal().then(width),
        colour: AutoStream::choice(&stdout) != ColorChoice::Never,
    }
}

/// Prints to stdout. A reader that has gone away (`| head`) wants no more: that is no error.
pub(super) fn print(text: &str) -> Result<()> {
    let stdout = std::io::stdout().lock();
    // Without colours nothing is taken away either: a model may say what looks like one.
    let choice = match AutoStream::choice(&stdout) {
        ColorChoice::Never => ColorChoice::AlwaysAnsi,
        choice => choice,
    };
    let mut stdout = AutoStream::new(stdout, choice);
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::write(Path::new("stdout"))(error)),
        _ => Ok(()),
    }
}

/// Replaces the file in one step, so that nobody ever sees half a report. What is no plain file (a pipe, a terminal) is
/// written to directly.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if path.exists() && !path.is_file() {
        return std::fs::write(path, text).map_err(Error::write(path));
    }
    replace(path, text.as_bytes())
}
