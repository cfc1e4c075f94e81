//! The sizes of batches and caches that fit.

use std::ops::Range;

use super::Needs;
use super::needs::Demand;
use super::plan::{Budget, Given, Item, MemoryPlan, Predicted};
use crate::checkpoint::Config;
use crate::kernels::FOLD_CHUNK;
use crate::model::{Layout, PAGE, Residence, Share, Sizes, Work};

/// Sizes of batches that are tried, largest first.
const TOKENS: [usize; 7] = [1024, 512, 256, 128, 64, 32, 16];

/// Activations of a batch take no more than this part of the memory, if smaller batches are to be had.
const ACTIVATIONS_SHARE: u64 = 4;

/// Batches in a pass over resident weights: more would gain nothing, and answers would come late.
const RESIDENT_BATCHES: usize = 4;

/// Uploads that may be on their way at a time, at most and at least.
const UPLOADS: [u64; 2] = [64 << 20, 8 << 20];

/// Uploads take no more than this part of the memory.
const UPLOADS_SHARE: u64 = 8;

/// Set aside for small buffers: parameters, read-backs, the sentinel, trials of kernels.
const SMALL_BYTES: u64 = 4 << 20;

/// What a layout has to fit into, but for the sizes to be found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space<'a> {
    pub(super) config: &'a Config,
    pub(super) given: Given,
    pub(super) needs: &'a Needs,
    pub(super) budget: &'a Budget,
    pub(super) sizes: &'a Sizes,
    pub(super) arms: usize,
    pub(super) residence: Residence,
    pub(super) spill: bool,
    pub(super) head_rows: usize,
}

