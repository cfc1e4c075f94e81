//! A session that asks one shard of an audit.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::arms::Arms;
use super::folder::Out;
use super::output::Output;
use super::session::{Asked, Watching};
use crate::audit::{
    Audit, Fate, Findings, HEAD, Inputs, MatrixFate, Plan, Portion, Shard, Store, Survival, modules,
};
use crate::checkpoint::files::{read_text, replace};
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::metrics::Measured;
use crate::quant::Precision;

/// What a shard found out about updates.
const SURVIVAL: &str = "survival.json";

/// Longest such file that is read.
const SURVIVAL_BYTES: u64 = 16 << 20;

/// Refuses what a shard cannot give.
///
/// # Errors
///
/// [`Error::Flag`].
pub(super) fn check(shard: Shard, asked: &Asked) -> Result<()> {
    let refused = |flag, expected: &str| {
        let found = format!("with shard {shard}, this");
        Err(Error::Flag { flag, found, expected: expected.to_owned() })
    };
    match (&asked.out, &asked.output, &asked.html) {
        (Out::None, ..) => refused("--no-out", "its answers need a folder (--out DIR)"),
        (_, Output::Json | Output::File(_), _) => {
            refused("--json", "a shard has no figures; `undertext merge` takes this flag")
        }
        (.., Some(_)) => refused("--html", "a shard has no figures; `undertext merge` takes this flag"),
        _ => Ok(()),
    }
}

/// Asks the portions, each on the arms that were laid out for it.
pub(super) fn ask(
    audit: &Audit,
    portions: &[Portion],
    arms: &[Arms<'_>],
    options: Options,
    watch: &mut Watching<'_>,
    mut store: Option<&mut Store>,
) -> (Findings, Result<()>) {
    let mut findings = audit.nothing_yet();
    for (portion, arms) in portions.iter().zip(arms) {
        let asked =
            audit.run_portion(portion, &mut findings, &mut &*arms, options, watch, store.as_deref_mut());
        if asked.is_err() {
            return (findings, asked);
        }
    }
    (findings, Ok(()))
}

/// What there is to say when a shard is done.
pub(super) fn done(shard: Shard, portions: &[Portion], out: &Out) -> String {
    let answers: usize = portions.iter().map(|portion| portion.arms.len() * portion.tasks.len()).sum();
    let mut arms: Vec<_> = portions.iter().flat_map(|portion| portion.arms.clone()).collect();
    arms.sort_unstable();
    arms.dedup();
    let folder = match out {
        Out::Folder(path) | Out::Resumed(path) => path.as_path(),
        Out::None | Out::Dated => Path::new(""),
    };
    format!(
        "Shard {shard} is done: {answers} answers of {} arms are in {}.\n`undertext merge` makes the report of all {} shards.\n",
        arms.len(),
        folder.display(),
        shard.of()
    )
}

/// A [`Survival`] as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    unlearned: String,
    /// Of the target and the unlearned model, as in [`Inputs`].
    weights: [String; 2],
    precision: String,
    value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved: Option<(u64, u64)>,
    /// Layer, module and what became of the update, of each matrix.
    #[serde(default)]
    matrices: Vec<(Option<usize>, String, Fate)>,
}

impl Kept {
    /// The matrices again; `None` if one is of no module.
    fn fates(&self) -> Option<Vec<MatrixFate>> {
        let known = |name: &str| modules().into_iter().chain([HEAD]).find(|module| *module == name);
        let fate = |(layer, module, fate): &(Option<usize>, String, Fate)| {
            Some(MatrixFate { layer: *layer, module: known(module)?, fate: *fate })
        };
        self.matrices.iter().map(fate).collect()
    }
}

/// Hashes of the weights that a survival depends on.
fn weights(inputs: &Inputs, unlearned: usize) -> [String; 2] {
    [Plan::TARGET, unlearned].map(|model| inputs.models[model].weights.clone())
}

/// Keeps what a shard found out about updates.
///
/// # Errors
///
/// [`Error::Write`].
pub(super) fn save_survival(folder: &Path, plan: &Plan, inputs: &Inputs, found: &[Survival]) -> Result<()> {
    let kept = |survival: &Survival| Kept {
        unlearned: plan.models[survival.unlearned].name.clone(),
        weights: weights(inputs, survival.unlearned),
        precision: survival.precision.to_string(),
        value: survival.value.value(),
        reason: survival.value.reason().map(str::to_owned),
        moved: survival.moved,
        matrices: survival
            .matrices
            .iter()
            .map(|matrix| (matrix.layer, matrix.module.to_owned(), matrix.fate))
            .collect(),
    };
    let kept: Vec<_> = found.iter().map(kept).collect();
    replace(&folder.join(SURVIVAL), Output::to_json(&kept)?.as_bytes())
}

/// Reads it back, in the order in which it was found; none if that of any update at any precision is missing.
///
/// # Errors
///
/// If the file is there and broken.
pub(super) fn survival(
    folder: &Path,
    shard: Shard,
    plan: &Plan,
    inputs: &Inputs,
) -> Result<Option<Vec<Survival>>> {
    let path = folder.join(SURVIVAL);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, "what a shard found out about updates", "", SURVIVAL_BYTES)?;
    let broken = |found: String| Error::Malformed {
        path: path.clone(),
        what: "survival".to_owned(),
        found,
        expected: "what a shard wrote (without the file, `undertext audit --resume` writes it again)"
            .to_owned(),
    };
    let kept: Vec<Kept> = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let mut all = Vec::new();
    for unlearned in shard.updates(plan) {
        let (name, weights) = (&plan.models[unlearned].name, weights(inputs, unlearned));
        let own = kept.iter().filter(|kept| kept.unlearned == *name && kept.weights == weights);
        let before = all.len();
        // Of a released file only its own model has an arm.
        let quantized =
            plan.arms().filter(|&(model, precision)| model == unlearned && precision != Precision::Full);
        for kept in own {
            let Kept { precision, value, reason, moved, .. } = kept;
            let value = match (value, reason) {
                (Some(value), _) => Measured::Value(*value),
                (None, Some(reason)) => Measured::Missing(reason.clone()),
                (None, None) => return Err(broken("neither a value nor a reason".to_owned())),
            };
            let named = plan.precisions.iter().copied().find(|known| known.to_string() == *precision);
            let precision = named.ok_or_else(|| broken(format!("precision {precision}")))?;
            let matrices = kept.fates().ok_or_else(|| broken("an unknown module".to_owned()))?;
            all.push(Survival { unlearned, precision, value, moved: *moved, matrices });
        }
        if all.len() - before != quantized.count() {
            return Ok(None);
        }
    }
    Ok(Some(all))
}
