//! The text of single tokens.

use super::{Metric, Prepared};
use crate::checkpoint::Tokenizer;
use crate::engine::{Ask, Task};
use crate::error::Result;

/// Tokens before one that it is decoded with: enough for the blank before a word, and for the bytes of a character.
const BEFORE: usize = 4;

impl Prepared {
    /// The truths of a metric in pieces, one a token that is asked for; in the order of the file.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn truth_tokens(&self, tokenizer: &Tokenizer, metric: Metric) -> Result<Vec<Vec<String>>> {
        let pieces = |task: &Task| match task.ask {
            Ask::Score { from } => pieces(tokenizer, &task.tokens, from),
            Ask::Generate { .. } => Ok(Vec::new()),
        };
        self.tasks()[self.truths(metric)].iter().map(pieces).collect()
    }
}

/// What each token from number `from` on adds to the text before it. A character of several tokens is whole in the last of
/// them; special tokens add nothing.
fn pieces(tokenizer: &Tokenizer, tokens: &[u32], from: usize) -> Result<Vec<String>> {
    let piece = |at: usize| {
        let first = at.saturating_sub(BEFORE);
        let (before, with) = (tokenizer.decode(&tokens[first..at])?, tokenizer.decode(&tokens[first..=at])?);
        let alike = before.chars().zip(with.chars()).take_while(|(a, b)| a == b).count();
        Ok(with.chars().skip(alike).collect())
    };
    (from..tokens.len()).map(piece).collect()
}
