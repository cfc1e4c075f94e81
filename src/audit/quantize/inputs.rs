//! What a rounded checkpoint depends on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::store::{ModelInputs, engine_revision, hash_of_tokenizer};
use super::QuantizePlan;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// What the codes depend on besides the plan, known by content as an audit's [`Inputs`](crate::audit::Inputs) are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizeInputs {
    /// [`engine_revision`]; files of earlier builds do not say it.
    #[serde(default)]
    pub engine: String,
    /// The checkpoint, called by its path.
    pub model: ModelInputs,
    /// Hash of its tokenizer's files.
    pub tokenizer: String,
    /// The checkpoint from which the update leads, called by its path, if one was given.
    pub target: Option<ModelInputs>,
    /// Hash of the text that was looked at, if one was given.
    pub calibrate: Option<String>,
}

impl QuantizeInputs {
    /// Reads and hashes everything that a plan names. `watch` is told the checkpoint, and how many of how many bytes of it are
    /// done; its error ends the reading.
    ///
    /// # Errors
    ///
    /// If something cannot be read, and what `watch` returns.
    pub fn of(plan: &QuantizePlan, watch: &mut dyn FnMut(&str, u64, u64) -> Result<()>) -> Result<Self> {
        let mut read =
            |path: &Path| ModelInputs::of(path.display().to_string(), &Checkpoint::open(path)?, watch);
        let (model, target) = (read(&plan.model)?, plan.target.as_deref().map(read).transpose()?);
        let text = |path: &PathBuf| std::fs::read(path).map_err(Error::read(path));
        let text = plan.calibrate.as_ref().map(text).transpose()?;
        Ok(Self {
            engine: engine_revision().to_owned(),
            model,
            tokenizer: hash_of_tokenizer(&plan.model)?,
            target,
            calibrate: text.map(|text| blake3::hash(&text).to_hex().to_string()),
        })
    }
}
