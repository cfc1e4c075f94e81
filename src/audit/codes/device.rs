//! Blocks that a device compares.

use super::Changes;
use super::pair::{Block, Pair};
use crate::checkpoint::Tensor;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::{Comparer, Stored};
use crate::quant::Scheme;

/// A device at work on the blocks of a pair.
pub(super) struct OnDevice<'a> {
    gpu: &'a Gpu,
    pair: &'a Pair,
    comparer: Comparer,
    /// Blocks whose results are still there.
    waiting: Vec<&'a Block>,
}

impl<'a> OnDevice<'a> {
    pub(super) fn new(gpu: &'a Gpu, pair: &'a Pair, schemes: &[Scheme]) -> Self {
        Self { gpu, pair, comparer: Comparer::new(schemes), waiting: Vec::new() }
    }

    /// Hands over a block of a matrix, read from the target and the unlearned checkpoint.
    pub(super) fn add(
        &mut self,
        block: &'a Block,
        tensors: &[Tensor; 2],
        changes: &mut Changes<'_>,
    ) -> Result<()> {
        if self.comparer.is_full() {
            self.finish(changes)?;
        }
        let [n, k] = block.shape();
        let [target, unlearned] = tensors.each_ref().map(|Tensor { dtype, bytes, .. }| Stored {
            name: block.name(),
            dtype: *dtype,
            bytes,
            n,
            k,
        });
        self.comparer.add(self.gpu, target, unlearned)?;
        self.waiting.push(block);
        Ok(())
    }

    /// Waits for the blocks handed over and adds what was found in them, in their order. A block that the device cannot
    /// hold the figures of is read again and compared on the host.
    pub(super) fn finish(&mut self, changes: &mut Changes<'_>) -> Result<()> {
        let found = self.comparer.finish(self.gpu)?;
        for (block, found) in self.waiting.drain(..).zip(found) {
            match found {
                Some(found) => changes.add(block, &found),
                None => changes.compare(block, &self.pair.read(block)?),
            }
        }
        Ok(())
    }
}
