//! The head of a pass: statistics of all wanted rows' logits, by arm.

use std::sync::Arc;

use super::block::{Block, Blocks, HeadRows};
use super::head::{self, Head};
use super::inputs::Inputs;
use super::job::{Job, Stream};
use super::{Llama, STATES_ALIGNED};
use crate::error::Result;
use crate::gpu::Commands;
use crate::kernels::FoldState;
use crate::model::{Batch, Folded, Pass};

/// Arms that have the same logits: a job's, with the same head.
#[derive(Debug)]
struct End<'a> {
    job: &'a Job,
    arms: Vec<usize>,
    /// By batch of the job: the first of its rows in the states.
    firsts: Vec<usize>,
}

/// Adds a job's ends, their states from `first` on; gives the number of rows that they take.
fn ends_of<'a>(
    job: &'a Job,
    inputs: &[Inputs<'_>],
    blocks: &Blocks,
    first: usize,
    ends: &mut Vec<End<'a>>,
) -> usize {
    let mut next = first;
    let own = ends.len();
    for &arm in &job.arms {
        let known = ends[own..].iter_mut().find(|end| Arc::ptr_eq(&blocks[end.arms[0]], &blocks[arm]));
        if let Some(end) = known {
            end.arms.push(arm);
            continue;
        }
        let firsts = job.streams.iter().map(|(input, _)| {
            let first = next;
            next += inputs[*input].batch.wanted.len().next_multiple_of(STATES_ALIGNED);
            first
        });
        let firsts = firsts.collect();
        ends.push(End { job, arms: vec![arm], firsts });
    }
    next - first
}

fn head_of(blocks: &Blocks, arm: usize) -> &HeadRows {
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
        let (inputs, jobs) = self.start(Pass::Score(batches))?;
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
                            self.head.norm(&mut commands, head, &self.scratch, &inputs[*input], &h);
                            Head::chunk(&mut commands, head, &self.scratch, &inputs[*input], (first, n));
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
        // A job's arms may still differ in the head: each different head has states of its own.
        let mut ends: Vec<End<'_>> = Vec::new();
        let mut rows = 0;
        for number in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(number)?;
            if ends.is_empty() {
                for job in jobs.iter().filter(|job| job.wanted(inputs) > 0) {
                    rows += ends_of(job, inputs, &blocks, rows, &mut ends);
                }
                if rows == 0 {
                    break;
                }
                self.reserve_states(rows)?;
            }
            let mut commands = Commands::paced(&self.gpu);
            for end in &ends {
                let head = head_of(&blocks, end.arms[0]);
                for ((input, stream), first) in end.job.streams.iter().zip(&end.firsts) {
                    let inputs = &inputs[*input];
                    if inputs.batch.wanted.is_empty() {
                        continue;
                    }
                    let Some(all) = &self.scratch.states else { unreachable!("reserved above") };
                    let size = size_of::<FoldState>();
                    let states = all.slice((first * size) as u64, (inputs.batch.wanted.len() * size) as u64);
                    let h = self.on_device(stream)?;
                    let spilled = matches!(stream, Stream::Host(_));
                    self.head.record(&mut commands, head, &self.scratch, inputs, &h, &states);
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
        }
        let states: Vec<FoldState> = match &self.scratch.states {
            Some(states) if rows > 0 => self.gpu.read(states, rows)?,
            _ => Vec::new(),
        };
        let mut answers = vec![Vec::new(); self.arms];
        for end in &ends {
            let mut folded = Vec::new();
            for ((input, _), first) in end.job.streams.iter().zip(&end.firsts) {
                let count = inputs[*input].batch.wanted.len();
                folded.extend(states[*first..first + count].iter().copied().map(head::folded));
            }
            for arm in &end.arms {
                answers[*arm].clone_from(&folded);
            }
        }
        Ok(answers)
    }

    fn reserve_states(&mut self, rows: usize) -> Result<()> {
        let bytes = (rows * size_of::<FoldState>()) as u64;
        if self.scratch.states.as_ref().is_none_or(|states| states.bytes() < bytes) {
            self.scratch.states = None;
            self.scratch.states = Some(self.gpu.alloc("statistics", bytes.next_power_of_two())?);
        }
        Ok(())
    }
}
