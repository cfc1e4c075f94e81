//! A checkpoint rounded to a scheme's values, and written so that others run it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::codes::{CodesPlan, compare_codes};
use super::packing::Format;
use crate::checkpoint::{Checkpoint, Draft, Kind, TensorWriter};
use crate::error::{Error, Result};
use crate::model::{Calibration, LayerMoments, Linear, check_tensors};
use crate::quant::{KeptRow, Moments, Packed, Rounded, Rounding, Rows, Scheme, matched, round};
use crate::suite::text;

/// Weights of each checkpoint that are held at a time (or 8 rows, if that is more).
const BLOCK: usize = 1 << 21;

/// Rows come in multiples of this, so that no block of a table scheme is cut: columns are multiples of 8.
const ROWS: usize = 8;

/// Above this survival in nearest rounding there is nothing to repair.
pub const GOOD_ENOUGH: f64 = 0.95;

/// Tokens of a calibration text that are looked at together.
const WINDOW: usize = 512;

/// A row is near its goal within this.
const NEAR: f64 = 0.05;

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

/// What a file was made of, by content: hashes in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Of the checkpoint's weight files.
    pub model: String,
    /// Of the target's, if one was given.
    pub target: Option<String>,
    /// Of the text that was looked at, if one was given.
    pub calibrate: Option<String>,
}

