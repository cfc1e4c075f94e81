//! What each arm answered, example by example, read back from a run's store.

use super::run::Audit;
use super::store::Store;
use crate::error::Result;
use crate::suite::muse::{Metric, MuseValues};

/// Every example with its prompt, and what each arm made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAnswers {
    /// By metric in the order of [`Metric::ALL`]: what stood before the answer (for PrivLeak the texts, those to forget
    /// first), as the models saw it.
    pub prompts: [Vec<String>; 4],
    /// Arms whose answers are all there: the name (`model@precision`), and what was measured.
    pub arms: Vec<(String, MuseValues)>,
}

impl StoredAnswers {
    /// What the arm of this name answered.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&MuseValues> {
        self.arms.iter().find(|(arm, _)| arm == name).map(|(_, values)| values)
    }

    /// The prompts of a metric.
    #[must_use]
    pub fn prompts(&self, metric: Metric) -> &[String] {
        Metric::ALL.iter().position(|other| *other == metric).map_or(&[], |place| &self.prompts[place])
    }
}

impl Audit {
    /// Scores again what the store has. An arm that lacks an answer to a question as it is asked now is left out.
    ///
    /// # Errors
    ///
    /// If a stored answer does not answer its question, or a decoder fails.
    pub fn stored_answers(&self, store: &Store) -> Result<StoredAnswers> {
        let (questions, tokenizer) = (self.questions(), self.tokenizer());
        let mut prompts = [const { Vec::new() }; 4];
        for (place, metric) in Metric::ALL.into_iter().enumerate() {
            prompts[place] = questions.prompts(tokenizer, metric)?;
        }
        let mut arms = Vec::new();
        for (place, name) in self.names().into_iter().enumerate() {
            let answers = (0..questions.tasks().len()).map(|task| store.answer(place, task).cloned());
            if let Some(answers) = answers.collect::<Option<Vec<_>>>() {
                arms.push((name, questions.measure(tokenizer, &answers)?));
            }
        }
        Ok(StoredAnswers { prompts, arms })
    }
}
