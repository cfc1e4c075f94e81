//! Text to token ids and back.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::ModelWrapper;

use super::files::{malformed, read_bytes, read_object};
use crate::error::{Error, Result};

/// Longest tokenizer file that is read. Those of the largest vocabularies have some 30 MB.
const LIMIT_BYTES: u64 = 512 << 20;

/// What transformers' `clean_up_tokenization` replaces, in its order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A checkpoint's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocab: usize,
    clean_up: bool,
    prefix: Vec<u32>,
    declares_bos: Option<bool>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` (and `tokenizer_config.json` where there is one) of a directory.
    ///
    /// The directory need not be the model's own. Truncation and padding that the file may have saved are switched
    /// off, as transformers does unless a call asks for them.
    ///
    /// # Errors
    ///
    /// If the file is missing or broken, or gives ids beyond `vocab`.
    pub fn read(checkpoint: &Path, vocab: usize) -> Result<Self> {
        let path = checkpoint.join("tokenizer.json");
        let remedy = if checkpoint.join("tokenizer.model").exists() {
            "there is only tokenizer.model: convert it with transformers' AutoTokenizer and save_pretrained"
        } else {
            "copy the tokenizer of the base model into the directory, or name another one's directory"
        };
        let bytes = read_bytes(&path, "the tokenizer", remedy, LIMIT_BYTES)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
            malformed(&path, "tokenizer", &error.to_string(), "a tokenizer.json".to_owned())
        })?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| malformed(&path, "truncation", &error.to_string(), "none".to_owned()))?;

        let config_path = checkpoint.join("tokenizer_config.json");
        let config = if config_path.exists() {
            read_object(&config_path, "tokenizer_config.json", "", LIMIT_BYTES)?
        } else {
            serde_json::Map::new()
        };
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(malformed(&config_path, key, &other.to_string(), "true or false".to_owned())),
        };
        // Since version 5 transformers cleans up only if told to, and not after BPE unless told twice.
        let forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
        let may_clean_up =
            !matches!(inner.get_model(), ModelWrapper::BPE(_)) || flag(forced)?.unwrap_or(false);
        let clean_up = flag("clean_up_tokenization_spaces")?.unwrap_or(false) && may_clean_up;
        let declares_bos = flag("add_bos_token")?;

        if let Some(id) = inner.get_vocab(true).into_values().max().filter(|id| *id as usize >= vocab) {
            return Err(Error::TokenId { path, id, vocab });
        }
        let mut tokenizer = Self { path, inner, vocab, clean_up, prefix: Vec::new(), declares_bos };
        tokenizer.prefix = tokenizer.encode("")?;
        Ok(tokenizer)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the tokenizer gives for an empty text: the special tokens it adds (for Llama the BOS, or nothing).
    #[must_use]
    pub fn added(&self) -> &[u32] {
        &self.prefix
    }

    /// What `tokenizer_config.json` says as `add_bos_token`. Recorded, not obeyed: `tokenizer.json` decides.
    #[must_use]
    pub fn declares_bos(&self) -> Option<bool> {
        self.declares_bos
    }

    /// Token ids of `text` with the special tokens the tokenizer adds by default (BOS).
    ///
    /// # Errors
    ///
    /// If the text gives an id beyond the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| malformed(&self.path, "encoding", &error.to_string(), "token ids".to_owned()))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|id| **id as usize >= self.vocab) {
            Some(&id) => Err(Error::TokenId { path: self.path.clone(), id, vocab: self.vocab }),
            None => Ok(ids.to_vec()),
        }
    }

    /// The text of `ids`, special tokens skipped, spaces cleaned up where the tokenizer's config says so.
    ///
    /// The rule is that of transformers 5: `clean_up_tokenization_spaces` is false unless given, and has no effect
    /// on a BPE model.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.decode_plain(ids)?;
        Ok(if self.clean_up { clean_up(text) } else { text })
    }

    /// The text of `ids`, special tokens skipped and spaces cleaned up, whatever the tokenizer's config says.
    ///
    /// That is how MUSE decodes: it passes `clean_up_tokenization_spaces=True` to a transformers 4, which obeys for
    /// every kind of model.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn decode_cleaned(&self, ids: &[u32]) -> Result<String> {
        Ok(clean_up(self.decode_plain(ids)?))
    }

    /// Ids, in ascending order, whose text on their own contains one of `needles`.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn ids_containing(&self, needles: &[&str]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in self.inner.get_vocab(true).into_values() {
            let text = self.decode_plain(&[id])?;
            if needles.iter().any(|needle| text.contains(needle)) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn decode_plain(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|error| malformed(&self.path, "decoding", &error.to_string(), "text".to_owned()))
    }
}

/// transformers' `clean_up_tokenization`.
fn clean_up(text: String) -> String {
    CLEAN_UP.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::clean_up;

    #[test]
    fn clean_up_replaces_in_order() {
        // Made with transformers 5.23's clean_up_tokenization.
        let cases = [
            ("He said , yes .", "He said, yes."),
            ("Is it ? No !", "Is it? No!"),
            ("do n't I 'm it 's we 've they 're", "don't I'm it's we've they're"),
            ("rock ' n ' roll", "rock'n'roll"),
            // " ." is replaced before " ' " and the text is not scanned again.
            (" ' .", " '."),
            ("a  .", "a ."),
            ("I 'll he 'd", "I 'll he 'd"),
        ];
        for (text, cleaned) in cases {
            assert_eq!(clean_up(text.to_owned()), cleaned, "{text:?}");
        }
    }
}
