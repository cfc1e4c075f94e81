//! What `undertext quantize` wrote, as its record (also `undertext.json` beside the weights) and as text.

use serde::{Deserialize, Serialize};

use super::schema::{Program, VERSION};
use super::style::{Style, printable};
use crate::audit::{self, QuantizeInputs, QuantizedTensor};
use crate::quant::Rounding;

/// What `undertext quantize --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// [`VERSION`].
    pub schema_version: u32,
    /// The program that made it.
    pub undertext: Program,
    /// The checkpoint that was quantized.
    pub model: String,
    /// The checkpoint from which the update leads; `null` if none was given.
    pub target: Option<String>,
    /// What it depends on, by content; files of earlier versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<QuantizeInputs>,
    /// The scheme.
    pub scheme: String,
    /// What was asked for: `nearest`, `kept` or `stochastic`.
    pub rounding: String,
    /// The share of the update that was to survive.
    pub keep: Option<f64>,
    /// The text on which outputs were kept near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrate: Option<String>,
    /// Its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrated_on: Option<usize>,
    /// Of stochastic rounding.
    pub seed: Option<u64>,
    /// `dequantized` (the values that codes stand for) or `compressed-tensors` (codes and scales).
    pub format: String,
    /// Of the quantized matrices' values or scales. The other tensors have theirs as stored.
    pub dtype: String,
    /// Nearest rounding keeps so much of the update that it was written although `kept` was asked for.
    pub nothing_to_repair: bool,
    /// Rows with an update, if codes were moved to keep it.
    pub updated_rows: Option<u64>,
    /// Share of them whose survival is within 0.05 of `keep`.
    pub rows_near: Option<f64>,
    /// All quantized matrices.
    pub total: Figures,
    /// Each of them.
    pub tensors: Vec<Tensor>,
    /// Tensors that are as they were.
    pub as_stored: Vec<String>,
    /// Bytes read.
    pub disk_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// One matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What rounding did to one or more matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many weights there are.
    pub weights: u64,
    /// How many codes are not those of nearest rounding.
    pub moved: u64,
    /// `<Q(u) - Q(t), u - t> / <u - t, u - t>` in nearest rounding.
    pub survival_nearest: Option<f64>,
    /// The same of what was written.
    pub survival: Option<f64>,
    /// Why a survival is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<&QuantizedTensor> for Figures {
    fn from(tensor: &QuantizedTensor) -> Self {
        let survival = tensor.update.and_then(|update| update.survival());
        let reason = match (&tensor.update, survival) {
            (_, Some(_)) => None,
            (None, _) => Some("no target was given"),
            (Some(_), _) => Some("no weight changed, or a value is beyond f32"),
        };
        Self {
            weights: tensor.weights,
            moved: tensor.moved,
            survival_nearest: tensor.update.and_then(|update| update.nearest_survival()),
            survival,
            reason: reason.map(str::to_owned),
        }
    }
}

impl From<&audit::Quantized> for Quantized {
    fn from(found: &audit::Quantized) -> Self {
        let plan = &found.plan;
        let total = found.total();
        let (rounding, keep, seed) = match plan.rounding {
            Rounding::Nearest => ("nearest", None, None),
            // The digits that the user gave, not those of the float that is nearest to them.
            Rounding::Kept(share) => ("kept", share.to_string().parse().ok(), None),
            Rounding::Aligned => ("aligned", None, None),
            Rounding::Stochastic(seed) => ("stochastic", None, Some(seed)),
        };
        let updated = total.updated_rows;
        Self {
            schema_version: VERSION,
            undertext: Program::this(),
            model: plan.model.display().to_string(),
            target: plan.target.as_ref().map(|path| path.display().to_string()),
            inputs: Some(found.inputs.clone()),
            scheme: plan.scheme.name().to_owned(),
            rounding: rounding.to_owned(),
            keep,
            calibrate: plan.calibrate.as_ref().map(|path| path.display().to_string()),
            calibrated_on: found.calibrated_on,
            seed,
            format: plan.format.name().to_owned(),
            dtype: "F32".to_owned(),
            nothing_to_repair: found.nothing_to_repair,
            updated_rows: (updated > 0).then_some(updated),
            rows_near: (updated > 0).then(|| total.near_rows as f64 / updated as f64),
            total: (&total).into(),
            tensors: found
                .tensors
                .iter()
                .map(|tensor| Tensor { name: tensor.name.clone(), figures: tensor.into() })
                .collect(),
            as_stored: found.as_stored.clone(),
            disk_bytes: found.disk_bytes,
            seconds: found.seconds,
        }
    }
}

/// The record for people.
#[must_use]
pub fn quantize_text(record: &Quantized, out: &str, style: Style) -> String {
    let total = &record.total;
    let rounding = if record.nothing_to_repair { "nearest" } else { &record.rounding };
    let mut lines = vec![format!(
        "{} in {} ({rounding} rounding): {} of {} codes moved ({:.2} %)",
        record.model,
        record.scheme,
        total.moved,
        total.weights,
        100.0 * total.moved as f64 / total.weights.max(1) as f64
    )];
    if let (Some(nearest), Some(survival)) = (total.survival_nearest, total.survival) {
        lines.push(format!("Survival of the update: {survival:.3} (nearest rounding: {nearest:.3})"));
    }
    if let (Some(rows), Some(near), Some(keep)) = (record.updated_rows, record.rows_near, record.keep) {
        lines.push(format!("{:.1} % of {rows} rows with an update are within 0.05 of {keep}", 100.0 * near));
    }
    if record.nothing_to_repair {
        lines.push("Nothing needs repair: nearest rounding keeps the update.".to_owned());
    }
    lines.push(format!(
        "Written to {out}: {} matrices {}, {} tensors as stored.",
        record.tensors.len(),
        if record.format == "dequantized" { "as F32" } else { "as codes with F32 scales" },
        record.as_stored.len()
    ));
    let lines = lines.iter().map(|line| style.prose(&printable(line)) + "\n");
    lines.collect()
}
