//! What goes into one pass over the weights.

use super::queue::{Queue, Waiting};
use super::sequence::{Packed, Sequence};
use crate::model::{Batch, Capacity, Room};

/// A pass that scores: the same for every arm.
#[derive(Debug, Default)]
pub(super) struct Scoring {
    pub(super) batches: Vec<Batch>,
    /// For each wanted row: its task and position.
    pub(super) owners: Vec<(usize, usize)>,
    /// Tasks that end in this pass, in the order of their ends.
    pub(super) finished: Vec<usize>,
}

impl Scoring {
    /// Takes as many texts as fit. Nothing waits for an answer, so a pass is planned whole, and pages are handed on
    /// within it: a batch reads them before a later one writes them anew.
    pub(super) fn next(queue: &mut Queue<'_, '_>, room: Room) -> Self {
        let Room { capacity, batches: most, enough } = room;
        let batch_rows = batch_rows(capacity);
        let mut pass = Self::default();
        let mut active: Vec<Sequence<'_>> = Vec::new();
        queue.begin_pass();
        while pass.batches.len() < most {
            let left = (most - pass.batches.len()) * batch_rows;
            let mut due: usize = active.iter().map(Sequence::left).sum();
            while let Some(task) = queue.peek() {
                // A text that is begun is finished in the same pass.
                if pass.batches.len() >= enough || due >= batch_rows || due + task.cached() > left {
                    break;
                }
                let Some(sequence) = queue.admit(&active) else { break };
                due += sequence.left();
                active.push(sequence);
            }
            if active.is_empty() {
                break;
            }
            let packed = Packed::next(&mut active, capacity);
            pass.owners.extend(packed.owners.iter().map(|(owner, at)| (active[*owner].index, *at)));
            pass.batches.push(packed.batch);
            let (finished, rest) = active.into_iter().partition(|sequence| sequence.left() == 0);
            active = rest;
            for sequence in finished {
                pass.finished.push(sequence.index);
                queue.release(sequence.pages());
            }
        }
        pass
    }
}

/// Rows of scored texts that fill a batch.
pub(super) fn batch_rows(capacity: Capacity) -> usize {
    capacity.tokens.min(capacity.wanted)
}

/// One arm's generation.
#[derive(Debug)]
pub(super) struct Generating<'a, 'b> {
    queue: Queue<'a, 'b>,
    active: Vec<Sequence<'a>>,
    /// Most sequences at a time.
    slots: usize,
    room: Room,
    /// For each wanted row of the pass under way: its place in `active`, and its position.
    pub(super) owners: Vec<(usize, usize)>,
}

impl<'a, 'b> Generating<'a, 'b> {
    /// An arm that has run nothing yet. In decode every sequence has one wanted row, and all go into one batch.
    pub(super) fn new(waiting: &'b [Waiting<'a>], room: Room, slots: usize) -> Self {
        let queue = Queue::new(waiting, room.capacity.pages);
        let slots = slots.min(batch_rows(room.capacity));
        Self { queue, active: Vec::new(), slots, room, owners: Vec::new() }
    }

    /// The arm's batches for the next pass: prompts as long as there are any, or one new token for each sequence.
    /// None when all is done.
    pub(super) fn next(&mut self) -> Vec<Batch> {
        self.owners.clear();
        let mut batches = Vec::new();
        while batches.len() < self.room.batches {
            while self.active.len() < self.slots {
                let Some(sequence) = self.queue.admit(&self.active) else { break };
                self.active.push(sequence);
            }
            let prompts = self.active.iter().any(Sequence::in_prefill);
            // What comes after a prompt waits for this pass's answer.
            if self.active.is_empty() || (!prompts && !batches.is_empty()) {
                break;
            }
            let packed = Packed::next(&mut self.active, self.room.capacity);
            self.owners.extend(packed.owners);
            batches.push(packed.batch);
            if !prompts {
                break;
            }
        }
        batches
    }

    /// A sequence of this pass.
    pub(super) fn sequence(&mut self, owner: usize) -> &mut Sequence<'a> {
        &mut self.active[owner]
    }

    /// Takes out the sequences that have come to their ends.
    pub(super) fn finished(&mut self) -> Vec<Sequence<'a>> {
        let (finished, rest) = std::mem::take(&mut self.active).into_iter().partition(Sequence::is_finished);
        self.active = rest;
        let finished: Vec<Sequence<'a>> = finished;
        finished.iter().for_each(|sequence| self.queue.release(sequence.pages()));
        finished
    }
}
