//! The trait behind which one arm answers, on the CPU or as a test's fake, and what is asked of it.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use serde::Serialize;

use crate::error::Result;

/// Tokens in one page of the KV cache.
pub const PAGE: usize = 16;

/// Where a token stands: in its sequence and in the cache.
///
/// The token's key and value are written to `slot`. It attends to positions `0..=position` of its
/// sequence; position `p` lies in slot `table[self.table + p / PAGE] * PAGE + p % PAGE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Index in the sequence; 0 is the first token.
    pub position: u32,
    /// Index of the cache slot that this token's key and value go to.
    pub slot: u32,
    /// Index in the batch's block table at which the sequence's pages begin.
    pub table: u32,
    /// Keeps the struct at 16 bytes, the stride WGSL gives it.
    pub pad: u32,
}

/// Whether tokens come many to a sequence or one to a sequence.
///
/// Kernels are chosen by phase, never by the number of rows: that is what keeps a token's result
/// independent of the batch it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Prompt and scoring tokens.
    Prefill,
    /// One new token for each sequence.
    Decode,
}

/// A row whose logits are wanted, folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Row of the batch.
    pub row: u32,
    /// The token whose log-probability is asked for.
    pub given: u32,
}

/// Ragged tokens of many sequences, packed end to end without padding.
///
/// Tokens of one sequence come in order; a sequence may continue one whose earlier tokens are
/// already in the cache.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Decides which kernels run.
    pub phase: Phase,
    /// Token ids, `[t]`.
    pub tokens: Vec<u32>,
    /// One place a token, `[t]`.
    pub places: Vec<Place>,
    /// Pages of all sequences, one sequence after the other.
    pub table: Vec<u32>,
    /// Rows to run the head on, in the order of the answer.
    pub wanted: Vec<Wanted>,
}

/// The logits of one row, folded over the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Folded {
    /// Natural log of the sum of exp(logit).
    pub log_sum_exp: f32,
    /// The most likely token; the lowest id among equals.
    pub argmax: u32,
    /// Its logit.
    pub max_logit: f32,
    /// The given token's logit.
    pub given_logit: f32,
}

impl Folded {
    /// log p of the given token, in nats.
    #[must_use]
    pub fn log_prob(&self) -> f32 {
        self.given_logit - self.log_sum_exp
    }
}

/// How much one call of [`Forward::forward`] may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens in a batch.
    pub tokens: usize,
    /// Wanted rows in a batch.
    pub wanted: usize,
    /// Pages of the KV cache.
    pub pages: usize,
}

/// What was done, for the run's record. Sums over arms; peaks are maxima.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// Bytes read from checkpoints.
    pub disk_bytes: u64,
    /// Bytes uploaded to the device.
    pub upload_bytes: u64,
    /// Times that all weights were run through.
    pub weight_passes: u64,
    /// Kernel launches.
    pub dispatches: u64,
    /// Command buffers handed to the device.
    pub submissions: u64,
    /// Tokens whose log-probability was computed.
    pub tokens_scored: u64,
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Most device memory held at one time, by our own accounting.
    pub peak_device_bytes: u64,
    /// The same by wgpu's allocator, with what uploads and read-backs hold; 0 where that was not watched.
    pub peak_allocated_bytes: u64,
    /// Where the time went.
    pub seconds: Seconds,
}

/// Wall seconds by kind of work.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// Reading, uploading and packing weights.
    pub load: f64,
    /// Device work of scoring, with the head.
    pub score: f64,
    /// Device work of generation, with the head.
    pub generate: f64,
}

impl Counters {
    /// Adds another arm's counters.
    pub fn add(&mut self, other: &Self) {
        self.disk_bytes += other.disk_bytes;
        self.upload_bytes += other.upload_bytes;
        self.weight_passes += other.weight_passes;
        self.dispatches += other.dispatches;
        self.submissions += other.submissions;
        self.tokens_scored += other.tokens_scored;
        self.tokens_generated += other.tokens_generated;
        self.peak_device_bytes = self.peak_device_bytes.max(other.peak_device_bytes);
        self.peak_allocated_bytes = self.peak_allocated_bytes.max(other.peak_allocated_bytes);
        self.seconds.load += other.seconds.load;
        self.seconds.score += other.seconds.score;
        self.seconds.generate += other.seconds.generate;
    }
}

/// A model that can be asked for folded logits.
pub trait Forward {
    /// The largest batch and cache.
    fn capacity(&self) -> Capacity;

    /// Runs the batch, writes its keys and values to the cache, and answers each wanted row.
    ///
    /// # Errors
    ///
    /// If the device fails. Logits that are not finite are returned as they are: the engine, which
    /// knows the task, reports them.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Folded>>;

    /// What was done so far; the engine adds the token counts and the seconds of its own.
    fn counters(&self) -> Counters;

    /// This arm, if its logits themselves can be had.
    fn logits(&mut self) -> Option<&mut dyn Logits> {
        None
    }
}

/// An arm whose logits can be held against another's.
pub trait Logits {
    /// Runs the batch like [`Forward::forward`], up to what the head is applied to: `[wanted, d]`.
    ///
    /// # Errors
    ///
    /// As [`Forward::forward`].
    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>>;

    /// The answers of [`Forward::forward`] to rows that `hidden` is of.
    fn fold(&self, batch: &Batch, hidden: &[f32]) -> Vec<Folded>;

    /// Logits of some tokens in the rows that `hidden` is of, `[wanted, tokens]`.
    fn chunk(&self, batch: &Batch, hidden: &[f32], tokens: Range<usize>) -> Vec<f32>;

    /// `v`.
    fn vocab(&self) -> usize;
}

impl<F: Forward + ?Sized> Forward for Box<F> {
    fn capacity(&self) -> Capacity {
        (**self).capacity()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<Folded>> {
        (**self).forward(batch)
    }

    fn counters(&self) -> Counters {
        (**self).counters()
    }

    fn logits(&mut self) -> Option<&mut dyn Logits> {
        (**self).logits()
    }
}
