//! From text to tasks.

use std::ops::Range;

use super::measure::KNOWMEM_ENDS;
use super::{Example, Metric, Muse};
use crate::checkpoint::Tokenizer;
use crate::engine::{Ask, Task};
use crate::error::{Error, Result};

/// Tokens of a VerbMem answer, and of its truth.
const VERBMEM_TOKENS: usize = 128;

/// Tokens of a KnowMem answer.
const KNOWMEM_TOKENS: usize = 32;

/// A corpus as tasks for one tokenizer and context.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    tasks: Vec<Task>,
    groups: Vec<Group>,
}

/// What is asked of a list of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To go on from prompts.
    Answers,
    /// How likely texts are: those of this split.
    Texts(Split),
    /// How likely the true answers to prompts are.
    Truths,
}

/// Which texts a membership score is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Forget,
    Holdout,
}

/// The consecutive tasks that one list of the corpus became.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) metric: Metric,
    pub(super) kind: Kind,
    pub(super) tasks: Range<usize>,
    /// What each answer should have been; empty where tasks are scored.
    pub(super) truths: Vec<String>,
    /// What was asked of each, without the examples before it; empty where tasks are scored.
    pub(super) prompts: Vec<String>,
    truncated: usize,
}

impl Muse {
    /// Encodes the corpus for models of `context` tokens whose answers end at a `stop` token.
    ///
    /// # Errors
    ///
    /// If a text gives no token or one beyond the vocabulary, or if the context is too short for an answer.
    pub fn prepare(&self, tokenizer: &Tokenizer, context: usize, stop: &[u32]) -> Result<Prepared> {
        if context <= VERBMEM_TOKENS + 1 {
            return Err(Error::Unsupported {
                path: self.path.clone(),
                what: "MUSE with a context of",
                found: format!("{context} tokens"),
                supported: format!("more than {}, which VerbMem's answers need", VERBMEM_TOKENS + 1),
            });
        }
        let mut builder = Builder { muse: self, tokenizer, context, tasks: Vec::new(), groups: Vec::new() };
        builder.generate(Metric::VerbmemForget, &self.verbmem_forget, VERBMEM_TOKENS, stop, |truth| {
            let ids = tokenizer.encode(truth)?;
            tokenizer.decode_cleaned(&ids[..ids.len().min(VERBMEM_TOKENS)])
        })?;
        // What follows the end of an answer is cut from it, so it need not be generated.
        let ends = [stop, &tokenizer.ids_containing(&KNOWMEM_ENDS)?].concat();
        for (metric, examples) in
            [(Metric::KnowmemForget, &self.knowmem_forget), (Metric::KnowmemRetain, &self.knowmem_retain)]
        {
            builder.generate(metric, examples, KNOWMEM_TOKENS, &ends, |truth| Ok(truth.to_owned()))?;
        }
        builder.score(Split::Forget, &self.privleak_forget)?;
        builder.score(Split::Holdout, &self.privleak_holdout)?;
        // As many as are asked of a continuation: BOS is one of its 128.
        builder.truths(Metric::VerbmemForget, &self.verbmem_forget, VERBMEM_TOKENS - 1)?;
        builder.truths(Metric::KnowmemForget, &self.knowmem_forget, context)?;
        builder.truths(Metric::KnowmemRetain, &self.knowmem_retain, context)?;
        Ok(Prepared { tasks: builder.tasks, groups: builder.groups })
    }
}

impl Prepared {
    /// The tasks, by metric in the order of [`Metric::ALL`], then in the order of the files (for PrivLeak the
    /// forget texts, then the holdout texts); then the truths of the first three metrics.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The tasks that score the truths of a metric; none for PrivLeak.
    #[must_use]
    pub fn truths(&self, metric: Metric) -> Range<usize> {
        let group = self.groups.iter().find(|group| group.metric == metric && group.kind == Kind::Truths);
        group.map_or(0..0, |group| group.tasks.clone())
    }

    /// What a metric's models are given, as text: what stands before their answers, or PrivLeak's texts (those to forget
    /// first). Special tokens are left out.
    ///
    /// # Errors
    ///
    /// If the decoder fails.
    pub fn prompts(&self, tokenizer: &Tokenizer, metric: Metric) -> Result<Vec<String>> {
        let groups = self.groups.iter().filter(|group| group.metric == metric && group.kind != Kind::Truths);
        let tasks = groups.flat_map(|group| group.tasks.clone());
        tasks.map(|task| tokenizer.decode_cleaned(&self.tasks[task].tokens)).collect()
    }

    /// The metric that a task belongs to.
    #[must_use]
    pub fn metric(&self, task: usize) -> Option<Metric> {
        self.groups.iter().find(|group| group.tasks.contains(&task)).map(|group| group.metric)
    }

