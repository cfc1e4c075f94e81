//! `--released`: what scheme a quantized file is in.

use std::path::Path;

use serde::Deserialize;

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
    let record = directory.join("undertext.json");
    if !record.exists() {
        return Ok(Checkpoint::open(directory)?.tensors().packed_scheme());
    }
    let text = read_text(&record, "the record of `undertext quantize`", "", LIMIT_BYTES)?;
    let written: Written = serde_json::from_str(&text).map_err(|error| Error::Malformed {
        path: record.clone(),
        what: "the record".to_owned(),
        found: error.to_string(),
        expected: "what `undertext quantize` wrote".to_owned(),
    })?;
    super::quantize::scheme(&written.scheme).map(Some)
}
