//! The head of a pass: statistics of all wanted rows' logits, by arm.

use std::sync::Arc;

use super::block::{Block, Blocks, HeadRows};
use super::head::{self, Head};
use super::inputs::Inputs;
use super::job::{Job, Stream};
use super::{Llama, STATES_ALIGNED};
use crate::error::Result;
use crate::gpu::{Buffer, Commands};
use crate::kernels::{FoldState, TOP, TopEntry};
use crate::model::{Batch, Folded, Pass};

/// Arms that have the same logits: a job's, with the same head.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) job: &'a Job,
    pub(super) arms: Vec<usize>,
    /// By batch of the job: the first of its rows in the states.
    pub(super) firsts: Vec<usize>,
}

/// All ends of a pass, their statistics on the device.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) ends: Vec<End<'a>>,
    /// Rows of all their states.
    pub(super) rows: usize,
}

impl<'a> Ends<'a> {
    /// Of these jobs, whose heads begin with `blocks`.
    ///
    /// Only a checkpoint's own arms share an end: the head comes in parts, and those of another checkpoint may begin
    /// alike and differ later.
    fn new(
        jobs: &'a [Job],
        inputs: &[Inputs<'_>],
        blocks: &Blocks,
        checkpoint: impl Fn(usize) -> usize,
    ) -> Self {
        let mut ends: Vec<End<'a>> = Vec::new();
        let mut rows = 0;
        for job in jobs.iter().filter(|job| job.wanted(inputs) > 0) {
            let own = ends.len();
            for &arm in &job.arms {
                let same = |other: usize| {
                    checkpoint(other) == checkpoint(arm) && Arc::ptr_eq(&blocks[other], &blocks[arm])
                };
                if let Some(end) = ends[own..].iter_mut().find(|end| same(end.arms[0])) {
                    end.arms.push(arm);
                    continue;
                }
                let firsts = job.streams.iter().map(|(input, _)| {
                    let first = rows;
                    rows += inputs[*input].batch.wanted.len().next_multiple_of(STATES_ALIGNED);
                    first
                });
                let firsts = firsts.collect();
                ends.push(End { job, arms: vec![arm], firsts });
            }
        }
        Self { ends, rows }
    }
}

/// The part of `states` that begins with row `first` and has `rows` rows of `T`.
pub(super) fn part<T>(states: &Buffer, first: usize, rows: usize) -> Buffer {
    states.slice((first * size_of::<T>()) as u64, (rows * size_of::<T>()) as u64)
}

pub(super) fn head_of(blocks: &Blocks, arm: usize) -> &HeadRows {
    match &*blocks[arm] {
        Block::Head(head) => head,
        _ => unreachable!("the head's blocks come last"),
    }
}

impl Llama {
    /// The logits of every wanted row in every arm, `[wanted, v]`, for tests; the given tokens do not matter.
    ///
    /// # Errors
    ///
    /// As [`crate::model::Lockstep::run`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let batches = std::slice::from_ref(batch);
        let (inputs, jobs) = self.start(Pass::Score(batches), 1)?;
        let jobs = self.layers(&inputs, jobs)?;
        let (rows, vocab) = (batch.wanted.len(), self.config.vocab_size);
        let mut logits = vec![vec![0.0; rows * vocab]; self.arms];
        for block in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(block)?;
            for job in &jobs {
                for arm in &job.arms {
                    let head = head_of(&blocks, *arm);
                    for (input, stream) in &job.streams {
                        let h = self.on_device(stream)?;
                        for (first, n) in Head::chunks(head) {
                            let mut commands = Commands::paced(&self.gpu);
                            let (normed, chunk) = (&self.scratch.normed, &self.scratch.logits);
                            self.head.norm(&mut commands, head, &inputs[*input], &h, normed);
                            Head::chunk(&mut commands, head, &inputs[*input], (first, n), [normed, chunk]);
                            commands.submit(&self.gpu)?;
                            let chunk: Vec<f32> = self.gpu.read(&self.scratch.logits, rows * n)?;
                            for (row, chunk) in logits[*arm].chunks_mut(vocab).zip(chunk.chunks(n)) {
                                row[head.first + first..][..n].copy_from_slice(chunk);
                            }
                        }
                        if matches!(stream, Stream::Host(_)) {
                            self.pool.give_back(h);
                        }
                    }
                }
            }
            self.loader.release(block);
        }
        self.pool.give(jobs);
        Ok(logits)
    }

    /// Runs the head on all wanted rows; the answers by arm.
    pub(super) fn answers(&mut self, inputs: &[Inputs<'_>], jobs: &[Job]) -> Result<Vec<Vec<Folded>>> {
        let ends = self.fold(inputs, jobs, false)?;
        self.folded(inputs, &ends)
    }

    /// Runs the head on all wanted rows; the statistics stay on the device, with the likeliest tokens if `best` says so.
    pub(super) fn fold<'a>(
        &mut self,
        inputs: &[Inputs<'_>],
        jobs: &'a [Job],
        best: bool,
    ) -> Result<Ends<'a>> {
        let mut found: Option<Ends<'_>> = None;
        for number in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(number)?;
            let ends = match found.take() {
                Some(ends) => ends,
                None => Ends::new(jobs, inputs, &blocks, |arm| self.loader.checkpoint_of(arm)),
            };
            if ends.rows == 0 {
                return Ok(ends);
            }
            let states = self.scratch.states.reserve::<FoldState>(&self.gpu, ends.rows)?;
            let tops = match best {
                true => Some(self.scratch.tops.reserve::<[TopEntry; TOP]>(&self.gpu, ends.rows)?),
                false => None,
            };
            let mut commands = Commands::paced(&self.gpu);
            for end in &ends.ends {
                let head = head_of(&blocks, end.arms[0]);
                for ((input, stream), &first) in end.job.streams.iter().zip(&end.firsts) {
                    let inputs = &inputs[*input];
                    let rows = inputs.batch.wanted.len();
                    if rows == 0 {
                        continue;
                    }
                    let states = part::<FoldState>(&states, first, rows);
                    let tops = tops.as_ref().map(|tops| part::<[TopEntry; TOP]>(tops, first, rows));
                    let h = self.on_device(stream)?;
                    let spilled = matches!(stream, Stream::Host(_));
                    self.head.record(&mut commands, head, &self.scratch, inputs, &h, &states, tops.as_ref());
                    if commands.is_full(&self.gpu) || spilled {
                        std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
                    }
                    if spilled {
                        // The next one writes to the same memory after this work: the queue keeps the order.
                        self.pool.give_back(h);
                    }
                    self.loader.ahead(number)?;
                }
            }
            commands.submit(&self.gpu)?;
            if self.loader.is_streamed() {
                self.gpu.wait("rows of the head")?;
                drop(blocks);
                self.loader.release(number);
            }
            found = Some(ends);
        }
        Ok(found.unwrap_or(Ends { ends: Vec::new(), rows: 0 }))
    }

    /// What [`Self::fold`] left, by arm.
    pub(super) fn folded(&self, inputs: &[Inputs<'_>], ends: &Ends<'_>) -> Result<Vec<Vec<Folded>>> {
        let states: Vec<FoldState> = self.scratch.states.read(&self.gpu, ends.rows)?;
        Ok(self.by_arm(inputs, ends, &states, |state| head::folded(*state)))
    }

    /// Rows of the ends as every arm's answers.
    pub(super) fn by_arm<T, A: Clone>(
        &self,
        inputs: &[Inputs<'_>],
        ends: &Ends<'_>,
        states: &[T],
        answer: impl Fn(&T) -> A,
    ) -> Vec<Vec<A>> {
        let mut answers = vec![Vec::new(); self.arms];
        for end in &ends.ends {
            let mut own = Vec::new();
            for ((input, _), first) in end.job.streams.iter().zip(&end.firsts) {
                let count = inputs[*input].batch.wanted.len();
                own.extend(states[*first..first + count].iter().map(&answer));
            }
            for arm in &end.arms {
                answers[*arm].clone_from(&own);
            }
        }
        answers
    }
}