impl Space<'_> {
    fn uploads(&self) -> u64 {
        (self.budget.bytes / UPLOADS_SHARE).clamp(UPLOADS[1], UPLOADS[0])
    }

    /// Weights on the device at a time, with what they pass through.
    fn weights(&self) -> u64 {
        self.sizes.staging
            + match self.residence {
                Residence::Resident => self.sizes.weights,
                Residence::Streamed { overlap: true } => self.sizes.two_blocks,
                Residence::Streamed { overlap: false } => self.sizes.block,
            }
    }

    /// Streams that are on the device at a time: arms may share one as long as their weights were the same, but may
    /// all differ.
    fn streams(&self, batches: usize) -> u64 {
        if self.spill { 1 } else { (self.arms * batches) as u64 }
    }

    /// What `work` takes besides weights and activations.
    fn work(&self, work: Work, tokens: usize, share: Share) -> u64 {
        let demand = self.needs.demand(work);
        if demand.tasks == 0 {
            return 0;
        }
        // Scored batches are the same for all arms.
        let (described, pairs) = match work {
            Work::Score => (share.batches, self.needs.pairs),
            Work::Generate => (share.batches * self.arms, 0),
        };
        self.streams(share.batches) * Sizes::stream(self.config, tokens)
            + Sizes::cache(self.config, self.given.kv, work, share.pages, self.arms)
            + Sizes::batches(described, tokens, share.pages)
            + Sizes::answers(self.config, share.batches, tokens, self.arms, pairs)
    }

    fn common(&self, tokens: usize, pages: usize) -> u64 {
        self.weights()
            + self.uploads()
            + SMALL_BYTES
            + Sizes::activations(self.config, tokens)
            + Sizes::rotary(self.config, pages)
    }

    fn peak(&self, tokens: usize, score: Share, generate: Share) -> u64 {
        let works = self.work(Work::Score, tokens, score).max(self.work(Work::Generate, tokens, generate));
        self.common(tokens, score.pages.max(generate.pages)) + works
    }

    /// Pages that a cache may have for the device to bind it.
    fn most_pages(&self) -> usize {
        let page = self.given.kv.bytes() * PAGE * self.config.kv_heads * self.config.head_dim;
        usize::try_from(self.budget.binding).unwrap_or(usize::MAX) / page.max(1)
    }

    /// The smallest shares with which every task can run.
    fn least(&self, tokens: usize) -> (Share, Share) {
        let pages = |demand: Demand| demand.longest.div_ceil(PAGE).max(1);
        let (score, generate) = (self.needs.score, self.needs.generate);
        (
            // A scored text is whole in a pass.
            Share { batches: score.longest.div_ceil(tokens).max(1), pages: pages(score) },
            Share { batches: 1, pages: pages(generate) },
        )
    }

    /// The layout with the largest batches and caches that fit; else the bytes that the smallest one takes.
    pub(super) fn fit(&self) -> Result<Layout, u64> {
        let widest = [
            self.config.hidden_size,
            self.config.intermediate_size,
            self.config.heads * self.config.head_dim,
            FOLD_CHUNK.min(self.config.vocab_size),
        ];
        let widest = widest.into_iter().max().unwrap_or(1);
        let bindable = |tokens: usize| (4 * tokens * widest) as u64 <= self.budget.binding;
        let longest = self.needs.score.rows.max(self.needs.generate.rows).max(1).next_power_of_two();
        let sizes: Vec<_> = TOKENS
            .into_iter()
            .skip(self.given.halvings as usize)
            .filter(|tokens| bindable(*tokens) && (*tokens <= longest || *tokens == TOKENS[TOKENS.len() - 1]))
            .collect();
        let last = sizes.last().copied().unwrap_or(TOKENS[TOKENS.len() - 1]);
        let modest = |tokens: usize| {
            Sizes::activations(self.config, tokens) * ACTIVATIONS_SHARE <= self.budget.bytes || tokens == last
        };
        for tokens in sizes.into_iter().filter(|tokens| modest(*tokens)) {
            let (score, generate) = self.least(tokens);
            if self.peak(tokens, score, generate) <= self.budget.bytes {
                return Ok(self.grow(tokens, score, generate));
            }
        }
        let (score, generate) = self.least(last);
        Err(self.peak(last, score, generate))
    }

    /// Gives each kind of work, which has the memory for itself, as much as it can use.
    fn grow(&self, tokens: usize, mut score: Share, mut generate: Share) -> Layout {
        let Demand { pages, rows, longest, .. } = self.needs.score;
        let floor = score;
        // Pages are handed on within a pass: two batches' worth and the longest text keep every batch full.
        let useful = pages.min((longest + 2 * tokens).div_ceil(PAGE) + 1).min(self.most_pages());
        score.pages = most(score.pages, useful, |pages| {
            self.peak(tokens, Share { pages, ..score }, generate) <= self.budget.bytes
        });
        let wanted = match self.residence {
            Residence::Resident => score.batches.max(RESIDENT_BATCHES),
            Residence::Streamed { .. } => score.batches.max(rows.div_ceil(tokens)),
        };
        score.batches = most(score.batches, wanted, |batches| {
            self.peak(tokens, Share { batches, ..score }, generate) <= self.budget.bytes
        });

        let Demand { pages, rows, .. } = self.needs.generate;
        generate.pages = most(generate.pages, pages.min(self.most_pages()), |pages| {
            self.peak(tokens, floor, Share { pages, ..generate }) <= self.budget.bytes
        });
        // Prompts that share a beginning come a batch after the one that computes it.
        let all = rows.div_ceil(tokens) + 1;
        let wanted = match self.residence {
            Residence::Resident => RESIDENT_BATCHES.min(all),
            Residence::Streamed { .. } => all,
        };
        generate.batches = most(generate.batches, wanted, |batches| {
            self.peak(tokens, floor, Share { batches, ..generate }) <= self.budget.bytes
        });
        let (residence, spill, head_rows, kv) = (self.residence, self.spill, self.head_rows, self.given.kv);
        // The rotary table serves both; it may have tipped the balance.
        if self.peak(tokens, score, generate) > self.budget.bytes {
            score = floor;
        }
        Layout { tokens, score, generate, residence, kv, spill, head_rows }
    }

    pub(super) fn plan(&self, layout: Layout, arms: Range<usize>) -> MemoryPlan {
        let Layout { tokens, score, generate, .. } = layout;
        let pages = score.pages.max(generate.pages);
        let mut items = vec![
            Item {
                name: "weights",
                bytes: self.weights() - self.sizes.staging,
                detail: match self.residence {
                    Residence::Resident => "resident: read once, kept packed".to_owned(),
                    Residence::Streamed { overlap: true } => {
                        format!(
                            "streamed: a window of two half layers, head {} rows at a time",
                            self.head_rows
                        )
                    }
                    Residence::Streamed { overlap: false } => {
                        format!("streamed: one half layer, head {} rows at a time", self.head_rows)
                    }
                },
            },
            Item {
                name: "staging",
                bytes: self.sizes.staging + self.uploads(),
                detail: "stored weights on their way to being packed; uploads under way".to_owned(),
            },
            Item {
                name: "activations",
                bytes: Sizes::activations(self.config, tokens),
                detail: format!(
                    "batches of {tokens} tokens, logits {FOLD_CHUNK} of the vocabulary at a time"
                ),
            },
            Item {
                name: "rotations",
                bytes: Sizes::rotary(self.config, pages),
                detail: format!("{} positions", pages * PAGE),
            },
            Item { name: "small buffers", bytes: SMALL_BYTES, detail: "parameters, read-backs".to_owned() },
        ];
        for (work, share, name) in [(Work::Score, score, "scoring"), (Work::Generate, generate, "generation")]
        {
            if self.needs.demand(work).tasks > 0 {
                let waiting = if self.spill { "in host memory" } else { "on the device" };
                let caches = if work == Work::Score { 1 } else { self.arms };
                items.push(Item {
                    name,
                    bytes: self.work(work, tokens, share),
                    detail: format!(
                        "{} batches of {} arms a pass, their streams {waiting}; {caches} caches of {} pages of {PAGE} tokens in {}",
                        share.batches, self.arms, share.pages, self.given.kv.name()
                    ),
                });
            }
        }
        MemoryPlan {
            arms,
            peak: self.peak(tokens, score, generate),
            layout,
            uploads: self.uploads(),
            items,
            predicted: self.predict(layout),
        }
    }

    fn predict(&self, layout: Layout) -> Predicted {
        let (score, generate) = (self.needs.score, self.needs.generate);
        let passes = |demand: Demand, share: Share| demand.rows.div_ceil(layout.tokens * share.batches);
        // Sequences that do not fit the cache wait for a whole generation.
        let rounds = generate.pages.div_ceil(layout.generate.pages.max(1));
        let prompts = if generate.tasks == 0 { 0 } else { passes(generate, layout.generate).max(rounds) };
        let steps = rounds * generate.steps.saturating_sub(1);
        let scoring = passes(score, layout.score);
        let passes = (scoring + prompts + steps) as u64;
        let times = if self.residence == Residence::Resident { 1 } else { passes };
        // Arms that are compared run through the head a second time.
        let heads = match (self.residence, self.needs.pairs) {
            (Residence::Resident, _) | (_, 0) => 0,
            _ => scoring as u64,
        };
        let residual = (4 * self.config.hidden_size * (score.rows + generate.rows) * self.arms) as u64;
        Predicted {
            passes,
            disk_bytes: times * self.sizes.read + heads * self.sizes.head,
            upload_bytes: times * self.sizes.uploaded + heads * self.sizes.head + residual,
        }
    }
}

/// The largest number up to `wanted` that `fits`, by bisection; `least` is known to.
fn most(least: usize, wanted: usize, fits: impl Fn(usize) -> bool) -> usize {
    if wanted <= least {
        return least;
    }
    if fits(wanted) {
        return wanted;
    }
    let (mut low, mut high) = (least, wanted);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}
