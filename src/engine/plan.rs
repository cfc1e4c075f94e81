//! How arms are laid out in a stated amount of memory, decided before any weight is read.

use std::ops::Range;

use super::Needs;
use super::space::Space;
use crate::error::{Error, Result};
use crate::kernels::{FOLD_CHUNK, KvFormat};
use crate::model::{Layout, Residence, Sizes, Source};

/// Rows of a streamed head that are loaded together.
const HEAD_ROWS: usize = 4 * FOLD_CHUNK;

/// What is given, whatever the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Whether the head is quantized too.
    pub quantize_head: bool,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Batches are halved so many times, for a device that turned out to have less memory.
    pub halvings: u32,
}

/// How much device memory may be used, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub bytes: u64,
    /// Where the number comes from, in words.
    pub source: String,
    /// Largest buffer that a kernel can see, in bytes.
    pub binding: u64,
}

/// A part of the device's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: u64,
    /// How it comes about.
    pub detail: String,
}

/// What a plan expects of a run that generates as much as it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predicted {
    /// Passes over the weights.
    pub passes: u64,
    /// Bytes read from checkpoints.
    pub disk_bytes: u64,
    /// Bytes uploaded to the device.
    pub upload_bytes: u64,
}

/// Arms that run in lockstep, and how they lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Which arms.
    pub arms: Range<usize>,
    /// How they lie.
    pub layout: Layout,
    /// Uploads that may be on their way at a time, in bytes.
    pub uploads: u64,
    /// What takes memory; scoring and generation do not at the same time.
    pub items: Vec<Item>,
    /// The most that is taken at a time.
    pub peak: u64,
    /// What it will cost.
    pub predicted: Predicted,
}

impl MemoryPlan {
    /// Parts `arms` into groups that run one after the other, each in lockstep, and lays each out: so that the fewest
    /// bytes travel.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryTooSmall`] if an arm does not fit even streamed with the smallest batches; if a checkpoint lacks
    /// a tensor.
    pub fn choose(arms: &[Source], given: Given, needs: &Needs, budget: &Budget) -> Result<Vec<Self>> {
        let mut best: Option<(u64, Vec<Self>)> = None;
        let mut failure = None;
        let mut groupings = groupings(arms);
        if needs.pairs > 0 {
            // Arms that are held against each other run together.
            groupings.truncate(1);
        }
        for groups in groupings {
            let plans: Result<Vec<_>> =
                groups.into_iter().map(|group| Self::lay_out(arms, group, given, needs, budget)).collect();
            match plans {
                Ok(plans) => {
                    let cost =
                        plans.iter().map(|plan| plan.predicted.disk_bytes + plan.predicted.upload_bytes);
                    let cost = cost.sum();
                    // The first of equals: the larger groups.
                    if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        best = Some((cost, plans));
                    }
                }
                Err(error @ Error::MemoryTooSmall { .. }) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (best, failure) {
            (Some((_, plans)), _) => Ok(plans),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Lays out one group: resident if that fits, else streamed, else streamed with the residual streams on the host.
    fn lay_out(
        arms: &[Source],
        group: Range<usize>,
        given: Given,
        needs: &Needs,
        budget: &Budget,
    ) -> Result<Self> {
        let sources = &arms[group.clone()];
        let Some(first) = sources.first() else { unreachable!("a group has arms") };
        let config = first.checkpoint.config();
        let whole = config.vocab_size.next_multiple_of(FOLD_CHUNK);
        let resident = Sizes::of(sources, given.quantize_head, whole)?;
        let streamed = Sizes::of(sources, given.quantize_head, HEAD_ROWS)?;
        let ways = [
            (Residence::Resident, whole, &resident, false),
            (Residence::Streamed { overlap: true }, HEAD_ROWS, &streamed, false),
            (Residence::Streamed { overlap: true }, HEAD_ROWS, &streamed, true),
            (Residence::Streamed { overlap: false }, HEAD_ROWS, &streamed, true),
        ];
        let mut least = u64::MAX;
        for (residence, head_rows, sizes, spill) in ways {
            let arms = sources.len();
            let space = Space { config, given, needs, budget, sizes, arms, residence, spill, head_rows };
            match space.fit() {
                Ok(layout) => return Ok(space.plan(layout, group)),
                Err(needed) => least = least.min(needed),
            }
        }
        Err(Error::MemoryTooSmall {
            needed: least,
            budget: budget.bytes,
            source_of_budget: budget.source.clone(),
        })
    }
}

/// Ways to part the arms: all together, by checkpoint, one by one. Only models of one architecture run together.
fn groupings(arms: &[Source]) -> Vec<Vec<Range<usize>>> {
    let by = |together: &dyn Fn(&Source, &Source) -> bool| {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for index in 0..arms.len() {
            match groups.last_mut() {
                Some(group) if together(&arms[group.start], &arms[index]) => group.end = index + 1,
                _ => groups.push(index..index + 1),
            }
        }
        groups
    };
    let mut groupings = vec![
        by(&|a, b| a.checkpoint.config().runs_like(b.checkpoint.config())),
        by(&|a, b| std::sync::Arc::ptr_eq(&a.checkpoint, &b.checkpoint)),
        by(&|_, _| false),
    ];
    groupings.dedup();
    groupings
}