impl Sources {
    /// Reads everything that a plan names. `watch` is told how many of how many bytes of a checkpoint are read.
    ///
    /// # Errors
    ///
    /// If something cannot be read, and what `watch` says.
    pub fn of(plan: &QuantizePlan, watch: &mut dyn FnMut(&Path, u64, u64) -> Result<()>) -> Result<Self> {
        let mut weights = |path: &Path| {
            Checkpoint::open(path)?.tensors().content_hash(&mut |done, total| watch(path, done, total))
        };
        let (model, target) = (weights(&plan.model)?, plan.target.as_deref().map(weights).transpose()?);
        let text = |path: &PathBuf| std::fs::read(path).map_err(Error::read(path));
        let text = plan.calibrate.as_ref().map(text).transpose()?;
        Ok(Self { model, target, calibrate: text.map(|text| blake3::hash(&text).to_hex().to_string()) })
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// What was asked.
    pub plan: QuantizePlan,
    /// What it was made of.
    pub sources: Sources,
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
    /// Codes that are not the nearest.
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
pub fn quantize(
    plan: QuantizePlan,
    draft: &Draft,
    watch: &mut dyn FnMut(QuantizeStage, u64, u64) -> Result<()>,
) -> Result<Quantized> {
    let begun = Instant::now();
    let model = Checkpoint::open(&plan.model)?;
    check_tensors(&model)?;
    let config = model.config();
    let matrices: Vec<_> = (0..config.layers)
        .flat_map(|layer| Linear::ALL.map(|linear| (linear.name(layer), linear.shape(config))))
        .collect();
    let is_matrix = |name: &str| matrices.iter().any(|(matrix, _)| matrix == name);
    let names = model.tensors().names();
    let as_stored: Vec<_> = names.into_iter().filter(|name| !is_matrix(name)).map(str::to_owned).collect();
    let mut tensors = Vec::new();
    for (name, shape) in &matrices {
        plan.format.check(plan.scheme, shape[1])?;
        tensors.extend(plan.format.tensors(name, plan.scheme, *shape));
    }
    let matrix_tensors = tensors.len();
    for name in &as_stored {
        let (dtype, shape) = model.tensors().describe(name)?;
        tensors.push((name.clone(), Kind::Weights(dtype), shape.to_vec()));
    }
    let sources = Sources::of(&plan, &mut |_, done, total| watch(QuantizeStage::Reading, done, total))?;
    let total: u64 = matrices.iter().map(|(_, [rows, cols])| (rows * cols) as u64).sum();

    let (mut disk_bytes, mut nearest) = (0, None);
    let mut target = None;
    let mut rounding = plan.rounding;
    if rounding.needs_target() {
        let path = plan.target.as_ref().ok_or_else(|| Error::Flag {
            flag: "--keep-from",
            found: "nothing".to_owned(),
            expected: format!("the checkpoint that {} was made from", plan.model.display()),
        })?;
        let codes = CodesPlan {
            target: path.clone(),
            unlearned: plan.model.clone(),
            schemes: vec![plan.scheme],
            quantize_head: false,
        };
        let mut wanted = Ok(());
        let codes = compare_codes(codes, &mut |done, all| {
            if wanted.is_ok() {
                wanted = watch(QuantizeStage::Comparing, done, all);
            }
        })?;
        wanted?;
        disk_bytes += codes.disk_bytes;
        if codes.sum(0, |_| true).survival().is_none_or(|survival| survival > GOOD_ENOUGH) {
            (nearest, rounding) = (Some(codes), Rounding::Nearest);
        } else {
            target = Some(Checkpoint::open(path)?);
        }
    }

    let windows = match (&plan.calibrate, &target) {
        (Some(path), Some(_)) => Some(calibration_windows(path, &model)?),
        _ => None,
    };
    let calibrated_on = windows.as_ref().map(|windows| windows.iter().map(Vec::len).sum());
    let mut calibration = windows.map(|windows| Calibration::new(&model, &windows)).transpose()?;
    let mut moments: Option<LayerMoments> = None;

    let mut writer = TensorWriter::create(draft.file("model.safetensors"), &tensors)?;
    let mut done = 0;
    let mut found = Vec::with_capacity(matrices.len());
    for (index, (name, shape)) in matrices.iter().enumerate() {
        let [rows, cols] = *shape;
        let linear = Linear::ALL[index % Linear::ALL.len()];
        if let (Some(calibration), 0) = (&mut calibration, index % Linear::ALL.len()) {
            moments = Some(calibration.layer()?);
        }
        let moments = moments.as_ref().and_then(|moments| moments.of(linear));
        let mut tensor =
            QuantizedTensor { name: name.clone(), weights: (rows * cols) as u64, ..Default::default() };
        let mut scales = Vec::new();
        let step = ROWS * (BLOCK / (ROWS * cols)).max(1);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            let read = |checkpoint: &Checkpoint| {
                checkpoint.tensors().read_rows(name, shape, range.clone()).map(|tensor| tensor.to_f32())
            };
            let weights = read(&model)?;
            let old = target.as_ref().map(read).transpose()?;
            let first = (start * cols) as u64;
            let (target, shape) = (old.as_deref(), [range.len(), cols]);
            let packed = tensor.round((plan.scheme, rounding), &weights, target, shape, first, moments);
            let (now, after) = plan.format.bytes(&packed);
            writer.write(&now)?;
            scales.extend(after);
            done += weights.len() as u64;
            watch(QuantizeStage::Rounding, done, total)?;
        }
        writer.write(&scales)?;
        writer.write(&plan.format.end(*shape))?;
        found.push(tensor);
    }
    if let Some(codes) = &nearest {
        for (tensor, codes) in found.iter_mut().zip(&codes.tensors) {
            let change = &codes.changes[0];
            let (update, kept) = (change.update, change.kept);
            tensor.update = Some(KeptRow { moved: 0, update, nearest: kept, kept });
        }
    }
    for (name, _, shape) in &tensors[matrix_tensors..] {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
        let step = (BLOCK / cols.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let rows = start..(start + step).min(rows);
            writer.write(&model.tensors().read_rows(name, shape, rows)?.bytes)?;
        }
    }
    writer.finish()?;
    draft.copy_from(&plan.model, plan.format.config(plan.scheme))?;
    disk_bytes += model.tensors().bytes_read() + target.map_or(0, |target| target.tensors().bytes_read());
    let (nothing_to_repair, seconds) = (nearest.is_some(), begun.elapsed().as_secs_f64());
    Ok(Quantized {
        plan,
        sources,
        tensors: found,
        as_stored,
        calibrated_on,
        nothing_to_repair,
        disk_bytes,
        seconds,
    })
}

/// The text's tokens in windows of [`WINDOW`], or of the context if that is shorter.
fn calibration_windows(path: &Path, model: &Checkpoint) -> Result<Vec<Vec<u32>>> {
    let size = WINDOW.min(model.config().context).max(2);
    let cut = text::Windows { size, stride: size, second_half: false };
    let tasks = text::windows(path, &model.tokenizer()?, cut)?;
    Ok(tasks.into_iter().map(|task| task.tokens).collect())
}

impl QuantizedTensor {
    /// Rounds some rows; `first` is the index of their first weight.
    fn round(
        &mut self,
        (scheme, rounding): (Scheme, Rounding),
        weights: &[f32],
        target: Option<&[f32]>,
        [rows, cols]: [usize; 2],
        first: u64,
        moments: Option<&Moments>,
    ) -> Packed {
        let what = Rows { weights, target, rows, cols, tensor: &self.name, first };
        let rounded = match (rounding, target, moments) {
            (Rounding::Kept(share), Some(target), Some(moments)) => {
                let kept = matched(scheme, target, weights, [rows, cols], moments, share.get());
                let moved = kept.rows.iter().map(|row| row.moved).sum();
                Rounded { packed: kept.packed, moved, kept: kept.rows }
            }
            _ => round(scheme, rounding, what),
        };
        self.moved += rounded.moved;
        if let Rounding::Kept(share) = rounding {
            let update = self.update.get_or_insert_default();
            for row in &rounded.kept {
                update.merge(row);
                let survival = row.survival();
                self.updated_rows += u64::from(survival.is_some());
                let near = survival.is_some_and(|kept| (kept - f64::from(share.get())).abs() <= NEAR);
                self.near_rows += u64::from(near);
            }
        }
        rounded.packed
    }
}
