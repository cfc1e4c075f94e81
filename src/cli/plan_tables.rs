//! The tables of a plan's TOML file, each as the part of the program that it stands for says it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::memory::{exact, kv, size};
use crate::audit::{Criteria, ReleasedRequest, SeriesRequest};
use crate::error::{Error, Result};
use crate::gpu::{DeviceChoice, Tuning};
use crate::kernels::KvFormat;
use crate::quant::Share;

/// [`Criteria`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CriteriaTable {
    resurrected_above: f64,
    held_below: f64,
    collapsed_below: f64,
    least_gap: f64,
    resamples: usize,
    seed: u64,
}

impl Default for CriteriaTable {
    fn default() -> Self {
        Criteria::default().into()
    }
}

impl From<Criteria> for CriteriaTable {
    fn from(criteria: Criteria) -> Self {
        let Criteria { resamples, seed, resurrected_above, held_below, collapsed_below, least_gap } =
            criteria;
        Self { resurrected_above, held_below, collapsed_below, least_gap, resamples, seed }
    }
}

impl From<CriteriaTable> for Criteria {
    fn from(table: CriteriaTable) -> Self {
        let CriteriaTable { resurrected_above, held_below, collapsed_below, least_gap, resamples, seed } =
            table;
        Self { resamples, seed, resurrected_above, held_below, collapsed_below, least_gap }
    }
}

/// What a run runs on, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeviceTable {
    /// `--device`; the best there is without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// `--no-tune` is off, `--retune` is afresh.
    tuning: TuningName,
    /// `--vram`; most of what the adapter has without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    vram: Option<String>,
    /// `--kv`.
    kv: String,
    /// `--naive`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    naive: bool,
}

impl Default for DeviceTable {
    fn default() -> Self {
        let kv = KvFormat::F16.name().to_owned();
        Self { device: None, tuning: TuningName::default(), vram: None, kv, naive: false }
    }
}

impl DeviceTable {
    /// What the flags say.
    pub(super) fn new(
        device: Option<&DeviceChoice>,
        tuning: Tuning,
        vram: Option<u64>,
        kv: KvFormat,
        naive: bool,
    ) -> Self {
        Self {
            device: device.map(ToString::to_string),
            tuning: tuning.into(),
            vram: vram.map(exact),
            kv: kv.name().to_owned(),
            naive,
        }
    }

    /// Spells what has several spellings as flags are written.
    pub(super) fn spell(&mut self) -> Result<()> {
        self.device = self.choice().map(|choice| choice.to_string());
        self.vram = self.vram()?.map(exact);
        self.kv = self.kv()?.name().to_owned();
        Ok(())
    }

    pub(super) fn choice(&self) -> Option<DeviceChoice> {
        self.device.as_ref().and_then(|device| device.parse().ok())
    }

    pub(super) fn tuning(&self) -> Tuning {
        match self.tuning {
            TuningName::Remembered => Tuning::Remembered,
            TuningName::Off => Tuning::Off,
            TuningName::Afresh => Tuning::Afresh,
        }
    }

    pub(super) fn vram(&self) -> Result<Option<u64>> {
        self.vram.as_deref().map(size).transpose()
    }

    pub(super) fn kv(&self) -> Result<KvFormat> {
        kv(&self.kv)
    }

    pub(super) fn naive(&self) -> bool {
        self.naive
    }
}

/// [`Tuning`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TuningName {
    #[default]
    Remembered,
    Off,
    Afresh,
}

impl From<Tuning> for TuningName {
    fn from(tuning: Tuning) -> Self {
        match tuning {
            Tuning::Remembered => Self::Remembered,
            Tuning::Off => Self::Off,
            Tuning::Afresh => Self::Afresh,
        }
    }
}

/// Reads a share of an update that a plan names.
///
/// # Errors
///
/// [`Error::Flag`] with the flag that it belongs to.
pub(super) fn share(flag: &'static str, text: &str) -> Result<Share> {
    text.parse().map_err(|expected| Error::Flag { flag, found: text.to_owned(), expected })
}

/// [`ReleasedRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleasedTable {
    /// May be left out if there is one unlearned checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlearned: Option<String>,
    path: PathBuf,
    scheme: String,
    /// What its record said when the plan was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<String>,
}

impl From<ReleasedRequest> for ReleasedTable {
    fn from(ReleasedRequest { of, path, scheme, keep }: ReleasedRequest) -> Self {
        // A request without a scheme is refused when the plan is made.
        Self {
            unlearned: of,
            path,
            scheme: scheme.map_or_else(String::new, |scheme| scheme.name().to_owned()),
            keep: keep.map(|keep| keep.to_string()),
        }
    }
}

impl ReleasedTable {
    /// Its directory.
    pub(super) fn checkpoint(&mut self) -> &mut PathBuf {
        &mut self.path
    }

    /// What it asks for.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if its scheme does not exist.
    pub(super) fn request(&self) -> Result<ReleasedRequest> {
        let Self { unlearned: of, path, scheme, keep } = self.clone();
        let scheme = Some(scheme).filter(|scheme| !scheme.is_empty());
        let scheme = scheme.map(|scheme| super::quantize::scheme(&scheme)).transpose()?;
        let keep = keep.map(|keep| share("--released", &keep)).transpose()?;
        Ok(ReleasedRequest { of, path, scheme, keep })
    }
}

/// [`SeriesRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesTable {
    name: String,
    steps: Vec<StepTable>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    unlearned: PathBuf,
    value: f64,
}

impl SeriesTable {
    /// The checkpoints of its steps.
    pub(super) fn checkpoints(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.steps.iter_mut().map(|step| &mut step.unlearned)
    }
}

impl From<SeriesRequest> for SeriesTable {
    fn from(SeriesRequest { name, steps }: SeriesRequest) -> Self {
        let steps = steps.into_iter().map(|(unlearned, value)| StepTable { unlearned, value });
        Self { name, steps: steps.collect() }
    }
}

impl From<&SeriesTable> for SeriesRequest {
    fn from(SeriesTable { name, steps }: &SeriesTable) -> Self {
        let steps = steps.iter().map(|step| (step.unlearned.clone(), step.value));
        Self { name: name.clone(), steps: steps.collect() }
    }
}
