//! Small text files, read whole, with a limit and with errors that name the file; and replaced whole.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// First bytes of the text file that git-LFS leaves in place of a file it has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Reads a file of at most `limit_bytes`.
///
/// # Errors
///
/// If it is missing (told with `what` and `remedy`), not readable, a git-LFS pointer, or longer.
pub(crate) fn read_bytes(path: &Path, what: &'static str, remedy: &str, limit_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Missing { path: path.to_path_buf(), what, remedy: remedy.to_owned() }
        }
        _ => Error::Read { path: path.to_path_buf(), source },
    })?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long, without trusting its metadata.
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::read(path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit_bytes {
        return Err(malformed(path, what, "a longer file", format!("at most {limit_bytes} bytes")));
    }
    not_lfs_pointer(path, &bytes)?;
    log::debug!(path:% = path.display(), bytes = bytes.len(); "read {} ({} bytes)", path.display(), bytes.len());
    Ok(bytes)
}

/// Refuses the pointer that git-LFS leaves in place of a large file.
///
/// # Errors
///
/// If `start`, the file's first bytes, is such a pointer's start.
pub(crate) fn not_lfs_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if start.starts_with(LFS_POINTER) {
        return Err(malformed(
            path,
            "content",
            "a git-LFS pointer",
            "the file itself: run `git lfs pull` in its repository".to_owned(),
        ));
    }
    Ok(())
}

/// Reads a UTF-8 file of at most `limit_bytes`.
///
/// # Errors
///
/// As [`read_bytes`], and if it is empty, is not UTF-8 or starts with a byte-order mark.
pub(crate) fn read_text(path: &Path, what: &'static str, remedy: &str, limit_bytes: u64) -> Result<String> {
    let bytes = read_bytes(path, what, remedy, limit_bytes)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        let expected = "plain UTF-8: save the file without a byte-order mark".to_owned();
        return Err(malformed(path, what, "a byte-order mark", expected));
    }
    if bytes.is_empty() {
        return Err(malformed(path, what, "an empty file", "JSON".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        malformed(path, what, &format!("bytes that are not UTF-8 at offset {at}"), "UTF-8 text".to_owned())
    })
}

/// Reads a JSON file of at most `limit_bytes`.
///
/// # Errors
///
/// As [`read_text`], and if it is not JSON.
pub(crate) fn read_json(path: &Path, what: &'static str, remedy: &str, limit_bytes: u64) -> Result<Value> {
    let text = read_text(path, what, remedy, limit_bytes)?;
    serde_json::from_str(&text).map_err(|error| malformed(path, what, &error.to_string(), "JSON".to_owned()))
}

/// Reads a JSON file whose outermost value is an object.
///
/// # Errors
///
/// As [`read_json`], and if it holds another kind of value.
pub(crate) fn read_object(
    path: &Path,
    what: &'static str,
    remedy: &str,
    limit_bytes: u64,
) -> Result<Map<String, Value>> {
    match read_json(path, what, remedy, limit_bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(malformed(path, what, kind(&other), "an object".to_owned())),
    }
}

/// Replaces a file in one step: whoever reads it finds the old content or the new one, even after a power failure.
///
/// # Errors
///
/// [`Error::Write`]; the old content is then still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(path.as_os_str()));
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        // What cannot be removed either is of no use to anybody.
        let _ = std::fs::remove_file(&temporary);
        Error::Write { path: path.to_path_buf(), source }
    })?;
    // The new name is on the disk only when its folder is; not every system can be told so.
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// What kind of JSON value this is, for error messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Shorthand for [`Error::Malformed`].
pub(crate) fn malformed(path: &Path, what: &str, found: &str, expected: String) -> Error {
    Error::Malformed { path: path.to_path_buf(), what: what.to_owned(), found: found.to_owned(), expected }
}
