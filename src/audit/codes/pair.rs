//! Two checkpoints of the same shapes, read in the same blocks of rows.

use std::fmt::Debug;
use std::ops::Range;

use super::{CodesPlan, HEAD};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::model::{Linear, check_tensors, head_name, unquantized};

/// Weights that one thread of the host compares at a time. Sums depend on it, as on the matrix's shape, and on nothing
/// else.
const UNIT: usize = 1 << 15;

/// A unit has a multiple of this many rows. Columns come in multiples of 8, so a unit then has a multiple of 64 weights:
/// it cuts no block of a scheme whose blocks run across rows.
const UNIT_ROWS: usize = 8;

/// Rows of a unit in a matrix of `cols` columns.
pub(super) fn unit_rows(cols: usize) -> usize {
    (UNIT / cols).next_multiple_of(UNIT_ROWS).max(UNIT_ROWS)
}

/// A matrix that both checkpoints have.
pub(super) struct Matrix {
    pub(super) layer: Option<usize>,
    pub(super) module: &'static str,
    name: String,
    pub(super) shape: [usize; 2],
}

/// Both checkpoints.
pub(in crate::audit) struct Pair {
    target: Checkpoint,
    unlearned: Checkpoint,
    /// What schemes apply to.
    pub(super) matrices: Vec<Matrix>,
    /// Names and shapes of what stays as stored.
    others: Vec<(String, Vec<usize>)>,
}

/// Rows that are read of both checkpoints at a time.
#[derive(Clone, Debug)]
pub(in crate::audit) struct Block {
    /// Index of the matrix, or `None` for what stays as stored.
    pub(in crate::audit) matrix: Option<usize>,
    name: String,
    shape: Vec<usize>,
    rows: Range<usize>,
}

impl Block {
    pub(in crate::audit) fn name(&self) -> &str {
        &self.name
    }

    /// Rows and columns.
    pub(in crate::audit) fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.shape[1..].iter().product()]
    }

    /// Index in its tensor of the first weight.
    pub(in crate::audit) fn first(&self) -> u64 {
        (self.rows.start * self.shape()[1]) as u64
    }

    /// Reads it of one checkpoint.
    pub(in crate::audit) fn read(&self, checkpoint: &Checkpoint) -> Result<Tensor> {
        checkpoint.tensors().read_rows(&self.name, &self.shape, self.rows.clone())
    }

    pub(in crate::audit) fn weights(&self) -> u64 {
        self.shape().iter().product::<usize>() as u64
    }
}

impl Pair {
    /// Opens both, and checks that they have the same layers and shapes.
    pub(in crate::audit) fn open(plan: &CodesPlan) -> Result<Self> {
        let target = Checkpoint::open(&plan.target)?;
        let unlearned = Checkpoint::open(&plan.unlearned)?;
        check_tensors(&target)?;
        check_tensors(&unlearned)?;
        let matrices = matrices(&target, &unlearned, plan.quantize_head)?;
        let others = others(&target, &unlearned, plan.quantize_head)?;
        Ok(Self { target, unlearned, matrices, others })
    }

    /// The matrices' layers and modules.
    pub(in crate::audit) fn places(&self) -> impl Iterator<Item = (Option<usize>, &'static str)> {
        self.matrices.iter().map(|matrix| (matrix.layer, matrix.module))
    }

    /// All weights in blocks of whole units, no more than `most` weights unless one unit is: the matrices in order, then
    /// what stays as stored.
    pub(in crate::audit) fn blocks(&self, most: usize) -> Vec<Block> {
        let matrices = self.matrices.iter().enumerate();
        let matrices = matrices.map(|(index, matrix)| (Some(index), &matrix.name, &matrix.shape[..]));
        let others = self.others.iter().map(|(name, shape)| (None, name, &shape[..]));
        let cut = |(matrix, name, shape): (Option<usize>, &String, &[usize])| {
            let (rows, cols): (usize, usize) = (shape[0], shape[1..].iter().product());
            let unit = unit_rows(cols);
            let step = unit * (most / (unit * cols)).max(1);
            let (name, shape) = (name.clone(), shape.to_vec());
            (0..rows).step_by(step).map(move |start| Block {
                matrix,
                name: name.clone(),
                shape: shape.clone(),
                rows: start..rows.min(start + step),
            })
        };
        matrices.chain(others).flat_map(cut).collect()
    }

