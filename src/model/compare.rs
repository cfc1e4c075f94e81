//! Holding arms' logits against each other: what is asked, what is answered, and how arms on the CPU answer.

use rayon::prelude::*;

use super::{Batch, Folded, Forward};
use crate::error::{Error, Result};
use crate::kernels::{FOLD_CHUNK, TOP};
use crate::metrics::divergence::{Divergence, entropy};

/// Two arms of a lockstep model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The one that is held to be right: p.
    pub reference: usize,
    /// The other one: q.
    pub arm: usize,
}

/// What is held against each other, and how closely arms are looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparing<'a> {
    /// Pairs of arms.
    pub pairs: &'a [Pair],
    /// Whether every arm's [`Detail`]s are wanted: likeliest tokens take time to find.
    pub detailed: bool,
}

/// What there is to know of an arm's distribution at one position, besides [`Folded`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Detail {
    /// In nats.
    pub entropy: f64,
    /// Rank of the given token, 1 for the likeliest; equally likely ones by token.
    pub rank: u32,
    /// The likeliest tokens, in that order; `u32::MAX` where the vocabulary has no more.
    pub top: [u32; TOP],
}

/// The answers of a pass that compares. Rows are the wanted ones, batch after batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// By arm, then by row.
    pub folded: Vec<Vec<Folded>>,
    /// By arm, then by row; no rows if they were not asked for.
    pub details: Vec<Vec<Detail>>,
    /// By pair, then by row.
    pub pairs: Vec<Vec<Divergence>>,
}

/// What is kept of one row of one arm while the vocabulary goes by.
#[derive(Clone, Debug, Default)]
struct Seen {
    entropy: f64,
    before: u32,
    /// Greatest first, equal ones by token.
    top: Vec<(f32, u32)>,
}

impl Seen {
    /// Takes in the logits of the tokens from `first` on.
    fn add(&mut self, first: u32, logits: &[f32], folded: &Folded, given: u32) {
        self.entropy += entropy(logits, f64::from(folded.log_sum_exp));
        for (token, &logit) in (first..).zip(logits) {
            self.before +=
                u32::from(logit > folded.given_logit || (logit == folded.given_logit && token < given));
            if self.top.len() < TOP || self.top.last().is_some_and(|(last, _)| logit > *last) {
                let at = self.top.partition_point(|(other, _)| *other >= logit);
                self.top.insert(at, (logit, token));
                self.top.truncate(TOP);
            }
        }
    }

    fn detail(&self) -> Detail {
        let mut top = [u32::MAX; TOP];
        top.iter_mut().zip(&self.top).for_each(|(place, (_, token))| *place = *token);
        Detail { entropy: self.entropy, rank: self.before + 1, top }
    }
}

/// [`super::Lockstep::compare`] of single arms. Of each arm, a chunk of one batch's logits is held at a time.
pub(super) fn compare_each<F: Forward>(
    arms: &mut [F],
    batches: &[Batch],
    Comparing { pairs, detailed }: Comparing<'_>,
) -> Result<Compared> {
    let mut compared = Compared {
        folded: vec![Vec::new(); arms.len()],
        details: vec![Vec::new(); arms.len()],
        pairs: vec![Vec::new(); pairs.len()],
    };
    for batch in batches {
        let rows = batch.wanted.len();
        let mut hidden = Vec::with_capacity(arms.len());
        let mut folded = Vec::with_capacity(arms.len());
        let mut vocab = 0;
        for arm in arms.iter_mut() {
            let Some(arm) = arm.logits() else {
                let expected = "arms that give their logits".to_owned();
                return Err(Error::Shape { kernel: "compare", what: "logits", got: 0, expected });
            };
            hidden.push(arm.hidden(batch)?);
            folded.push(hidden.last().map_or_else(Vec::new, |hidden| arm.fold(batch, hidden)));
            vocab = arm.vocab();
        }
        let mut seen = vec![vec![Seen::default(); rows]; arms.len()];
        let mut sums = vec![vec![Divergence::default(); rows]; pairs.len()];
        for first in (0..vocab).step_by(FOLD_CHUNK) {
            let n = FOLD_CHUNK.min(vocab - first);
            // Token ids have 32 bits.
            let token = u32::try_from(first).unwrap_or(u32::MAX);
            let mut chunks = Vec::with_capacity(arms.len());
            for (arm, hidden) in arms.iter_mut().zip(&hidden) {
                chunks.push(
                    arm.logits().map_or_else(Vec::new, |arm| arm.chunk(batch, hidden, first..first + n)),
                );
            }
            for ((seen, folded), chunk) in seen.iter_mut().zip(&folded).zip(&chunks).filter(|_| detailed) {
                let rows = seen.par_iter_mut().zip(folded).zip(chunk.par_chunks(n)).zip(&batch.wanted);
                rows.for_each(|(((seen, folded), logits), wanted)| {
                    seen.add(token, logits, folded, wanted.given);
                });
            }
            for (sums, pair) in sums.iter_mut().zip(pairs) {
                let [p, q] = [&chunks[pair.reference], &chunks[pair.arm]];
                let whole = |row: usize| {
                    [pair.reference, pair.arm].map(|arm| f64::from(folded[arm][row].log_sum_exp))
                };
                let rows = sums.par_iter_mut().enumerate().zip(p.par_chunks(n)).zip(q.par_chunks(n));
                rows.for_each(|(((row, sum), p), q)| sum.add(p, q, whole(row)));
            }
        }
        for (all, folded) in compared.folded.iter_mut().zip(folded) {
            all.extend(folded);
        }
        for (all, seen) in compared.details.iter_mut().zip(&seen).filter(|_| detailed) {
            all.extend(seen.iter().map(Seen::detail));
        }
        for (all, sums) in compared.pairs.iter_mut().zip(sums) {
            all.extend(sums);
        }
    }
    Ok(compared)
}
