//! `--released`: what a quantized file's record says of it.

use serde::Deserialize;

use super::quantize::{read_record, scheme};
use crate::audit::ReleasedRequest;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::quant::Share;

/// What is needed of that record.
#[derive(Deserialize)]
struct Written {
    scheme: String,
    #[serde(default)]
    keep: Option<f64>,
}

/// The request with the scheme and the share of the update that were asked of `undertext quantize`, as far as they are told: by
/// the record that it left, and the scheme by packed matrices, too.
///
/// # Errors
///
/// If the record or the checkpoint cannot be read.
pub(super) fn with_record(request: ReleasedRequest) -> Result<ReleasedRequest> {
    let written: Option<Written> = read_record(&request.path)?;
    let scheme = match (request.scheme, &written) {
        (Some(scheme), _) => Some(scheme),
        (None, Some(written)) => Some(scheme(&written.scheme)?),
        (None, None) => Checkpoint::open(&request.path)?.tensors().packed_scheme(),
    };
    let keep = written.and_then(|written| written.keep).and_then(Share::new);
    Ok(ReleasedRequest { scheme, keep, ..request })
}