    /// Reads a block of both, the target's first.
    pub(in crate::audit) fn read(&self, block: &Block) -> Result<[Tensor; 2]> {
        let (old, new) = rayon::join(|| block.read(&self.target), || block.read(&self.unlearned));
        Ok([old?, new?])
    }

    /// Bytes read so far.
    pub(in crate::audit) fn disk_bytes(&self) -> u64 {
        self.target.tensors().bytes_read() + self.unlearned.tensors().bytes_read()
    }
}

/// The matrices to compare, after a check that both checkpoints have the same.
fn matrices(target: &Checkpoint, unlearned: &Checkpoint, quantize_head: bool) -> Result<Vec<Matrix>> {
    let (ours, theirs) = (target.config(), unlearned.config());
    if ours.layers != theirs.layers {
        return Err(differ(target, unlearned, "the number of layers", &ours.layers, &theirs.layers));
    }
    let mut matrices = Vec::new();
    for layer in 0..ours.layers {
        for linear in Linear::ALL {
            let (name, shape) = (linear.name(layer), linear.shape(ours));
            same_shape(target, unlearned, &name, &shape)?;
            matrices.push(Matrix { layer: Some(layer), module: linear.short_name(), name, shape });
        }
    }
    if quantize_head {
        let name = head_name(target)?;
        let other = head_name(unlearned)?;
        if name != other {
            return Err(differ(target, unlearned, "the head", &name, &other));
        }
        let shape = [ours.vocab_size, ours.hidden_size];
        same_shape(target, unlearned, name, &shape)?;
        matrices.push(Matrix { layer: None, module: HEAD, name: name.to_owned(), shape });
    }
    Ok(matrices)
}

/// Names and shapes of the tensors that stay as stored, of those that both checkpoints have. What a tied checkpoint
/// quantizes as its head stays as stored where it is the embedding.
fn others(
    target: &Checkpoint,
    unlearned: &Checkpoint,
    quantize_head: bool,
) -> Result<Vec<(String, Vec<usize>)>> {
    let mut others = Vec::new();
    for name in unquantized(target, quantize_head) {
        if unlearned.tensors().contains(&name) {
            let (_, shape) = target.tensors().describe(&name)?;
            same_shape(target, unlearned, &name, shape)?;
            others.push((name, shape.to_vec()));
        }
    }
    Ok(others)
}

/// Refuses a tensor of the unlearned checkpoint whose shape is not the target's.
fn same_shape(target: &Checkpoint, unlearned: &Checkpoint, name: &str, shape: &[usize]) -> Result<()> {
    let (_, found) = unlearned.tensors().describe(name)?;
    if found == shape {
        return Ok(());
    }
    Err(differ(target, unlearned, &format!("the shape of {name}"), &shape, &found))
}

fn differ(
    target: &Checkpoint,
    unlearned: &Checkpoint,
    what: &str,
    expected: &dyn Debug,
    found: &dyn Debug,
) -> Error {
    Error::CheckpointsDiffer {
        path: unlearned.path().to_path_buf(),
        target: target.path().to_path_buf(),
        what: what.to_owned(),
        found: format!("{found:?}"),
        expected: format!("{expected:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cut_no_block() {
        for cols in [8, 24, 72, 128, 4096, 11_008, 1 << 20] {
            assert!((unit_rows(cols) * cols).is_multiple_of(64), "{cols}");
            assert!(unit_rows(cols) * cols <= UNIT.max(8 * cols) + 7 * cols, "{cols}");
        }
    }
}
