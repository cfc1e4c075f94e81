//! Text to token ids and back.

use std::path::Path;

use crate::error::Result;

/// A checkpoint's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads `tokenizer.json` (and `tokenizer_config.json` where there is one) of a directory.
    ///
    /// # Errors
    ///
    /// If the file is missing or broken, or gives ids beyond `vocab`.
    pub fn read(_checkpoint: &Path, _vocab: usize) -> Result<Self> {
        unimplemented!()
    }

    /// Token ids of `text` with the special tokens the tokenizer adds by default (BOS).
    ///
    /// # Errors
    ///
    /// If the text gives an id beyond the vocabulary.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>> {
        unimplemented!()
    }

    /// The text of `ids`, special tokens skipped, spaces cleaned up where the tokenizer's config says so.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn decode(&self, _ids: &[u32]) -> Result<String> {
        unimplemented!()
    }
}
