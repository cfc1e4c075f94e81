//! Which tensors a rounded checkpoint has, and in which order.

use super::{BLOCK, QuantizePlan};
use crate::checkpoint::{Checkpoint, Kind, TensorWriter};
use crate::error::Result;
use crate::model::Linear;

/// The tensors of the file that is written: those of the matrices first, in the order of their use, then the rest as stored.
pub(super) struct Layout {
    /// What is rounded, `[rows, cols]` each; a layer's seven one after the other, as in [`Linear::ALL`].
    pub matrices: Vec<(String, [usize; 2])>,
    /// Names, kinds and shapes of all that is written; the last ones are those of `as_stored`.
    pub tensors: Vec<(String, Kind, Vec<usize>)>,
    /// What stays as it is.
    pub as_stored: Vec<String>,
}

impl Layout {
    /// Of a model whose tensors were checked.
    ///
    /// # Errors
    ///
    /// If the format cannot hold the scheme or a matrix.
    pub(super) fn new(model: &Checkpoint, plan: &QuantizePlan) -> Result<Self> {
        let config = model.config();
        let matrices: Vec<_> = (0..config.layers)
            .flat_map(|layer| Linear::ALL.map(|linear| (linear.name(layer), linear.shape(config))))
            .collect();
        let is_matrix = |name: &str| matrices.iter().any(|(matrix, _)| matrix == name);
        let names = model.tensors().names();
        let as_stored: Vec<_> =
            names.into_iter().filter(|name| !is_matrix(name)).map(str::to_owned).collect();
        let mut tensors = Vec::new();
        for (name, shape) in &matrices {
            plan.format.check(plan.scheme, shape[1])?;
            tensors.extend(plan.format.tensors(name, plan.scheme, *shape));
        }
        for name in &as_stored {
            let (dtype, shape) = model.tensors().describe(name)?;
            tensors.push((name.clone(), Kind::Weights(dtype), shape.to_vec()));
        }
        Ok(Self { matrices, tensors, as_stored })
    }

    /// Weights of all matrices.
    pub(super) fn weights(&self) -> u64 {
        self.matrices.iter().map(|(_, [rows, cols])| (rows * cols) as u64).sum()
    }

    /// Copies what stays as it is, after the matrices.
    ///
    /// # Errors
    ///
    /// If it cannot be read or written.
    pub(super) fn copy_stored(&self, model: &Checkpoint, writer: &mut TensorWriter) -> Result<()> {
        for (name, _, shape) in &self.tensors[self.tensors.len() - self.as_stored.len()..] {
            let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
            let step = (BLOCK / cols.max(1)).max(1);
            for start in (0..rows).step_by(step) {
                let rows = start..(start + step).min(rows);
                writer.write(&model.tensors().read_rows(name, shape, rows)?.bytes)?;
            }
        }
        Ok(())
    }
}
