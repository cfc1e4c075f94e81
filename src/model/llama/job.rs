//! A residual stream for every batch, of one arm or of all arms that are still the same.

use super::inputs::Inputs;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu};

/// Where a batch's residual stream, `[t, d]`, waits between blocks.
#[derive(Debug)]
pub(super) enum Stream {
    Device(Buffer),
    Host(Vec<f32>),
}

/// Arms whose weights were the same in all blocks so far, with the state that they share.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) arms: Vec<usize>,
    /// By batch: its place among the pass's inputs, and its stream.
    pub(super) streams: Vec<(usize, Stream)>,
}

impl Job {
    /// A copy for arms that go on with other weights.
    pub(super) fn fork(&self, gpu: &Gpu, arms: Vec<usize>, pool: &mut Pool) -> Result<Self> {
        let copied = self.streams.iter().map(|(input, stream)| {
            let stream = match stream {
                Stream::Host(values) => Stream::Host(values.clone()),
                Stream::Device(from) => {
                    let to = pool.take(gpu)?;
                    gpu.copy(from, &to);
                    Stream::Device(to)
                }
            };
            Ok((*input, stream))
        });
        Ok(Self { arms, streams: copied.collect::<Result<_>>()? })
    }

    /// Rows whose logits are wanted.
    pub(super) fn wanted(&self, inputs: &[Inputs<'_>]) -> usize {
        self.streams.iter().map(|(input, _)| inputs[*input].batch.wanted.len()).sum()
    }
}

/// Buffers for streams, all of one size, handed out again from pass to pass.
#[derive(Debug)]
pub(super) struct Pool {
    bytes: u64,
    free: Vec<Buffer>,
}

impl Pool {
    /// An empty pool of buffers of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, free: Vec::new() }
    }

    /// A buffer, its contents undefined.
    pub(super) fn take(&mut self, gpu: &Gpu) -> Result<Buffer> {
        self.free.pop().map_or_else(|| gpu.alloc("residual stream", self.bytes), Ok)
    }

    /// Takes back what a pass used.
    pub(super) fn give(&mut self, jobs: Vec<Job>) {
        for (_, stream) in jobs.into_iter().flat_map(|job| job.streams) {
            if let Stream::Device(buffer) = stream {
                self.free.push(buffer);
            }
        }
    }

    /// Takes back one buffer.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }

    /// Frees what is not in use.
    pub(super) fn clear(&mut self) {
        self.free.clear();
    }
}
