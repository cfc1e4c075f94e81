//! MUSE: does the model still recite the forget set (VerbMem), know it (KnowMem), and betray that it was
//! trained on it (PrivLeak)?
//!
//! Prompts, cuts and special tokens are those of MUSE's `metrics/*.py` (github.com/swj0419/muse_bench,
//! commit fcd6651), to the letter:
//!
//! | metric | prompt | answer | truth |
//! |---|---|---|---|
//! | VerbMem | `prompt` as it stands | 128 tokens greedily, uncut | `gt` cut to its first 128 tokens, BOS among them |
//! | KnowMem | ten question-answer pairs, then `Question: …\nAnswer: ` with the space at the end | 32 tokens greedily, cut where the next question begins | `answer` |
//! | PrivLeak | the whole text | log-probabilities of all tokens but the first | - |
//! | truths | VerbMem's and KnowMem's prompts, each with its truth | log-probabilities of the truth's tokens | - |
//!
//! Texts are encoded with the special tokens that the tokenizer adds by itself and decoded without them, with
//! transformers' `clean_up_tokenization_spaces`.
//!
//! Truths are not MUSE's but TOFU's and open-unlearning's: prompt and truth are encoded as one text, as
//! lm-evaluation-harness does it, and what the prompt's own tokens do not begin with belongs to the truth.
//!
//! KnowMem answers also end at a token that holds one of the cut marks: nothing after it can count.
//!
//! One rule is ours, since MUSE leaves it to the model to fail: what does not fit the context is cut, and
//! counted ([`Prepared::truncated`]). A prompt loses tokens from its left, after the tokenizer's BOS, until it
//! leaves room for the answer; a scored text loses its end.

mod measure;
mod pieces;
mod prepare;
mod read;

use std::fmt;
use std::path::{Path, PathBuf};

pub use measure::{Answer, Answers, Membership, MuseValues, Truth};
pub use prepare::Prepared;

use crate::error::{Error, Result};
use read::File;

/// A metric of MUSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// How much of the forget set's wording the model recites: mean ROUGE-L F x 100, 0..=100.
    VerbmemForget,
    /// How well the model answers questions on the forget set: mean ROUGE-L F x 100, 0..=100.
    KnowmemForget,
    /// The same on what it should have kept, its utility: 0..=100.
    KnowmemRetain,
    /// Whether its likelihoods tell the forget set from unseen text: signed percentage of the reference's AUC.
    Privleak,
}

impl Metric {
    /// Every metric, in the order of the tasks.
    pub const ALL: [Self; 4] =
        [Self::VerbmemForget, Self::KnowmemForget, Self::KnowmemRetain, Self::Privleak];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VerbmemForget => "verbmem_forget",
            Self::KnowmemForget => "knowmem_forget",
            Self::KnowmemRetain => "knowmem_retain",
            Self::Privleak => "privleak",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A prompt and what the model should say, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Example {
    prompt: String,
    truth: String,
}

/// A MUSE corpus: the examples of every metric, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Muse {
    path: PathBuf,
    verbmem_forget: Vec<Example>,
    knowmem_forget: Vec<Example>,
    knowmem_retain: Vec<Example>,
    privleak_forget: Vec<String>,
    privleak_holdout: Vec<String>,
}

impl Muse {
    /// Reads a corpus, at most the first `limit` examples of each list (never fewer few-shot pairs).
    ///
    /// `privleak/retain.json` is not read: MUSE scores it, but no figure uses it.
    ///
    /// # Errors
    ///
    /// If a file is missing, empty or not of MUSE's layout; if `limit` is 0.
    pub fn read(dir: &Path, limit: Option<usize>) -> Result<Self> {
        if limit == Some(0) {
            let expected = "at least 1 example of each metric".to_owned();
            return Err(Error::Flag { flag: "--limit", found: "0".to_owned(), expected });
        }
        if !dir.is_dir() {
            let what = "the data directory";
            let remedy = "name a MUSE corpus: a directory with knowmem, verbmem and privleak".to_owned();
            return Err(Error::Missing { path: dir.to_path_buf(), what, remedy });
        }
        let verbmem = File::read(dir, "verbmem/forget.json")?.limited(limit).pairs(["prompt", "gt"])?;
        let knowmem = |split: &str| -> Result<Vec<Example>> {
            let fields = ["question", "answer"];
            let shots = File::read(dir, &format!("knowmem/{split}_qa_icl.json"))?.pairs(fields)?;
            let questions = File::read(dir, &format!("knowmem/{split}_qa.json"))?;
            Ok(few_shot(&shots, questions.limited(limit).pairs(fields)?))
        };
        let texts = |split: &str| File::read(dir, &format!("privleak/{split}.json"))?.limited(limit).texts();
        Ok(Self {
            path: dir.to_path_buf(),
            verbmem_forget: verbmem.into_iter().map(|[prompt, truth]| Example { prompt, truth }).collect(),
            knowmem_forget: knowmem("forget")?,
            knowmem_retain: knowmem("retain")?,
            privleak_forget: texts("forget")?,
            privleak_holdout: texts("holdout")?,
        })
    }

    /// The corpus's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// KnowMem's prompts. MUSE leaves a space after the last `Answer:`, which SentencePiece makes a token of its own.
fn few_shot(shots: &[[String; 2]], questions: Vec<[String; 2]>) -> Vec<Example> {
    let shots: String = shots
        .iter()
        .map(|[question, answer]| format!("Question: {question}\nAnswer: {answer}\n\n"))
        .collect();
    let example = |[question, truth]: [String; 2]| Example {
        prompt: format!("{shots}Question: {question}\nAnswer: "),
        truth,
    };
    questions.into_iter().map(example).collect()
}
