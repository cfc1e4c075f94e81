//! Two checkpoints' weights, compared scheme by scheme without a forward pass.
//!
//! A thread reads both in blocks of rows; the host, or a device, compares a block while the next one is read.

mod device;
pub(super) mod pair;

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use rayon::prelude::*;

use crate::checkpoint::Tensor;
use crate::error::{Error, Result};
use crate::gpu::{DeviceInfo, Gpu};
use crate::quant::{Change, Scheme, change};

use device::OnDevice;
use pair::{Block, Pair, unit_rows};

/// Weights of each checkpoint in a block that the host compares (or one unit, if that is more). Two blocks are held.
const BLOCK: usize = 1 << 21;

/// The same for a device: enough to keep a large one busy.
const DEVICE_BLOCK: usize = 1 << 22;

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

/// Is told how many of how many weights are compared; its error ends the work.
pub type CodesWatch<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// What was asked.
    pub plan: CodesPlan,
    /// Layer by layer in the order of use, then the head.
    pub tensors: Vec<TensorChange>,
    /// What no scheme applies to.
    pub as_stored: AsStored,
    /// What the matrices were compared on.
    pub device: DeviceInfo,
    /// Weights of the matrices that the host compared: all of them without a device, else those whose figures f32
    /// products do not hold.
    pub host_weights: u64,
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
}

/// Streams both checkpoints and compares every matrix that a scheme applies to, on the host.
///
/// The figures do not depend on the number of threads.
///
/// # Errors
///
/// If a checkpoint is missing, broken, not supported or holds NaN or infinity, if the two have other layers or shapes (their
/// dtypes may differ: weights are widened exactly), and what `watch` says.
pub fn compare_codes(plan: CodesPlan, watch: &mut CodesWatch) -> Result<Codes> {
    compare_in_blocks(plan, None, BLOCK, watch)
}

/// [`compare_codes`] on a device, which gives the same counts. Its sums are within 1e-6 of the host's, `kept`
/// within 1e-6 of the sum of its terms' magnitudes; see [`crate::kernels::Comparer`]. Weights that stay as stored are
/// compared on the host.
///
/// # Errors
///
/// As [`compare_codes`]; if the device fails or cannot hold a few rows.
pub fn compare_codes_on(gpu: &Gpu, plan: CodesPlan, watch: &mut CodesWatch) -> Result<Codes> {
    compare_in_blocks(plan, Some(gpu), DEVICE_BLOCK, watch)
}

/// Compares in blocks of `block` weights of each checkpoint, or one unit.
fn compare_in_blocks(
    plan: CodesPlan,
    gpu: Option<&Gpu>,
    block: usize,
    watch: &mut CodesWatch,
) -> Result<Codes> {
    let begun = Instant::now();
    let pair = Pair::open(&plan)?;
    let blocks = pair.blocks(block);
    let total = blocks.iter().map(Block::weights).sum();
    let mut done = 0;
    let mut changes = Changes::new(&plan.schemes, pair.matrices.len());
    let mut as_stored = AsStored::default();
    let mut device = gpu.map(|gpu| OnDevice::new(gpu, &pair, &plan.schemes));
    std::thread::scope(|scope| {
        // One block waits to be taken while another is compared.
        let (sender, receiver) = sync_channel(0);
        let (pair, blocks) = (&pair, &blocks);
        scope.spawn(move || {
            for block in blocks {
                let read = pair.read(block);
                let failed = read.is_err();
                // Nobody listens any more when the comparison has failed.
                if sender.send(read).is_err() || failed {
                    return;
                }
            }
        });
        for block in blocks {
            let tensors = receiver.recv().unwrap_or_else(|_| Err(ended()))?;
            match (block.matrix, &mut device) {
                (None, _) => as_stored.add(&tensors[0].to_f32(), &tensors[1].to_f32()),
                (Some(_), None) => changes.compare(block, &tensors),
                (Some(_), Some(device)) => device.add(block, &tensors, &mut changes)?,
            }
            done += block.weights();
            watch(done, total)?;
        }
        device.as_mut().map_or(Ok(()), |device| device.finish(&mut changes))
    })?;
    let Changes { found, host_weights, .. } = changes;
    let tensors = pair.matrices.iter().zip(found).map(|(matrix, changes)| TensorChange {
        layer: matrix.layer,
        module: matrix.module,
        shape: matrix.shape,
        changes,
    });
    Ok(Codes {
        tensors: tensors.collect(),
        plan,
        as_stored,
        device: gpu.map_or_else(DeviceInfo::cpu, |gpu| gpu.info().clone()),
        host_weights,
        disk_bytes: pair.disk_bytes(),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The reading thread panicked.
fn ended() -> Error {
    Error::Device { during: "reading weights ahead".to_owned(), report: "the reader ended early".to_owned() }
}

/// What was found so far, of every matrix.
struct Changes<'a> {
    schemes: &'a [Scheme],
    /// By matrix and scheme.
    found: Vec<Vec<Change>>,
    host_weights: u64,
}

impl<'a> Changes<'a> {
    fn new(schemes: &'a [Scheme], matrices: usize) -> Self {
        let found = vec![vec![Change::default(); schemes.len()]; matrices];
        Self { schemes, found, host_weights: 0 }
    }

    /// The changes of the matrix that `block` is of; of none for what stays as stored.
    fn of(&mut self, block: &Block) -> &mut [Change] {
        block.matrix.map_or(&mut [], |matrix| &mut self.found[matrix])
    }

    /// Adds what was found in a block, in each scheme.
    fn add(&mut self, block: &Block, found: &[Change]) {
        self.of(block).iter_mut().zip(found).for_each(|(change, more)| change.merge(more));
    }

    /// Compares a block on the host.
    fn compare(&mut self, block: &Block, tensors: &[Tensor; 2]) {
        self.host_weights += block.weights();
        let [old, new] = tensors.each_ref().map(Tensor::to_f32);
        compare_rows(self.schemes, &old, &new, block.shape()[1], self.of(block));
    }
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
            let codes = compare_in_blocks(plan.clone(), None, block, &mut |done, total| {
                calls.push((done, total));
                Ok(())
            })
            .unwrap();
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
}