    /// How many of a metric's tasks were cut to fit the context.
    #[must_use]
    pub fn truncated(&self, metric: Metric) -> usize {
        // A truth is cut where its prompt is.
        let groups = self.groups.iter().filter(|group| group.metric == metric && group.kind != Kind::Truths);
        groups.map(|group| group.truncated).sum()
    }

    /// What was asked for a metric, and what the answers should have been, in the order of the files; nothing for PrivLeak.
    /// Of a KnowMem prompt it is the question itself, without the examples before it.
    pub fn questions(&self, metric: Metric) -> impl Iterator<Item = (&str, &str)> {
        let mut groups = self.groups.iter();
        let group = groups.find(move |group| group.metric == metric && group.kind == Kind::Answers);
        let both = group.into_iter().flat_map(|group| group.prompts.iter().zip(&group.truths));
        both.map(|(prompt, truth)| (prompt.as_str(), truth.as_str()))
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }
}

/// What stands after the last blank line but in front of the answer: the question, if the prompt has examples before it.
fn last_question(prompt: &str) -> &str {
    let end = prompt.trim_end().len();
    prompt[..end]
        .rfind("\n\n")
        .map_or(prompt, |at| if prompt.contains("Question:") { &prompt[at + 2..] } else { prompt })
}

struct Builder<'a> {
    muse: &'a Muse,
    tokenizer: &'a Tokenizer,
    context: usize,
    tasks: Vec<Task>,
    groups: Vec<Group>,
}

impl Builder<'_> {
    fn generate(
        &mut self,
        metric: Metric,
        examples: &[Example],
        max_new: usize,
        stop: &[u32],
        truth: impl Fn(&str) -> Result<String>,
    ) -> Result<()> {
        let start = self.tasks.len();
        let mut truncated = 0;
        for (index, example) in examples.iter().enumerate() {
            let mut tokens = self.encode(metric, index, &example.prompt)?;
            truncated += usize::from(self.cut_left(&mut tokens, self.context - max_new));
            self.tasks.push(Task { tokens, ask: Ask::Generate { max_new, stop: stop.to_vec() } });
        }
        let truths = examples.iter().map(|example| truth(&example.truth)).collect::<Result<_>>()?;
        let tasks = start..self.tasks.len();
        let prompts = examples.iter().map(|example| last_question(&example.prompt).to_owned()).collect();
        self.groups.push(Group { metric, kind: Kind::Answers, tasks, truths, prompts, truncated });
        Ok(())
    }

    /// At most `most` tokens of each truth are asked for.
    fn truths(&mut self, metric: Metric, examples: &[Example], most: usize) -> Result<()> {
        let start = self.tasks.len();
        let mut truncated = 0;
        for (index, example) in examples.iter().enumerate() {
            let prompt = self.encode(metric, index, &example.prompt)?;
            let mut tokens = self.encode(metric, index, &format!("{}{}", example.prompt, example.truth))?;
            let alike = prompt.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
            // Nothing comes before the first token, so it cannot be asked for.
            let from = alike.max(1);
            tokens.truncate(from + most);
            let length = tokens.len();
            truncated += usize::from(self.cut_left(&mut tokens, self.context));
            let from = from.saturating_sub(length - tokens.len()).max(1);
            self.tasks.push(Task { tokens, ask: Ask::Score { from } });
        }
        let tasks = start..self.tasks.len();
        let none = Vec::new;
        self.groups.push(Group {
            metric,
            kind: Kind::Truths,
            tasks,
            truths: none(),
            prompts: none(),
            truncated,
        });
        Ok(())
    }

    fn score(&mut self, split: Split, texts: &[String]) -> Result<()> {
        let metric = Metric::Privleak;
        let start = self.tasks.len();
        let mut truncated = 0;
        for (index, text) in texts.iter().enumerate() {
            let mut tokens = self.encode(metric, index, text)?;
            truncated += usize::from(tokens.len() > self.context);
            tokens.truncate(self.context);
            self.tasks.push(Task::score(tokens));
        }
        let tasks = start..self.tasks.len();
        let kind = Kind::Texts(split);
        let none = Vec::new;
        self.groups.push(Group { metric, kind, tasks, truths: none(), prompts: none(), truncated });
        Ok(())
    }

    fn encode(&self, metric: Metric, index: usize, text: &str) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(text)?;
        if tokens.is_empty() {
            return Err(Error::Malformed {
                path: self.muse.path.clone(),
                what: format!("{metric}, example {index}"),
                found: "a text without any token".to_owned(),
                expected: "at least one".to_owned(),
            });
        }
        Ok(tokens)
    }

    /// Cuts a prompt to `most` tokens from the left, but not what the tokenizer put in front of it. Says whether it did.
    fn cut_left(&self, tokens: &mut Vec<u32>, most: usize) -> bool {
        let Some(excess @ 1..) = tokens.len().checked_sub(most) else { return false };
        let front =
            self.tokenizer.added().iter().zip(&*tokens).take_while(|(added, token)| added == token).count();
        let front = front.min(most);
        tokens.drain(front..front + excess);
        true
    }
}
