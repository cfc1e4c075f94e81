//! `--released`: what scheme a quantized file is in.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::quantize::RECORD;
use crate::audit::ReleasedRequest;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::files::read_text;
use crate::error::{Error, Result};
use crate::quant::Scheme;

/// Largest record of `undertext quantize` that is read: it has a line for each matrix.
const LIMIT_BYTES: u64 = 64 << 20;

/// What is needed of that record.
#[derive(Deserialize)]
struct Written {
    scheme: String,
}

/// The request with its scheme, if the file tells it: by the record that `undertext quantize` left, or by its packed
/// matrices.
///
/// # Errors
///
/// If the record or the checkpoint cannot be read.
pub(super) fn with_scheme(request: ReleasedRequest) -> Result<ReleasedRequest> {
    let scheme = match request.scheme {
        Some(scheme) => Some(scheme),
        None => scheme_of(&request.path)?,
    };
    Ok(ReleasedRequest { scheme, ..request })
}

fn scheme_of(directory: &Path) -> Result<Option<Scheme>> {
    match record::<Written>(directory)? {
        Some(written) => super::quantize::scheme(&written.scheme).map(Some),
        None => Ok(Checkpoint::open(directory)?.tensors().packed_scheme()),
    }
}

/// The record that `undertext quantize` left in a directory, if there is one.
///
/// # Errors
///
/// If it cannot be read.
pub(super) fn record<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>> {
    let path = directory.join(RECORD);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, "the record of `undertext quantize`", "", LIMIT_BYTES)?;
    serde_json::from_str(&text).map(Some).map_err(|error| Error::Malformed {
        path,
        what: "the record".to_owned(),
        found: error.to_string(),
        expected: "what `undertext quantize` wrote".to_owned(),
    })
}
