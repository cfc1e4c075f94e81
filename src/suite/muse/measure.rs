//! From observations to scores and metric values.

use serde::Serialize;

use super::prepare::{Group, Kind, Split};
use super::{Metric, Prepared};
use crate::checkpoint::Tokenizer;
use crate::engine::{Ask, Observation, Task};
use crate::error::{Error, Result};
use crate::metrics::membership::{self, PRIVLEAK_PERCENT};
use crate::metrics::rouge::{RougeL, rouge_l};
use crate::metrics::{Measured, mean_percent, memorization};

/// Where MUSE ends a KnowMem answer: at the first of each, one after the other.
pub(super) const KNOWMEM_ENDS: [&str; 3] = ["\n\n", "\nQuestion", "Question:"];

/// What one arm scored on a corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct MuseValues {
    /// The forget set recited.
    pub verbmem_forget: Answers,
    /// Questions on the forget set.
    pub knowmem_forget: Answers,
    /// Questions on the retain set.
    pub knowmem_retain: Answers,
    /// Likelihoods of forget and holdout texts.
    pub privleak: Membership,
    /// How likely the true continuations of the forget set are.
    pub verbmem_forget_truths: Vec<Truth>,
    /// How likely the true answers to questions on the forget set are.
    pub knowmem_forget_truths: Vec<Truth>,
    /// How likely the true answers to questions on the retain set are.
    pub knowmem_retain_truths: Vec<Truth>,
}

/// How well an arm knows one true answer, led along it token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Geometric mean of the tokens' probabilities, 0..=1.
    pub probability: Measured,
    /// Share of the tokens that are the likeliest ones at their places, 0..=1.
    pub exact_memorization: Measured,
    /// Share of the answer from which on all tokens are the likeliest ones, 0..=1.
    pub extraction_strength: Measured,
    /// log p of each token, in nats.
    pub log_probs: Vec<f32>,
}

/// The answers to one metric's prompts, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// One a prompt.
    pub items: Vec<Answer>,
}

/// One answer with its score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// What the model said, as it was scored.
    pub text: String,
    /// What it should have said, as it was scored.
    pub truth: String,
    /// ROUGE-L F, 0..=1: what the metric averages.
    pub rouge_l_f: f64,
    /// ROUGE-L recall, 0..=1.
    pub rouge_l_recall: f64,
}

impl Answers {
    /// ROUGE-L F of each answer, 0..=1.
    #[must_use]
    pub fn scores(&self) -> Vec<f64> {
        self.items.iter().map(|item| item.rouge_l_f).collect()
    }

    /// The metric: the mean score x 100.
    #[must_use]
    pub fn value(&self) -> Measured {
        mean_percent(&self.scores())
    }
}

/// Min-40 % of forget and holdout texts, in the order of the files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Membership {
    /// Of the texts to forget; higher looks less seen.
    pub forget: Vec<Measured>,
    /// Of the texts that no model saw.
    pub holdout: Vec<Measured>,
}

impl Membership {
    /// P(holdout looks more like a member than forget), ties half: 0 memorized, 0.5 no difference, 1 over-unlearned.
    ///
    /// PrivLeak is this against a reference's ([`membership::priv_leak`]). Missing, with the text's index, if one of
    /// the texts has no score.
    #[must_use]
    pub fn auc(&self) -> Measured {
        let values = |split: &str, scores: &[Measured]| -> Result<Vec<f64>, Measured> {
            let value = |(index, score): (usize, &Measured)| match score {
                Measured::Value(value) => Ok(*value),
                Measured::Missing(reason) => {
                    Err(Measured::Missing(format!("{split} text {index}: {reason}")))
                }
            };
            scores.iter().enumerate().map(value).collect()
        };
        match (values("forget", &self.forget), values("holdout", &self.holdout)) {
            (Ok(forget), Ok(holdout)) => membership::auc(&forget, &holdout),
            (Err(missing), _) | (_, Err(missing)) => missing,
        }
    }
}

