//! Many arms behind one trait: a pass over the weights serves all of them.

use super::compare::{Compared, Comparing, compare_each};
use super::{Batch, Capacity, Counters, Folded, Forward};
use crate::error::Result;

/// What a pass does. Scoring and generation never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Log-probabilities of given texts, the same for every arm.
    Score,
    /// New tokens, which soon differ between the arms.
    Generate,
}

/// What every arm runs in one pass over the weights.
#[derive(Clone, Copy, Debug)]
pub enum Pass<'a> {
    /// Every arm runs these batches, in order. Each of their sequences is whole: no later pass reads what this one
    /// leaves in the cache.
    Score(&'a [Batch]),
    /// Each arm runs its own batches, in order; what they leave in its cache stays.
    Generate(&'a [Vec<Batch>]),
}

/// How much a pass may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of each batch, and each arm's cache.
    pub capacity: Capacity,
    /// Batches of each arm.
    pub batches: usize,
    /// Batches of texts to score after which none is begun: where more of them in a pass save little, answers come more often.
    pub enough: usize,
}

/// Arms that run in lockstep.
///
/// An arm's answers are those of a [`Forward`] that runs the same batches one after the other: they do not depend
/// on the other arms.
pub trait Lockstep {
    /// How many there are.
    fn arms(&self) -> usize;

    /// The largest pass.
    fn room(&self, work: Work) -> Room;

    /// Runs a pass. For each arm, the answers of all wanted rows: batch after batch, in their order there.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read or is not finite, or if the device fails. Logits that are not finite are returned
    /// as they are.
    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>>;

    /// Runs a pass that scores, and holds the logits of each pair's arms against each other. Logits go from one chunk
    /// of the vocabulary to the next; none are kept.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> Result<Compared>;

    /// What was done so far; the engine adds token counts and seconds of its own.
    fn counters(&self) -> Counters;
}

impl<L: Lockstep + ?Sized> Lockstep for Box<L> {
    fn arms(&self) -> usize {
        (**self).arms()
    }

    fn room(&self, work: Work) -> Room {
        (**self).room(work)
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>> {
        (**self).run(pass)
    }

    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> Result<Compared> {
        (**self).compare(batches, what)
    }

    fn counters(&self) -> Counters {
        (**self).counters()
    }
}

/// Single arms, each with weights of its own, one after the other: nothing is shared, nothing is saved.
#[derive(Debug)]
pub struct Each<F>(pub Vec<F>);

/// Batches that are enough for a pass of [`Each`]: few, so that answers come often, but not one, since what prompts share is
/// computed again in each pass.
const EACH_BATCHES: usize = 8;

impl<F: Forward> Lockstep for Each<F> {
    fn arms(&self) -> usize {
        self.0.len()
    }

    fn room(&self, _: Work) -> Room {
        let capacities = self.0.iter().map(Forward::capacity);
        let least = |a: Capacity, b: Capacity| Capacity {
            tokens: a.tokens.min(b.tokens),
            wanted: a.wanted.min(b.wanted),
            pages: a.pages.min(b.pages),
        };
        let capacity = capacities.reduce(least).unwrap_or(Capacity { tokens: 0, wanted: 0, pages: 0 });
        // A scored text must be whole in a pass, however long it is.
        let rows = capacity.pages * super::PAGE;
        let needed = rows.div_ceil(capacity.tokens.min(capacity.wanted).max(1));
        Room { capacity, batches: needed.max(EACH_BATCHES), enough: EACH_BATCHES }
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>> {
        let mut answers = Vec::with_capacity(self.0.len());
        for (arm, forward) in self.0.iter_mut().enumerate() {
            let batches = match pass {
                Pass::Score(batches) => batches,
                Pass::Generate(batches) => &batches[arm],
            };
            let mut folded = Vec::new();
            for batch in batches {
                folded.extend(forward.forward(batch)?);
            }
            answers.push(folded);
        }
        Ok(answers)
    }

    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> Result<Compared> {
        compare_each(&mut self.0, batches, what)
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.0.iter().for_each(|forward| sum.add(&forward.counters()));
        sum
    }
}
