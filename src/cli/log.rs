//! What a run said on stderr, with times, in a file of its folder.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

static LOG: Mutex<Log> = Mutex::new(Log::Off);

#[derive(Debug)]
enum Log {
    /// Nobody wants to know.
    Off,
    /// Lines wait for their file.
    Waiting(Vec<String>),
    /// Lines go to the file.
    File(File),
}

/// The time, to the second, in UTC by RFC 3339.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Begins to keep what is said, until there is a file for it.
pub(super) fn begin() {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Log::Waiting(Vec::new());
}

/// Appends what was said so far to the file, and everything from now on.
///
/// # Errors
///
/// [`Error::Write`].
pub(super) fn open(path: &Path) -> Result<()> {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(Error::write(path))?;
    if let Log::Waiting(lines) = &*log {
        file.write_all(lines.concat().as_bytes()).map_err(Error::write(path))?;
    }
    *log = Log::File(file);
    Ok(())
}

/// Ends it.
pub(super) fn end() {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Log::Off;
}

/// Keeps a line.
pub(super) fn keep(line: &str) {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if let Log::Off = &*log {
        return;
    }
    let line = format!("{} {}\n", now(), line.replace('\n', "\n    "));
    match &mut *log {
        Log::Off => {}
        Log::Waiting(lines) => lines.push(line),
        // The run goes on without a log.
        Log::File(file) => drop(file.write_all(line.as_bytes())),
    }
}
