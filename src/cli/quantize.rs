//! `undertext quantize`.

use super::args::QuantizeArgs;
use super::output::Output;
use super::progress::Progress;
use crate::audit::{QuantizePlan, Rounding, quantize};
use crate::checkpoint::Draft;
use crate::error::{Error, Result};
use crate::quant::{Precision, Scheme};
use crate::report::quantize::Quantized;
use crate::report::quantize_text;

/// Weights that one step of the progress stands for.
const STEP: u64 = 1 << 20;

/// Writes the quantized checkpoint.
pub(super) fn run(args: QuantizeArgs) -> Result<()> {
    let QuantizeArgs { model, scheme, keep_from, keep, stochastic, format, out, json } = args;
    let output = Output::new(json);
    let draft = Draft::new(&out)?;
    let rounding = match (keep_from, stochastic) {
        (Some(target), _) => Rounding::Kept { target, share: keep },
        (None, Some(seed)) => Rounding::Stochastic { seed },
        (None, None) => Rounding::Nearest,
    };
    let name = model.display().to_string();
    let mut progress: Option<Progress> = None;
    let found = quantize(QuantizePlan { model, scheme, rounding, format }, &draft, &mut |done, total| {
        let [done, total] =
            [done, total].map(|weights| usize::try_from(weights / STEP).unwrap_or(usize::MAX));
        let progress = progress.get_or_insert_with(|| {
            let mut progress = Progress::new("million weights");
            progress.part(&name, 0, total);
            progress
        });
        progress.done(done);
    });
    if let Some(mut progress) = progress {
        progress.finish();
    }
    let record = Quantized::from(&found?);
    draft.write("undertext.json", &Output::to_json(&record)?)?;
    draft.publish()?;
    output.emit(&record, |style| quantize_text(&record, &out.display().to_string(), style))
}

/// Reads the name of `--scheme`: one that quantizes.
pub(super) fn scheme(text: &str) -> Result<Scheme> {
    let wrong = |expected| Error::Flag { flag: "--scheme", found: text.to_owned(), expected };
    match text.parse() {
        Ok(Precision::Quantized(scheme)) => Ok(scheme),
        Ok(Precision::Full) => Err(wrong("a scheme that quantizes".to_owned())),
        Err(Error::Flag { expected, .. }) => Err(wrong(expected.replace("fp16, ", ""))),
        Err(other) => Err(other),
    }
}

/// Reads the value of `--keep`.
pub(super) fn share(text: &str) -> Result<f32> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| Error::Flag {
        flag: "--keep",
        found: text.to_owned(),
        expected: "a share from 0 to 1".to_owned(),
    })
}
