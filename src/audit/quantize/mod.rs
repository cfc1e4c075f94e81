//! A checkpoint rounded to a scheme's values, and written so that others run it.

mod inputs;
mod layout;
mod matrices;

use std::path::{Path, PathBuf};
use std::time::Instant;

pub use inputs::QuantizeInputs;

use layout::Layout;
use matrices::Matrices;

use super::codes::{Codes, CodesPlan, compare_codes};
use super::packing::Format;
use crate::checkpoint::{Checkpoint, Draft, TensorWriter};
use crate::error::{Error, Result};
use crate::model::{Calibration, check_tensors};
use crate::quant::{Change, KeptRow, Rounding, Scheme};
use crate::suite::text;

/// Weights of each checkpoint that are held at a time (or 8 rows, if that is more).
const BLOCK: usize = 1 << 21;

/// Above this survival in nearest rounding there is nothing to repair.
pub const GOOD_ENOUGH: f64 = 0.95;

/// Tokens of a calibration text that are looked at together.
const WINDOW: usize = 512;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizePlan {
    /// The checkpoint.
    pub model: PathBuf,
    /// The checkpoint from which its update leads; only what needs it looks at it.
    pub target: Option<PathBuf>,
    /// A scheme that quantizes.
    pub scheme: Scheme,
    /// How codes are chosen.
    pub rounding: Rounding,
    /// A text on which kept rounding keeps the outputs near ([`matched`](crate::quant::matched())).
    pub calibrate: Option<PathBuf>,
    /// How it is written.
    pub format: Format,
}

/// What [`quantize()`] is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizeStage {
    /// Reading the checkpoints, to know them again; counts bytes.
    Reading,
    /// Looking whether nearest rounding keeps the update, where one is to be kept; counts weights.
    Comparing,
    /// Rounding and writing; counts weights.
    Rounding,
}

/// Is told how much of how much is done in a stage; its error ends the work.
pub type QuantizeWatch<'a> = dyn FnMut(QuantizeStage, u64, u64) -> Result<()> + 'a;

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// What was asked.
    pub plan: QuantizePlan,
    /// What it depends on.
    pub inputs: QuantizeInputs,
    /// The matrices, in the order of their use.
    pub tensors: Vec<QuantizedTensor>,
    /// Names of the tensors that are as they were.
    pub as_stored: Vec<String>,
    /// Tokens of the text that was looked at.
    pub calibrated_on: Option<usize>,
    /// Kept rounding was asked for, and nearest rounding was good enough and is what was written.
    pub nothing_to_repair: bool,
    /// Bytes read.
    pub disk_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// One matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedTensor {
    /// Its name.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Codes that are not those of nearest rounding.
    pub moved: u64,
    /// The update's sums, where a target was given.
    pub update: Option<KeptRow>,
    /// Rows with an update.
    pub updated_rows: u64,
    /// Those whose survival is within 0.05 of the goal.
    pub near_rows: u64,
}

impl Quantized {
    /// Over all matrices; the name is empty.
    #[must_use]
    pub fn total(&self) -> QuantizedTensor {
        let mut total = QuantizedTensor::default();
        for tensor in &self.tensors {
            total.weights += tensor.weights;
            total.moved += tensor.moved;
            total.updated_rows += tensor.updated_rows;
            total.near_rows += tensor.near_rows;
            if let Some(update) = &tensor.update {
                total.update.get_or_insert_default().merge(update);
            }
        }
        total
    }
}

/// Rounds every matrix of the layers and writes all into `draft`, tensor by tensor; the caller publishes it.
///
/// Dequantized, the matrices become F32, which holds a scheme's values exactly. `watch` is told how much of how
/// much is done in a stage.
///
/// # Errors
///
/// If a checkpoint is missing, broken or not supported, the two are not of one architecture, or writing fails; and what `watch`
/// says.
pub fn quantize(plan: QuantizePlan, draft: &Draft, watch: &mut QuantizeWatch) -> Result<Quantized> {
    let begun = Instant::now();
    let model = Checkpoint::open(&plan.model)?;
    check_tensors(&model)?;
    let layout = Layout::new(&model, &plan)?;
    let inputs = QuantizeInputs::of(&plan, &mut |_, done, total| watch(QuantizeStage::Reading, done, total))?;
    let nearest = plan.rounding.needs_target().then(|| nearest_codes(&plan, watch)).transpose()?;
    let compared_bytes = nearest.as_ref().map_or(0, |codes| codes.disk_bytes);
    let nothing_to_repair = nearest.as_ref().is_some_and(is_good_enough);
    let rounding = if nothing_to_repair { Rounding::Nearest } else { plan.rounding };
    let target = plan.target.as_ref().filter(|_| rounding.needs_target());
    let target = target.map(|path| Checkpoint::open(path)).transpose()?;
    let windows = match (&plan.calibrate, &target) {
        (Some(path), Some(_)) => Some(calibration_windows(path, &model)?),
        _ => None,
    };
    let calibrated_on = windows.as_ref().map(|windows| windows.iter().map(Vec::len).sum());
    let mut calibration = windows.map(|windows| Calibration::new(&model, &windows)).transpose()?;

    let mut writer = TensorWriter::create(draft.file("model.safetensors"), &layout.tensors)?;
    let mut matrices = Matrices {
        plan: &plan,
        rounding,
        model: &model,
        target: target.as_ref(),
        calibration: calibration.as_mut(),
    };
    let mut tensors = matrices.write(&layout, &mut writer, watch)?;
    layout.copy_stored(&model, &mut writer)?;
    writer.finish()?;
    draft.copy_from(&plan.model, plan.format.config(plan.scheme))?;

    if let Some(codes) = nearest.filter(|_| nothing_to_repair) {
        for (tensor, codes) in tensors.iter_mut().zip(&codes.tensors) {
            let Change { update, kept, .. } = codes.changes[0];
            tensor.update = Some(KeptRow { moved: 0, update, nearest: kept, kept });
        }
    }
    let read = |checkpoint: &Checkpoint| checkpoint.tensors().bytes_read();
    Ok(Quantized {
        plan,
        inputs,
        tensors,
        as_stored: layout.as_stored,
        calibrated_on,
        nothing_to_repair,
        disk_bytes: compared_bytes + read(&model) + target.as_ref().map_or(0, read),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// What nearest codes leave of the update.
fn nearest_codes(plan: &QuantizePlan, watch: &mut QuantizeWatch) -> Result<Codes> {
    let target = plan.target.as_ref().ok_or_else(|| Error::Flag {
        flag: "--keep-from",
        found: "nothing".to_owned(),
        expected: format!("the checkpoint that {} was made from", plan.model.display()),
    })?;
    let codes = CodesPlan {
        target: target.clone(),
        unlearned: plan.model.clone(),
        schemes: vec![plan.scheme],
        quantize_head: false,
    };
    compare_codes(codes, &mut |done, all| watch(QuantizeStage::Comparing, done, all))
}

/// Whether they leave so much that there is nothing to repair.
fn is_good_enough(nearest: &Codes) -> bool {
    nearest.sum(0, |_| true).survival().is_none_or(|survival| survival > GOOD_ENOUGH)
}

/// The text's tokens in windows of [`WINDOW`], or of the context if that is shorter.
fn calibration_windows(path: &Path, model: &Checkpoint) -> Result<Vec<Vec<u32>>> {
    let size = WINDOW.min(model.config().context).max(2);
    let cut = text::Windows { size, stride: size, second_half: false };
    let tasks = text::windows(path, &model.tokenizer()?, cut)?;
    Ok(tasks.into_iter().map(|task| task.tokens).collect())
}
