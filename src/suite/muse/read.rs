//! MUSE's JSON files, as its `load_data.py` writes them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::files::{kind, malformed, read_json};
use crate::error::{Error, Result};

/// Longest data file that is read. MUSE's own have less than a megabyte.
const LIMIT_BYTES: u64 = 256 << 20;

const REMEDY: &str =
    "a MUSE corpus holds knowmem/*.json, verbmem/forget.json and privleak/*.json; name its directory";

/// One of MUSE's files: an array of examples.
pub(super) struct File {
    path: PathBuf,
    examples: Vec<Value>,
}

impl File {
    /// Reads `name` below `dir`.
    ///
    /// # Errors
    ///
    /// If it is missing, empty, not UTF-8, or anything but an array with an example.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        match read_json(&path, "data file", REMEDY, LIMIT_BYTES)? {
            Value::Array(examples) if examples.is_empty() => {
                Err(malformed(&path, "data file", "an empty array", "at least one example".to_owned()))
            }
            Value::Array(examples) => Ok(Self { path, examples }),
            other => Err(malformed(&path, "data file", kind(&other), "an array of examples".to_owned())),
        }
    }

    /// Keeps the first `limit` examples.
    pub(super) fn limited(mut self, limit: Option<usize>) -> Self {
        self.examples.truncate(limit.unwrap_or(usize::MAX));
        self
    }

    /// The examples as texts.
    ///
    /// # Errors
    ///
    /// If one is not a string.
    pub(super) fn texts(self) -> Result<Vec<String>> {
        let Self { path, examples } = self;
        let text = |(index, example)| match example {
            Value::String(text) => Ok(text),
            other => Err(malformed(&path, &format!("example {index}"), kind(&other), "a string".to_owned())),
        };
        examples.into_iter().enumerate().map(text).collect()
    }

    /// Two string fields of each example.
    ///
    /// # Errors
    ///
    /// If an example is not an object, or lacks a field, or has something else than a string there.
    pub(super) fn pairs(self, fields: [&str; 2]) -> Result<Vec<[String; 2]>> {
        let Self { path, examples } = self;
        let field = |index: usize, example: &mut Value, name: &str| -> Result<String> {
            let wrong =
                |found: &str, what: &str| -> Error { malformed(&path, what, found, "a string".to_owned()) };
            let place = format!("example {index}, field {name}");
            match example {
                Value::Object(map) => match map.remove(name) {
                    Some(Value::String(text)) => Ok(text),
                    Some(other) => Err(wrong(kind(&other), &place)),
                    None => {
                        let keys: Vec<_> = map.keys().map(String::as_str).collect();
                        Err(wrong(&format!("only the fields [{}]", keys.join(", ")), &place))
                    }
                },
                other => {
                    let expected = format!("an object with {} and {}", fields[0], fields[1]);
                    Err(malformed(&path, &format!("example {index}"), kind(other), expected))
                }
            }
        };
        let examples = examples.into_iter().enumerate();
        examples
            .map(|(index, mut example)| {
                Ok([field(index, &mut example, fields[0])?, field(index, &mut example, fields[1])?])
            })
            .collect()
    }
}
