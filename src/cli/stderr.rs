//! What is said on stderr: errors, notes, progress and, with `-v`, what the program does; as text or as JSON lines.
//!
//! With `--log-format json` every line is one JSON object: `time` (RFC 3339, UTC), `level` (`error`, `warn`, `info`, `debug`,
//! `trace`), `message`, and fields of its own, such as `exit_code` of an error or those of [progress](super::progress).
//!
//! The library says what it does through the `log` crate; so do other crates, whose warnings are shown with `-v` too.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use indicatif::ProgressBar;
use log::LevelFilter;
use serde::Serialize;
use serde_json::{Map, Value};

use super::log as run_log;
use crate::error::Error;
use crate::report::{Meaning, Style, printable};

/// How lines on stderr look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Why the program failed.
    Error,
    /// What another crate warns of.
    Warning,
    /// What a user should know.
    Note,
    /// Progress, and what was asked for.
    Info,
    /// What is done, with `-v`.
    Debug,
    /// Every step of it, with `-vv`.
    Trace,
}

impl Level {
    /// What a line of text begins with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Error => "error: ",
            Self::Warning => "warning: ",
            Self::Note => "note: ",
            Self::Info => "",
            Self::Debug => "debug: ",
            Self::Trace => "trace: ",
        }
    }

    /// In a JSON line.
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warn",
            Self::Note | Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// A JSON line.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    level: &'static str,
    message: &'a str,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

/// Whether the user wants nothing on stderr but errors and what is asked for.
static QUIET: AtomicBool = AtomicBool::new(false);
static JSON: AtomicBool = AtomicBool::new(false);
/// The bar that lines must not run into.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// `--quiet`, `--verbose` (how often) and `--log-format`.
pub(super) fn set(quiet: bool, verbose: u8, format: Format) {
    QUIET.store(quiet, Ordering::Relaxed);
    JSON.store(format == Format::Json, Ordering::Relaxed);
    // One logger serves all calls of this process.
    let _ = log::set_logger(&Logger);
    log::set_max_level(match (quiet, verbose) {
        (true, _) | (false, 0) => LevelFilter::Off,
        (false, 1) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    });
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

pub(super) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// From now on lines go above this bar; or there is none any more.
pub(super) fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Says something to the user that is not the result.
pub(super) fn notice(text: &str) {
    mention(Level::Note, text, &Map::new());
}

/// What the user has asked for is said in any case.
pub(super) fn say(text: &str) {
    tell(Level::Info, text, &Map::new());
}

/// To stderr unless the user wants it quiet; to the run's log in any case.
pub(super) fn mention(level: Level, text: &str, fields: &Map<String, Value>) {
    if is_quiet() { run_log::keep(&format!("{}{text}", level.prefix())) } else { tell(level, text, fields) }
}

/// Prints an error on one line.
pub(super) fn error(error: &Error) {
    failure(&error.to_string(), error.exit_code());
}

/// Prints why the program ends with `exit_code`, on one line.
pub(super) fn failure(message: &str, exit_code: u8) {
    // A driver's or compiler's report may have many lines.
    let line: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let fields = Map::from_iter([("exit_code".to_owned(), exit_code.into())]);
    tell(Level::Error, &line.join("; "), &fields);
}

/// One line, to stderr and to the run's log if there is one; nobody is left to tell if that fails.
fn tell(level: Level, text: &str, fields: &Map<String, Value>) {
    // The log is for people, whatever stderr is for, and later sessions add to it.
    run_log::keep(&format!("{}{text}", level.prefix()));
    let print = || {
        let stderr = std::io::stderr();
        let _ = if is_json() {
            let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
            let line = JsonLine { time, level: level.name(), message: text, fields };
            writeln!(&stderr, "{}", serde_json::to_string(&line).unwrap_or_default())
        } else {
            let choice = AutoStream::choice(&stderr);
            let style = Style { width: None, colour: choice != ColorChoice::Never };
            let line = painted(level, &printable(text), style);
            if style.colour {
                writeln!(AutoStream::new(stderr, choice), "{line}")
            } else {
                writeln!(&stderr, "{line}")
            }
        };
    };
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    bar.map_or_else(print, |bar| bar.suspend(print));
}

/// A line of text: what is wrong or worth a note begins in colour, what was asked for out of curiosity is faint.
fn painted(level: Level, text: &str, style: Style) -> String {
    let (begins, rest) = match level {
        Level::Error => (Meaning::Bad, Meaning::Plain),
        Level::Warning => (Meaning::Unsure, Meaning::Plain),
        Level::Note => (Meaning::Aside, Meaning::Plain),
        Level::Info => (Meaning::Plain, Meaning::Plain),
        Level::Debug | Level::Trace => (Meaning::Faint, Meaning::Faint),
    };
    let prefix = level.prefix();
    if prefix.is_empty() {
        return text.to_owned();
    }
    format!("{} {}", style.paint(begins, prefix.trim_end()), style.paint(rest, text))
}

/// What the library and other crates say of what they do.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let ours = metadata.target().split("::").next() == Some(env!("CARGO_PKG_NAME"));
        metadata.level() <= log::max_level() && (ours || metadata.level() <= log::Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error | log::Level::Warn => Level::Warning,
            log::Level::Info | log::Level::Debug => Level::Debug,
            log::Level::Trace => Level::Trace,
        };
        let mut fields = Fields::default();
        // Only a visitor fails, and this one does not.
        let _ = record.key_values().visit(&mut fields);
        let message = record.args().to_string();
        let message =
            if level == Level::Warning { format!("{}: {message}", record.target()) } else { message };
        mention(level, &message, &fields.0);
    }

    fn flush(&self) {}
}

/// A record's fields as JSON.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<'kvs> log::kv::VisitSource<'kvs> for Fields {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        let json = match (value.to_u64(), value.to_f64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => value.to_string().into(),
        };
        self.0.insert(key.as_str().to_owned(), json);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_begin_in_their_colours() {
        let style = Style { width: None, colour: true };
        assert_eq!(painted(Level::Error, "x", style), "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m x");
        assert_eq!(painted(Level::Note, "x", style), "\u{1b}[36mnote:\u{1b}[0m x");
        assert_eq!(painted(Level::Info, "x", style), "x");
        assert_eq!(painted(Level::Debug, "x", Style::PLAIN), "debug: x");
    }

    #[test]
    fn only_our_own_details_are_shown() {
        log::set_max_level(LevelFilter::Debug);
        let enabled = |target: &str, level| {
            log::Log::enabled(&Logger, &log::Metadata::builder().target(target).level(level).build())
        };
        assert!(enabled("undertext::gpu::tune", log::Level::Debug));
        assert!(!enabled("undertext::gpu::tune", log::Level::Trace));
        assert!(enabled("wgpu_hal", log::Level::Warn) && !enabled("wgpu_hal", log::Level::Info));
    }
}
