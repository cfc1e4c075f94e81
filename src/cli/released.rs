//! `--released`: what scheme a quantized file is in.

use std::path::Path;

use serde::Deserialize;

use super::quantize::read_record;
use crate::audit::ReleasedRequest;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::quant::Scheme;

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
    match read_record::<Written>(directory)? {
        Some(written) => super::quantize::scheme(&written.scheme).map(Some),
        None => Ok(Checkpoint::open(directory)?.tensors().packed_scheme()),
    }
}
