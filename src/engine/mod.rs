//! Tasks in, observations out.
//!
//! [`Engine`] packs ragged sequences into batches and batches into passes over the weights, keeps keys and values in
//! pages of the arms' caches, and asks all arms at once through [`Lockstep`](crate::model::Lockstep). An observation
//! is a function of its task and its arm alone: it does not depend on the other tasks, their order, the other arms,
//! the capacity, or prefix sharing, as long as the model's answer for a token depends on nothing but the tokens
//! before.

mod needs;
mod pages;
mod passes;
mod plan;
mod queue;
mod run;
mod sequence;
mod space;

pub use needs::{Demand, Needs};
pub use plan::{Budget, Given, Item, MemoryPlan, Predicted};
pub use run::{Engine, Finished, Options};

use crate::error::Result;
use crate::metrics::divergence::Divergence;
use crate::model::{Detail, Work};

/// One prompt of a suite and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// Token ids of the prompt (generate) or of the whole text (score), BOS included; never empty.
    pub tokens: Vec<u32>,
    /// What to do with them.
    pub ask: Ask,
}

/// What is asked of a [`Task`]'s tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Continue greedily.
    Generate {
        /// Most tokens to add.
        max_new: usize,
        /// End after any of these (the model's end-of-sequence ids).
        stop: Vec<u32>,
    },
    /// The log-probability of every token from `from` on, given those before it.
    Score {
        /// At least 1: nothing comes before the first token.
        from: usize,
    },
}

impl Ask {
    /// Which kind of pass answers it.
    #[must_use]
    pub fn work(&self) -> Work {
        match self {
            Self::Generate { .. } => Work::Generate,
            Self::Score { .. } => Work::Score,
        }
    }
}

impl Task {
    /// The log-probability of every token after the first.
    #[must_use]
    pub fn score(tokens: Vec<u32>) -> Self {
        Self { tokens, ask: Ask::Score { from: 1 } }
    }

    /// Rows of the cache that the task fills: every token that another one attends to, and itself.
    ///
    /// The last new token, or the last token of a scored text, is an answer and never run.
    #[must_use]
    pub fn cached(&self) -> usize {
        match self.ask {
            Ask::Generate { max_new: 0, .. } => 0,
            Ask::Generate { max_new, .. } => self.tokens.len().saturating_add(max_new - 1),
            Ask::Score { from } if from >= self.tokens.len() => 0,
            Ask::Score { .. } => self.tokens.len().saturating_sub(1),
        }
    }
}

/// What one arm answered to one [`Task`].
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// The new tokens, with the stop token if one came.
    Generated {
        /// Token ids.
        tokens: Vec<u32>,
        /// log p of each under the model, in nats.
        log_probs: Vec<f32>,
    },
    /// One entry for each token that was asked for.
    Scored {
        /// log p(token | tokens before), in nats.
        log_probs: Vec<f32>,
        /// The most likely token at the same place.
        argmax: Vec<u32>,
        /// More on each place; empty where arms were not compared.
        details: Vec<Detail>,
    },
}

/// What the arms answered.
#[derive(Debug, Default)]
pub struct Answered {
    /// By arm, then by task.
    pub arms: Vec<Result<Vec<Observation>>>,
    /// By pair, then by task: what sets the two arms apart at each token that was asked for. Nothing for tasks that
    /// generate, and not to be used if one of the two failed.
    pub pairs: Vec<Vec<Vec<Divergence>>>,
}