impl Prepared {
    /// Scores one arm's answers to [`Prepared::tasks`], in the tasks' order.
    ///
    /// # Errors
    ///
    /// If an observation does not answer its task, or a decoder fails.
    pub fn measure(&self, tokenizer: &Tokenizer, observations: &[Observation]) -> Result<MuseValues> {
        if observations.len() != self.tasks().len() {
            return Err(Error::Shape {
                kernel: "Prepared::measure",
                what: "number of observations",
                got: observations.len(),
                expected: format!("one for each of {} tasks", self.tasks().len()),
            });
        }
        let mut values = MuseValues {
            verbmem_forget: Answers::default(),
            knowmem_forget: Answers::default(),
            knowmem_retain: Answers::default(),
            privleak: Membership::default(),
            verbmem_forget_truths: Vec::new(),
            knowmem_forget_truths: Vec::new(),
            knowmem_retain_truths: Vec::new(),
        };
        for group in self.groups() {
            let answers = || self.answers(group, tokenizer, observations);
            let truths = || self.truths_of(group, observations);
            match (group.kind, group.metric) {
                (Kind::Texts(Split::Forget), _) => {
                    values.privleak.forget = self.membership(group, observations)?;
                }
                (Kind::Texts(Split::Holdout), _) => {
                    values.privleak.holdout = self.membership(group, observations)?;
                }
                (Kind::Answers, Metric::VerbmemForget) => values.verbmem_forget = answers()?,
                (Kind::Answers, Metric::KnowmemForget) => values.knowmem_forget = answers()?,
                (Kind::Answers, Metric::KnowmemRetain) => values.knowmem_retain = answers()?,
                (Kind::Truths, Metric::VerbmemForget) => values.verbmem_forget_truths = truths()?,
                (Kind::Truths, Metric::KnowmemForget) => values.knowmem_forget_truths = truths()?,
                (Kind::Truths, Metric::KnowmemRetain) => values.knowmem_retain_truths = truths()?,
                (Kind::Answers | Kind::Truths, Metric::Privleak) => unreachable!("PrivLeak has texts"),
            }
        }
        Ok(values)
    }

    fn answers(&self, group: &Group, tokenizer: &Tokenizer, observations: &[Observation]) -> Result<Answers> {
        let score = |(task, truth): (usize, &String)| {
            let tokens = match (&observations[task], &self.tasks()[task].ask) {
                (Observation::Generated { tokens, .. }, Ask::Generate { max_new, .. })
                    if tokens.len() <= *max_new =>
                {
                    tokens
                }
                (other, _) => return Err(self.mismatch(task, other)),
            };
            let mut text = tokenizer.decode_cleaned(tokens)?;
            if group.metric != Metric::VerbmemForget {
                cut(&mut text);
            }
            let RougeL { f, recall, .. } = rouge_l(&text, truth);
            Ok(Answer { text, truth: truth.clone(), rouge_l_f: f, rouge_l_recall: recall })
        };
        let items = group.tasks.clone().zip(&group.truths).map(score).collect::<Result<_>>()?;
        Ok(Answers { items })
    }

    fn truths_of(&self, group: &Group, observations: &[Observation]) -> Result<Vec<Truth>> {
        let know = |task: usize| match (&observations[task], &self.tasks()[task]) {
            (Observation::Scored { log_probs, argmax, .. }, Task { tokens, ask: Ask::Score { from } })
                if log_probs.len() + from == tokens.len() && argmax.len() == log_probs.len() =>
            {
                Ok(Truth {
                    probability: memorization::probability(log_probs),
                    exact_memorization: memorization::exact_memorization(&tokens[*from..], argmax),
                    extraction_strength: memorization::extraction_strength(&tokens[*from..], argmax),
                    log_probs: log_probs.clone(),
                })
            }
            (other, _) => Err(self.mismatch(task, other)),
        };
        group.tasks.clone().map(know).collect()
    }

    fn membership(&self, group: &Group, observations: &[Observation]) -> Result<Vec<Measured>> {
        let score = |task: usize| match &observations[task] {
            Observation::Scored { log_probs, .. }
                if log_probs.len() + 1 == self.tasks()[task].tokens.len() =>
            {
                Ok(membership::min_k(log_probs, PRIVLEAK_PERCENT))
            }
            other => Err(self.mismatch(task, other)),
        };
        group.tasks.clone().map(score).collect()
    }

    fn mismatch(&self, task: usize, observation: &Observation) -> Error {
        let found = match observation {
            Observation::Generated { tokens, .. } => format!("{} generated tokens", tokens.len()),
            Observation::Scored { log_probs, .. } => format!("{} scored tokens", log_probs.len()),
        };
        let expected = match &self.tasks()[task] {
            Task { ask: Ask::Generate { max_new, .. }, .. } => format!("up to {max_new} generated tokens"),
            Task { tokens, ask: Ask::Score { from } } => format!("{} scored tokens", tokens.len() - from),
        };
        Error::Observation { task, found, expected }
    }
}

/// Keeps what stands before the next question begins. A single line break does not end an answer, and nothing is
/// stripped.
fn cut(text: &mut String) {
    for end in KNOWMEM_ENDS {
        if let Some(at) = text.find(end) {
            text.truncate(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn answers_are_cut_in_order() {
        let cases = [
            (" Paris", " Paris"),
            ("Paris\n", "Paris\n"),
            ("Paris\nFrance\n\nQuestion: x", "Paris\nFrance"),
            ("Paris\nQuestion: x\n\ny", "Paris"),
            ("Paris Question: x", "Paris "),
            ("Paris Questions", "Paris Questions"),
            ("Paris\nQuestions", "Paris"),
            ("\n\nParis", ""),
            ("Question: a\n\nb", ""),
            ("", ""),
        ];
        for (text, kept) in cases {
            let mut text = text.to_owned();
            cut(&mut text);
            assert_eq!(text, kept);
        }
    }
}
