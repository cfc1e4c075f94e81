//! What a rounded checkpoint was made of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::QuantizePlan;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// What a file was made of, by content: hashes in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Of the checkpoint's weight files.
    pub model: String,
    /// Of the target's, if one was given.
    pub target: Option<String>,
    /// Of the text that was looked at, if one was given.
    pub calibrate: Option<String>,
}

impl Sources {
    /// Reads everything that a plan names. `watch` is told how many of how many bytes of a checkpoint are read.
    ///
    /// # Errors
    ///
    /// If something cannot be read, and what `watch` says.
    pub fn of(plan: &QuantizePlan, watch: &mut dyn FnMut(&Path, u64, u64) -> Result<()>) -> Result<Self> {
        let mut weights = |path: &Path| {
            Checkpoint::open(path)?.tensors().content_hash(&mut |done, total| watch(path, done, total))
        };
        let (model, target) = (weights(&plan.model)?, plan.target.as_deref().map(weights).transpose()?);
        let text = |path: &PathBuf| std::fs::read(path).map_err(Error::read(path));
        let text = plan.calibrate.as_ref().map(text).transpose()?;
        Ok(Self { model, target, calibrate: text.map(|text| blake3::hash(&text).to_hex().to_string()) })
    }
}
