//! `undertext codes`.

use super::args::CodesArgs;
use super::output::Output;
use super::progress::Progress;
use crate::audit::{CodesPlan, compare_codes};
use crate::error::{Error, Result};
use crate::quant::{Precision, Scheme};
use crate::report::{codes::Codes, codes_text};

/// Weights that one step of the progress stands for.
const STEP: u64 = 1 << 20;

/// Compares the two checkpoints.
pub(super) fn run(args: CodesArgs) -> Result<()> {
    let CodesArgs { target, unlearned, schemes: asked, quantize_head, json } = args;
    let output = Output::new(json);
    let mut schemes = Vec::new();
    for scheme in asked {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
    let name = unlearned.display().to_string();
    let mut progress: Option<Progress> = None;
    let found = compare_codes(CodesPlan { target, unlearned, schemes, quantize_head }, &mut |done, total| {
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
    let codes = Codes::from(&found?);
    output.emit(&codes, |style| codes_text(&codes, style))
}

/// Reads a name of `--schemes`: one that quantizes.
pub(super) fn scheme(text: &str) -> Result<Scheme> {
    let wrong = |expected| Error::Flag { flag: "--schemes", found: text.to_owned(), expected };
    match text.parse() {
        Ok(Precision::Quantized(scheme)) => Ok(scheme),
        Ok(Precision::Full) => Err(wrong("a scheme that quantizes: full precision has no codes".to_owned())),
        Err(Error::Flag { expected, .. }) => Err(wrong(expected.replace("fp16, ", ""))),
        Err(other) => Err(other),
    }
}
