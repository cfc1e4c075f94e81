//! Holding arms' logits against each other: the head once more, chunk by chunk for all arms side by side.

use super::Llama;
use super::answers::{Ends, head_of, part};
use super::head::Head;
use super::inputs::Inputs;
use super::job::{Job, Stream};
use crate::error::Result;
use crate::gpu::{Buffer, Commands};
use crate::kernels::{
    DivergeOperands, DivergenceState, EntropyOperands, EntropyState, FoldState, TOP, TopEntry,
};
use crate::metrics::divergence::Divergence;
use crate::model::{Compared, Comparing, Detail};

/// The two ends that pairs of arms come down to, and where their sums begin.
#[derive(Clone, Copy, Debug)]
struct Sides {
    reference: usize,
    arm: usize,
    first: usize,
}

impl Llama {
    /// Runs the head on all wanted rows twice: a divergence takes both arms' log-sum-exps, which the first time gives.
    pub(super) fn compared(
        &mut self,
        inputs: &[Inputs<'_>],
        jobs: &[Job],
        Comparing { pairs, detailed }: Comparing<'_>,
    ) -> Result<Compared> {
        let ends = self.fold(inputs, jobs, detailed)?;
        let end_of = |arm: usize| ends.ends.iter().position(|end| end.arms.contains(&arm));
        let mut sides: Vec<Sides> = Vec::new();
        // Every end has as many rows: all arms run the same batches.
        let rows = ends.rows / ends.ends.len().max(1);
        let mut side_of = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let (Some(reference), Some(arm)) = (end_of(pair.reference), end_of(pair.arm)) else {
                // Nothing was wanted.
                continue;
            };
            let known = sides.iter().position(|side| (side.reference, side.arm) == (reference, arm));
            side_of.push(known.unwrap_or(sides.len()));
            if known.is_none() {
                sides.push(Sides { reference, arm, first: sides.len() * rows });
            }
        }
        if rows > 0 {
            self.diverge(inputs, &ends, &sides, detailed)?;
        }
        let folded = self.folded(inputs, &ends)?;
        let details = if detailed { self.details(inputs, &ends)? } else { vec![Vec::new(); self.arms] };
        let sums: Vec<DivergenceState> = self.scratch.sums.read(&self.gpu, sides.len() * rows)?;
        let divergence = |sum: &DivergenceState| {
            let [kl, reverse_kl, jensen_shannon, total_variation] = sum.map(f64::from);
            Divergence { kl, reverse_kl, jensen_shannon, total_variation }
        };
        let of_pair = |side: &usize| {
            let Sides { reference, first, .. } = sides[*side];
            let end = &ends.ends[reference];
            let batches = end.job.streams.iter().zip(&end.firsts);
            let batches = batches.flat_map(|((input, _), own)| {
                let first = first + own - end.firsts[0];
                &sums[first..first + inputs[*input].batch.wanted.len()]
            });
            batches.map(divergence).collect()
        };
        let pairs = match rows {
            0 => vec![Vec::new(); pairs.len()],
            _ => side_of.iter().map(of_pair).collect(),
        };
        Ok(Compared { folded, details, pairs })
    }

    /// What the two runs left of each row besides its statistics, by arm.
    fn details(&self, inputs: &[Inputs<'_>], ends: &Ends<'_>) -> Result<Vec<Vec<Detail>>> {
        let states: Vec<EntropyState> = self.scratch.details.read(&self.gpu, ends.rows)?;
        let states = self.by_arm(inputs, ends, &states, |state| (state.entropy, state.before));
        let tops: Vec<[TopEntry; TOP]> = self.scratch.tops.read(&self.gpu, ends.rows)?;
        let tops = self.by_arm(inputs, ends, &tops, |top| top.map(|entry| entry.token));
        let detail = |((entropy, before), top)| Detail { entropy: f64::from(entropy), rank: before + 1, top };
        Ok(states
            .into_iter()
            .zip(tops)
            .map(|(own, tops)| own.into_iter().zip(tops).map(detail).collect())
            .collect())
    }

    /// The second run of the head.
    fn diverge(
        &mut self,
        inputs: &[Inputs<'_>],
        ends: &Ends<'_>,
        sides: &[Sides],
        detailed: bool,
    ) -> Result<()> {
        let states = self.scratch.states.reserve::<FoldState>(&self.gpu, ends.rows)?;
        let details = match detailed {
            true => Some(self.scratch.details.reserve::<EntropyState>(&self.gpu, ends.rows)?),
            false => None,
        };
        let rows = ends.rows / ends.ends.len().max(1);
        let sums = self.scratch.sums.reserve::<DivergenceState>(&self.gpu, (sides.len() * rows).max(1))?;
        self.scratch.reserve_sides(&self.gpu, ends.ends.len())?;
        for number in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(number)?;
            let mut commands = Commands::paced(&self.gpu);
            for (batch, inputs) in
                inputs.iter().enumerate().filter(|(_, inputs)| !inputs.batch.wanted.is_empty())
            {
                let wanted = inputs.batch.wanted.len();
                for (end, [normed, _]) in ends.ends.iter().zip(self.scratch.sides.clone()) {
                    let stream = &end.job.streams[batch].1;
                    let h = self.on_device(stream)?;
                    self.head.norm(&mut commands, head_of(&blocks, end.arms[0]), inputs, &h, &normed);
                    if matches!(stream, Stream::Host(_)) {
                        std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
                        self.pool.give_back(h);
                    }
                }
                let rows_of = |end: usize| ends.ends[end].firsts[batch];
                let state = |end: usize| part::<FoldState>(&states, rows_of(end), wanted);
                for (first, n) in Head::chunks(head_of(&blocks, 0)) {
                    let token = head_of(&blocks, 0).first + first;
                    for (index, end) in ends.ends.iter().enumerate() {
                        let [normed, logits] = &self.scratch.sides[index];
                        let head = head_of(&blocks, end.arms[0]);
                        Head::chunk(&mut commands, head, inputs, (first, n), [normed, logits]);
                        if let Some(details) = &details {
                            let own = part::<EntropyState>(details, rows_of(index), wanted);
                            let operands = EntropyOperands {
                                logits,
                                given: &inputs.given,
                                states: &state(index),
                                details: &own,
                            };
                            self.head.entropy.record(&mut commands, operands, wanted, n, token);
                        }
                    }
                    for side in sides {
                        let logits = |end: usize| -> &Buffer { &self.scratch.sides[end][1] };
                        let first =
                            side.first + rows_of(side.reference) - ends.ends[side.reference].firsts[0];
                        let operands = DivergeOperands {
                            reference: logits(side.reference),
                            arm: logits(side.arm),
                            before: &state(side.reference),
                            after: &state(side.arm),
                            sums: &part::<DivergenceState>(&sums, first, wanted),
                        };
                        self.head.diverge.record(&mut commands, operands, wanted, n, token);
                    }
                    if commands.is_full(&self.gpu) {
                        std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
                    }
                }
                self.loader.ahead(number)?;
            }
            commands.submit(&self.gpu)?;
            if self.loader.is_streamed() {
                self.gpu.wait("rows of the head")?;
                drop(blocks);
                self.loader.release(number);
            }
        }
        Ok(())
    }
}
