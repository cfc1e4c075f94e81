//! Two checkpoints' weights, compared scheme by scheme without a forward pass.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Instant;

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::{Linear, check_tensors, head_name, unquantized};
use crate::quant::{Change, Scheme, change};

/// Weights that one thread compares at a time. Sums depend on it, as on the matrix's shape, and on nothing else.
const UNIT: usize = 1 << 15;

/// A unit has a multiple of this many rows. Columns come in multiples of 8, so a unit then has a multiple of 64 weights:
/// it cuts no block of a scheme whose blocks run across rows.
const UNIT_ROWS: usize = 8;

/// Weights of each checkpoint that are held at a time (or one unit, if that is more).
const BLOCK: usize = 1 << 22;

/// The module name of the output head.
pub const HEAD: &str = "lm_head";

/// What to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodesPlan {
    /// The checkpoint that learned everything.
    pub target: PathBuf,
    /// The one that was made to forget.
    pub unlearned: PathBuf,
    /// Quantizing schemes, each once.
    pub schemes: Vec<Scheme>,
    /// Whether the output head is quantized, too.
    pub quantize_head: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// What was asked.
    pub plan: CodesPlan,
    /// Layer by layer in the order of use, then the head.
    pub tensors: Vec<TensorChange>,
    /// What no scheme applies to.
    pub as_stored: AsStored,
    /// Bytes read of both checkpoints.
    pub disk_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorChange {
    /// Its layer; the head has none.
    pub layer: Option<usize>,
    /// `q_proj`, `gate_proj`, ... or [`HEAD`].
    pub module: &'static str,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// For each scheme of the plan.
    pub changes: Vec<Change>,
}

/// What became of the weights that every scheme leaves as stored: embeddings, norms, biases, and the head unless it is
/// quantized. Their part of the update survives in full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AsStored {
    /// Their number.
    pub weights: u64,
    /// Those whose values differ.
    pub changed: u64,
    /// `<u - t, u - t>` over them.
    pub update: f64,
}

impl AsStored {
    fn add(&mut self, target: &[f32], unlearned: &[f32]) {
        for (&old, &new) in target.iter().zip(unlearned) {
            let delta = f64::from(new) - f64::from(old);
            self.weights += 1;
            self.changed += u64::from(delta != 0.0);
            self.update += delta * delta;
        }
    }
}

impl Codes {
    /// The sum over the matrices that are `wanted`, for the plan's scheme number `scheme`.
    #[must_use]
    pub fn sum(&self, scheme: usize, wanted: impl Fn(&TensorChange) -> bool) -> Change {
        let mut sum = Change::default();
        let changes =
            self.tensors.iter().filter(|tensor| wanted(tensor)).map(|tensor| &tensor.changes[scheme]);
        changes.for_each(|change| sum.merge(change));
        sum
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.tensors.iter().filter_map(|tensor| tensor.layer).max().map_or(0, |last| last + 1)
    }

    /// The modules, in the order of their use.
    #[must_use]
    pub fn modules(&self) -> Vec<&'static str> {
        let mut modules = Vec::new();
        for tensor in &self.tensors {
            if !modules.contains(&tensor.module) {
                modules.push(tensor.module);
            }
        }
        modules
    }
}

/// A matrix that both checkpoints have.
pub(super) struct Matrix {
    layer: Option<usize>,
    module: &'static str,
    pub(super) name: String,
    pub(super) shape: [usize; 2],
}

/// Streams both checkpoints and compares every matrix that a scheme applies to.
///
/// `watch` is told how many of how many weights are done. The figures do not depend on the number of threads.
///
/// # Errors
///
/// If a checkpoint is missing, broken, not supported or holds NaN, or if the two have other layers or shapes. Their
/// dtypes may differ: weights are widened exactly.
pub fn compare_codes(plan: CodesPlan, watch: &mut dyn FnMut(u64, u64)) -> Result<Codes> {
    compare_in_blocks(plan, BLOCK, watch)
}

