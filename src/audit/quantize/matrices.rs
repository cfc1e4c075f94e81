//! The matrices of a checkpoint, rounded in blocks of rows and written as they come.

use super::layout::Layout;
use super::{BLOCK, QuantizePlan, QuantizeStage, QuantizeWatch, QuantizedTensor};
use crate::checkpoint::{Checkpoint, TensorWriter};
use crate::error::Result;
use crate::model::{Calibration, Linear};
use crate::quant::{Moments, Rounded, Rounding, Rows, matched, round};

/// Rows come in multiples of this, so that no block of a table scheme is cut: columns are multiples of 8.
const ROWS: usize = 8;

/// A row is near its goal within this.
const NEAR: f64 = 0.05;

/// How they are rounded.
pub(super) struct Matrices<'a, 'c> {
    pub plan: &'a QuantizePlan,
    /// How codes are chosen: the plan's way, or nearest where there is nothing to repair.
    pub rounding: Rounding,
    pub model: &'a Checkpoint,
    /// The checkpoint from which the update leads, where it is to be kept.
    pub target: Option<&'a Checkpoint>,
    /// The text on which outputs are to stay near.
    pub calibration: Option<&'a mut Calibration<'c>>,
}

impl Matrices<'_, '_> {
    /// Rounds and writes them all, in the order of the layout.
    ///
    /// # Errors
    ///
    /// If weights cannot be read or written, and what `watch` says.
    pub(super) fn write(
        &mut self,
        layout: &Layout,
        writer: &mut TensorWriter,
        watch: &mut QuantizeWatch,
    ) -> Result<Vec<QuantizedTensor>> {
        let (mut done, total) = (0, layout.weights());
        let mut found = Vec::with_capacity(layout.matrices.len());
        for layer in layout.matrices.chunks(Linear::ALL.len()) {
            let moments = self.calibration.as_mut().map(|text| text.layer()).transpose()?;
            for ((name, shape), linear) in layer.iter().zip(Linear::ALL) {
                let moments = moments.as_ref().and_then(|moments| moments.of(linear));
                let mut progress = |weights| {
                    done += weights;
                    watch(QuantizeStage::Rounding, done, total)
                };
                found.push(self.write_one(name, *shape, moments, writer, &mut progress)?);
            }
        }
        Ok(found)
    }

    /// One of them: its codes block by block, then its scales. `progress` is told of each block's weights.
    fn write_one(
        &self,
        name: &str,
        [rows, cols]: [usize; 2],
        moments: Option<&Moments>,
        writer: &mut TensorWriter,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<QuantizedTensor> {
        let mut tensor =
            QuantizedTensor { name: name.to_owned(), weights: (rows * cols) as u64, ..Default::default() };
        let mut scales = Vec::new();
        let step = ROWS * (BLOCK / (ROWS * cols)).max(1);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            let read = |checkpoint: &Checkpoint| {
                checkpoint
                    .tensors()
                    .read_rows(name, &[rows, cols], range.clone())
                    .map(|tensor| tensor.to_f32())
            };
            let weights = read(self.model)?;
            let target = self.target.map(read).transpose()?;
            let first = (start * cols) as u64;
            let block = Rows {
                weights: &weights,
                target: target.as_deref(),
                rows: range.len(),
                cols,
                tensor: name,
                first,
            };
            let rounded = self.round(block, moments);
            tensor.add(self.rounding, &rounded);
            let (now, after) = self.plan.format.bytes(&rounded.packed);
            writer.write(&now)?;
            scales.extend(after);
            progress(weights.len() as u64)?;
        }
        writer.write(&scales)?;
        writer.write(&self.plan.format.end([rows, cols]))?;
        Ok(tensor)
    }

    /// Rounds some rows.
    fn round(&self, block: Rows, moments: Option<&Moments>) -> Rounded {
        let scheme = self.plan.scheme;
        if let (Rounding::Kept(share), Some(target), Some(moments)) = (self.rounding, block.target, moments) {
            let shape = [block.rows, block.cols];
            let kept = matched(scheme, target, block.weights, shape, moments, share.get());
            let moved = kept.rows.iter().map(|row| row.moved).sum();
            return Rounded { packed: kept.packed, moved, kept: kept.rows };
        }
        round(scheme, self.rounding, block)
    }
}

impl QuantizedTensor {
    /// Adds what became of some rows.
    fn add(&mut self, rounding: Rounding, rounded: &Rounded) {
        self.moved += rounded.moved;
        let Rounding::Kept(share) = rounding else { return };
        let update = self.update.get_or_insert_default();
        for row in &rounded.kept {
            update.merge(row);
            let survival = row.survival();
            self.updated_rows += u64::from(survival.is_some());
            let near = survival.is_some_and(|kept| (kept - f64::from(share.get())).abs() <= NEAR);
            self.near_rows += u64::from(near);
        }
    }
}
