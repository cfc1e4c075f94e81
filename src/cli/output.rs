//! stdout, stderr and report files.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::json::rows;
use super::log;
use crate::checkpoint::files::replace;
use crate::error::{Error, Result};
use crate::report::Style;

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
    pub(super) fn new(json: Option<Option<PathBuf>>) -> Self {
        match json {
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

fn style() -> Style {
    if std::io::stdout().is_terminal() { Style::Terminal } else { Style::Plain }
}

/// Prints to stdout. A reader that has gone away (`| head`) wants no more: that is no error.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
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

/// Whether the user wants nothing on stderr but errors and what is asked for.
static QUIET: AtomicBool = AtomicBool::new(false);

/// `--quiet`.
pub(super) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Says something to the user that is not the result.
pub(super) fn notice(text: &str) {
    mention(&format!("note: {text}"));
}

/// One line to stderr unless the user wants it quiet; to the run's log in any case.
pub(super) fn mention(line: &str) {
    if is_quiet() { log::keep(line) } else { say(line) }
}

/// Prints an error on one line.
pub(super) fn error(error: &Error) {
    // A driver's or compiler's report may have many lines.
    let lines = error.to_string();
    let line: Vec<_> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    say(&format!("error: {}", line.join("; ")));
}

/// One line to stderr, and to the run's log if there is one; nobody is left to tell if that fails.
pub(super) fn say(line: &str) {
    log::keep(line);
    let _ = writeln!(std::io::stderr(), "{line}");
}