/// [`compare_codes`], holding `block` weights of each checkpoint at a time, or one unit.
fn compare_in_blocks(plan: CodesPlan, block: usize, watch: &mut dyn FnMut(u64, u64)) -> Result<Codes> {
    let begun = Instant::now();
    let target = Checkpoint::open(&plan.target)?;
    let unlearned = Checkpoint::open(&plan.unlearned)?;
    check_tensors(&target)?;
    check_tensors(&unlearned)?;
    let matrices = matrices(&target, &unlearned, plan.quantize_head)?;
    let others = others(&target, &unlearned, plan.quantize_head)?;
    let shapes =
        matrices.iter().map(|matrix| &matrix.shape[..]).chain(others.iter().map(|(_, shape)| &shape[..]));
    let total = shapes.map(|shape| shape.iter().product::<usize>() as u64).sum();
    let mut done = 0;
    let mut stream = |name: &str, shape: &[usize], each: &mut dyn FnMut(&[f32], &[f32])| {
        let (rows, cols) = (shape[0], shape[1..].iter().product());
        let step = unit_rows(cols) * (block / (unit_rows(cols) * cols)).max(1);
        for start in (0..rows).step_by(step) {
            let end = (start + step).min(rows);
            let read = |checkpoint: &Checkpoint| {
                checkpoint.tensors().read_rows(name, shape, start..end).map(|tensor| tensor.to_f32())
            };
            let (old, new) = rayon::join(|| read(&target), || read(&unlearned));
            each(&old?, &new?);
            done += ((end - start) * cols) as u64;
            watch(done, total);
        }
        Ok(())
    };
    let mut tensors = Vec::with_capacity(matrices.len());
    for Matrix { layer, module, name, shape } in matrices {
        let mut changes = vec![Change::default(); plan.schemes.len()];
        stream(&name, &shape, &mut |old, new| compare_rows(&plan.schemes, old, new, shape[1], &mut changes))?;
        tensors.push(TensorChange { layer, module, shape, changes });
    }
    let mut as_stored = AsStored::default();
    for (name, shape) in others {
        stream(&name, &shape, &mut |old, new| as_stored.add(old, new))?;
    }
    let disk_bytes = target.tensors().bytes_read() + unlearned.tensors().bytes_read();
    Ok(Codes { plan, tensors, as_stored, disk_bytes, seconds: begun.elapsed().as_secs_f64() })
}

/// Rows of a unit in a matrix of `cols` columns.
fn unit_rows(cols: usize) -> usize {
    (UNIT / cols).next_multiple_of(UNIT_ROWS).max(UNIT_ROWS)
}

/// Compares some rows, units side by side, and adds them to each scheme's change in the order of the rows.
fn compare_rows(schemes: &[Scheme], target: &[f32], unlearned: &[f32], cols: usize, changes: &mut [Change]) {
    let unit = unit_rows(cols) * cols;
    let units: Vec<Vec<Change>> = target
        .par_chunks(unit)
        .zip(unlearned.par_chunks(unit))
        .map(|(old, new)| {
            schemes.iter().map(|&scheme| change(scheme, old, new, old.len() / cols, cols)).collect()
        })
        .collect();
    for unit in &units {
        changes.iter_mut().zip(unit).for_each(|(change, more)| change.merge(more));
    }
}

/// The matrices to compare, after a check that both checkpoints have the same.
pub(super) fn matrices(
    target: &Checkpoint,
    unlearned: &Checkpoint,
    quantize_head: bool,
) -> Result<Vec<Matrix>> {
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
    fn blocks_leave_no_trace() {
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/models");
        let plan = CodesPlan {
            target: models.join("target"),
            unlearned: models.join("ga_gdr"),
            schemes: vec![Scheme::Int4Row, Scheme::Nf4B64],
            quantize_head: true,
        };
        let run = |block| {
            let mut calls = Vec::new();
            let codes =
                compare_in_blocks(plan.clone(), block, &mut |done, total| calls.push((done, total))).unwrap();
            (codes, calls)
        };
        let (whole, few) = run(BLOCK);
        let (parts, many) = run(1);
        assert!(many.len() > few.len());
        assert_eq!(whole.tensors, parts.tensors);
        assert_eq!(whole.as_stored.changed, parts.as_stored.changed);
        for calls in [few, many] {
            assert!(calls.is_sorted_by(|a, b| a.0 < b.0 && a.1 == b.1));
            assert!(calls.last().is_some_and(|(done, total)| done == total), "{calls:?}");
        }
        assert_eq!(whole.tensors.last().map(|tensor| (tensor.layer, tensor.module)), Some((None, HEAD)));
    }

    #[test]
    fn units_cut_no_block() {
        for cols in [8, 24, 72, 128, 4096, 11_008, 1 << 20] {
            assert!((unit_rows(cols) * cols).is_multiple_of(64), "{cols}");
            assert!(unit_rows(cols) * cols <= UNIT.max(8 * cols) + 7 * cols, "{cols}");
        }
    }
}
