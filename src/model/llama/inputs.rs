//! A batch's description on the device.

use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::model::Batch;

/// Words to which each part is aligned, so that it can be bound.
const ALIGNED: usize = 64;

/// One batch, and where the device finds what describes it.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) batch: &'a Batch,
    /// `[t]` places.
    pub(super) places: Buffer,
    /// Pages of every sequence, u32.
    pub(super) table: Buffer,
    /// Wanted rows of the batch, u32.
    pub(super) rows: Buffer,
    /// The token asked for in each wanted row, u32.
    pub(super) given: Buffer,
    /// Positions that each token looks at.
    pub(super) lengths: Vec<u32>,
}

impl<'a> Inputs<'a> {
    /// Uploads everything at once.
    pub(super) fn new(gpu: &Gpu, batch: &'a Batch) -> Result<Self> {
        let (rows, given): (Vec<u32>, Vec<u32>) =
            batch.wanted.iter().map(|wanted| (wanted.row, wanted.given)).unzip();
        let mut words: Vec<u32> = Vec::new();
        let parts =
            [bytemuck::cast_slice(&batch.places), &batch.table, &rows, &given].map(|part: &[u32]| {
                let first = words.len().next_multiple_of(ALIGNED);
                words.resize(first, 0);
                words.extend_from_slice(part);
                // Nothing can be bound that is empty.
                words.resize(words.len().max(first + 4), 0);
                (first, part.len().max(4))
            });
        let whole = gpu.upload("batch", &words)?;
        let [places, table, rows, given] =
            parts.map(|(first, count)| whole.slice(4 * first as u64, 4 * count as u64));
        let lengths = batch.places.iter().map(|place| place.position + 1).collect();
        Ok(Self { batch, places, table, rows, given, lengths })
    }

    /// Bytes that the largest description of `tokens` tokens and `pages` pages takes.
    pub(super) fn most_bytes(tokens: usize, pages: usize) -> u64 {
        (4 * (4 * tokens + pages + 2 * tokens + 4 * ALIGNED)) as u64
    }
}
