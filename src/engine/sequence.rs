//! A task under way: its tokens, its pages, and which of its rows are wanted.

use super::{Ask, Observation, Task};
use crate::model::{Batch, Capacity, Detail, Folded, PAGE, Phase, Place, Wanted};

/// A task that has pages of the cache.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    task: &'a Task,
    /// Index of the task in the caller's slice.
    pub(super) index: usize,
    /// The task's tokens, then the new ones.
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    cached: usize,
    /// Where they are; room for every row the task can need.
    pages: Vec<u32>,
    log_probs: Vec<f32>,
    argmax: Vec<u32>,
    details: Vec<Detail>,
}

impl<'a> Sequence<'a> {
    /// A sequence whose first `cached` tokens are in the first of `pages` already.
    pub(super) fn new(task: &'a Task, index: usize, pages: Vec<u32>, cached: usize) -> Self {
        let tokens = task.tokens.clone();
        Self {
            task,
            index,
            tokens,
            cached,
            pages,
            log_probs: Vec::new(),
            argmax: Vec::new(),
            details: Vec::new(),
        }
    }

    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Whether rows of the task's own tokens are left to run.
    pub(super) fn in_prefill(&self) -> bool {
        self.cached < self.rows().min(self.task.tokens.len())
    }

    /// Rows that are left to run with the tokens there are.
    pub(super) fn left(&self) -> usize {
        self.rows() - self.cached
    }

    /// Where its keys and values are.
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Rows that can be run with the tokens there are.
    fn rows(&self) -> usize {
        match self.task.ask {
            Ask::Generate { .. } => self.tokens.len(),
            Ask::Score { .. } => self.tokens.len() - 1,
        }
    }

    /// The token to ask row `position` for, if its logits are wanted.
    fn given(&self, position: usize) -> Option<u32> {
        match self.task.ask {
            Ask::Score { from } => (position + 1 >= from).then(|| self.tokens[position + 1]),
            // Only the likeliest token matters there: any id does.
            Ask::Generate { .. } => (position + 1 == self.tokens.len()).then_some(0),
        }
    }

    /// Takes the answer of the next wanted row.
    pub(super) fn answer(&mut self, folded: &Folded) {
        match self.task.ask {
            Ask::Score { .. } => {
                self.log_probs.push(folded.log_prob());
                self.argmax.push(folded.argmax);
            }
            Ask::Generate { .. } => {
                self.log_probs.push(folded.max_logit - folded.log_sum_exp);
                self.tokens.push(folded.argmax);
            }
        }
    }

    /// Takes more on the next wanted row.
    pub(super) fn detail(&mut self, detail: Detail) {
        self.details.push(detail);
    }

    /// Whether nothing is left to run.
    pub(super) fn is_finished(&self) -> bool {
        match &self.task.ask {
            Ask::Score { from } => self.log_probs.len() + from >= self.tokens.len(),
            Ask::Generate { max_new, stop } => {
                let new = &self.tokens[self.task.tokens.len()..];
                new.len() >= *max_new || new.last().is_some_and(|last| stop.contains(last))
            }
        }
    }

    /// What the task asked for.
    pub(super) fn finish(mut self) -> Observation {
        match self.task.ask {
            Ask::Score { .. } => {
                let Self { log_probs, argmax, details, .. } = self;
                Observation::Scored { log_probs, argmax, details }
            }
            Ask::Generate { .. } => Observation::Generated {
                tokens: self.tokens.split_off(self.task.tokens.len()),
                log_probs: self.log_probs,
            },
        }
    }
}

/// A batch with, for each wanted row, the sequence (its place in the active list) and the position
/// that it stands for.
pub(super) struct Packed {
    pub(super) batch: Batch,
    pub(super) owners: Vec<(usize, usize)>,
}

impl Packed {
    /// Packs the rows that are due: prompts and scored texts first, then one new token for each.
    pub(super) fn next(active: &mut [Sequence<'_>], capacity: Capacity) -> Self {
        let prefill = active.iter().any(Sequence::in_prefill);
        let phase = if prefill { Phase::Prefill } else { Phase::Decode };
        let batch = Batch { phase, tokens: vec![], places: vec![], table: vec![], wanted: vec![] };
        let mut packed = Self { batch, owners: Vec::new() };
        for (owner, sequence) in active.iter_mut().enumerate() {
            if prefill && !sequence.in_prefill() {
                continue;
            }
            packed.add(owner, sequence, capacity);
        }
        packed
    }

    /// Adds as many of the sequence's rows as fit, and marks them as cached.
    fn add(&mut self, owner: usize, sequence: &mut Sequence<'_>, capacity: Capacity) {
        let batch = &mut self.batch;
        let (table, first) = (batch.table.len(), batch.tokens.len());
        while sequence.cached < sequence.rows() && batch.tokens.len() < capacity.tokens {
            let position = sequence.cached;
            let given = sequence.given(position);
            if given.is_some() && batch.wanted.len() >= capacity.wanted {
                break;
            }
            if let Some(given) = given {
                batch.wanted.push(Wanted { row: narrow(batch.tokens.len()), given });
                self.owners.push((owner, position));
            }
            batch.tokens.push(sequence.tokens[position]);
            batch.places.push(Place {
                position: narrow(position),
                slot: sequence.pages[position / PAGE] * narrow(PAGE) + narrow(position % PAGE),
                table: narrow(table),
                pad: 0,
            });
            sequence.cached += 1;
        }
        if batch.tokens.len() > first {
            batch.table.extend(&sequence.pages[..sequence.cached.div_ceil(PAGE)]);
        }
    }
}

/// A count of tokens or pages as the device's u32; [`Pages`](super::pages::Pages) keeps slots below 2^32.
fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
