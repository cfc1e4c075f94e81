//! What is on disk: a checkpoint directory in Hugging Face layout.

mod config;
pub(crate) mod files;
mod index;
mod packed;
mod shard;
mod tensors;
mod tokenizer;
mod writer;

pub use config::{Config, RopeScaling};
pub use tensors::{Tensor, Tensors};
pub use tokenizer::Tokenizer;
pub use writer::Draft;
pub(crate) use writer::{Kind, TensorWriter};

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A checkpoint directory: `config.json`, safetensors files and, usually, `tokenizer.json`.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens the directory and reads `config.json` and the headers of the weight files, no weights.
    ///
    /// # Errors
    ///
    /// If the directory or a file is missing, broken or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let config = Config::read(path)?;
        let tensors = Tensors::open(path)?;
        Ok(Self { path: path.to_path_buf(), config, tensors })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a checkpoint whose forward pass is not the `other`'s; `why` says who needs that.
    ///
    /// # Errors
    ///
    /// [`Error::CheckpointsDiffer`].
    pub(crate) fn must_run_like(&self, other: &Self, why: &str) -> Result<()> {
        let Some((key, found, expected)) = self.config.difference(&other.config) else { return Ok(()) };
        Err(Error::CheckpointsDiffer {
            path: self.path.clone(),
            target: other.path.clone(),
            what: format!("{key} in config.json"),
            found,
            expected: format!("{expected}, {why}"),
        })
    }

    /// The architecture's numbers.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    #[must_use]
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// If it is missing or broken, or gives ids beyond the vocabulary.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::read(&self.path, self.config.vocab_size)
    }
}
