//! Arms whose rounding looks at the update, and where that leads from.

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::Source;

/// The arm with the target from which its update leads, if its rounding asks for one.
///
/// # Errors
///
/// If it does and there is none, or the two are not of one architecture.
pub fn with_update(source: Source, target: Option<&Arc<Checkpoint>>) -> Result<Source> {
    if !source.precision.rounding().needs_target() {
        return Ok(source);
    }
    let path = source.checkpoint.path();
    let Some(target) = target else {
        return Err(Error::Flag {
            flag: "--keep-from",
            found: "nothing".to_owned(),
            expected: format!(
                "the checkpoint that {} was made from, for {}",
                path.display(),
                source.precision
            ),
        });
    };
    if !source.checkpoint.config().runs_like(target.config()) {
        return Err(Error::CheckpointsDiffer {
            path: path.to_path_buf(),
            target: target.path().to_path_buf(),
            what: "the architecture in config.json".to_owned(),
            found: "another".to_owned(),
            expected: "the target's, to keep the update from it".to_owned(),
        });
    }
    Ok(source.with_target(target))
}
