//! `undertext quantize`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::de::DeserializeOwned;

use super::interrupt;
use super::output::{JsonArgs, Output};
use super::progress::Amount;
use crate::audit::{Format, QuantizePlan, QuantizeStage, quantize};
use crate::checkpoint::Draft;
use crate::checkpoint::files::read_text;
use crate::error::{Error, Result};
use crate::quant::{Precision, Rounding, Scheme, Share};
use crate::report::quantize::Quantized;
use crate::report::quantize_text;

/// The file beside the weights that says what was done.
const RECORD: &str = "undertext.json";

/// Largest one that is read: it has a line for each matrix.
const LIMIT_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct QuantizeArgs {
    /// The checkpoint to quantize
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// What to quantize to
    #[arg(long, value_name = "SCHEME", value_parser = scheme)]
    scheme: Scheme,

    /// The checkpoint that MODEL was made from: round so that the update from it survives
    #[arg(long, value_name = "TARGET", conflicts_with = "stochastic")]
    keep_from: Option<PathBuf>,

    /// Share of the update that is to survive, 0 to 1 [default: 0.9; 0.85 with --calibrate]
    #[arg(long, value_name = "SHARE", requires = "keep_from")]
    keep: Option<Share>,

    /// A text like those that the model is used on, none of it to be forgotten: of the roundings that keep the share, take
    /// the one that changes the matrices' outputs on it least
    #[arg(long, value_name = "FILE", requires = "keep_from")]
    calibrate: Option<PathBuf>,

    /// Round up or down at random, by nearness, with this seed
    #[arg(long, value_name = "SEED")]
    stochastic: Option<u64>,

    /// dequantized (what codes stand for) or compressed-tensors (codes and scales; int8 and int4-gN)
    #[arg(long, value_name = "FORMAT", default_value = "dequantized")]
    format: Format,

    /// A directory that is empty or not there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    json: JsonArgs,
}

/// Writes the quantized checkpoint.
pub(super) fn run(args: QuantizeArgs) -> Result<()> {
    let QuantizeArgs { model, scheme, keep_from, keep, calibrate, stochastic, format, out, json } = args;
    let output = Output::new(json);
    let rounding = match (&keep_from, stochastic) {
        (Some(_), _) => {
            let usual = if calibrate.is_some() { Share::USUAL_MATCHED } else { Share::USUAL };
            Rounding::Kept(keep.unwrap_or(usual))
        }
        (None, Some(seed)) => Rounding::Stochastic(seed),
        (None, None) => Rounding::Nearest,
    };
    let (record, draft) =
        round(QuantizePlan { model, target: keep_from, scheme, rounding, calibrate, format }, &out)?;
    draft.publish()?;
    output.emit(&record, |style| quantize_text(&record, &out.display().to_string(), style))
}

/// Rounds a checkpoint, showing how far it is: its record, and all that is to become `out`. Ctrl-C ends it and leaves nothing.
pub(super) fn round(plan: QuantizePlan, out: &Path) -> Result<(Quantized, Draft)> {
    let draft = Draft::new(out)?;
    interrupt::listen();
    let name = plan.model.display().to_string();
    let mut progress = None;
    let found = quantize(plan, &draft, &mut |stage, done, total| {
        if progress.as_ref().is_none_or(|(at, _)| *at != stage) {
            // The one before ends first: there is one bar.
            if let Some((_, before)) = progress.take() {
                Amount::finish(before);
            }
            let amount = match stage {
                QuantizeStage::Reading => Amount::bytes(),
                QuantizeStage::Comparing => Amount::weights("comparing"),
                QuantizeStage::Rounding => Amount::weights("rounding"),
            };
            progress = Some((stage, amount));
        }
        if let Some((_, amount)) = &mut progress {
            amount.show(&name, done, total);
        }
        interrupt::check()
    });
    if let Some((_, last)) = progress {
        last.finish();
    }
    let record = Quantized::from(&found?);
    draft.write(RECORD, &Output::to_json(&record)?)?;
    Ok((record, draft))
}

/// The record that `undertext quantize` left in a directory, if there is one.
///
/// # Errors
///
/// If it cannot be read.
pub(super) fn read_record<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>> {
    let path = directory.join(RECORD);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(&path, "the record of `undertext quantize`", "", LIMIT_BYTES)?;
    serde_json::from_str(&text).map(Some).map_err(|error| Error::Malformed {
        path,
        what: "the record".to_owned(),
        found: error.to_string(),
        expected: "what `undertext quantize` wrote".to_owned(),
    })
}

/// Reads the name of `--scheme`: one that quantizes.
pub(super) fn scheme(text: &str) -> Result<Scheme> {
    let wrong = |expected| Error::Flag { flag: "--scheme", found: text.to_owned(), expected };
    match text.parse() {
        Ok(Precision::Quantized(scheme, Rounding::Nearest)) => Ok(scheme),
        Ok(Precision::Quantized(..)) => {
            Err(wrong("a scheme alone; --keep-from and --stochastic say how to round".to_owned()))
        }
        Ok(Precision::Full | Precision::Released(..)) => Err(wrong("a scheme that quantizes".to_owned())),
        Err(Error::Flag { expected, .. }) => Err(wrong(expected.replace("fp16, ", ""))),
        Err(other) => Err(other),
    }
}
