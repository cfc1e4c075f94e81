//! `undertext codes`.

use std::path::PathBuf;

use clap::Args;

use super::args::Common;
use super::device::Device;
use super::output::Output;
use super::progress::Amount;
use crate::audit::{CodesPlan, compare_codes, compare_codes_on};
use crate::error::{Error, Result};
use crate::quant::{Precision, Rounding, Scheme};
use crate::report::{codes::Codes, codes_text};

#[derive(Debug, Args)]
pub(super) struct CodesArgs {
    /// The checkpoint that learned everything
    #[arg(value_name = "TARGET")]
    target: PathBuf,

    /// The checkpoint that was made to forget, of the same architecture
    #[arg(value_name = "UNLEARNED")]
    unlearned: PathBuf,

    /// Schemes to look at
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = scheme,
        default_value = "int8,int4-g32,int4-g128,int4-row,fp4-b64,nf4-b64"
    )]
    schemes: Vec<Scheme>,

    /// Count the output head among the quantized matrices (by default it stays as stored)
    #[arg(long)]
    quantize_head: bool,

    #[command(flatten)]
    common: Common,
}

/// Compares the two checkpoints.
pub(super) fn run(args: CodesArgs) -> Result<()> {
    let CodesArgs { target, unlearned, schemes: asked, quantize_head, common } = args;
    let output = Output::new(common.json);
    let mut schemes = Vec::new();
    for scheme in asked {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
    let device = Device::open_unless_software(common.device.as_ref())?;
    let name = unlearned.display().to_string();
    let plan = CodesPlan { target, unlearned, schemes, quantize_head };
    let mut progress = Amount::weights("comparing");
    let mut watch = |done: u64, total: u64| {
        progress.show(&name, done, total);
        Ok(())
    };
    let found = match &device {
        Device::Cpu => compare_codes(plan, &mut watch),
        Device::Gpu(gpu) => compare_codes_on(gpu, plan, &mut watch),
    };
    progress.finish();
    let codes = Codes::from(&found?);
    output.emit(&codes, |style| codes_text(&codes, style))
}

/// Reads a name of `--schemes`: one that quantizes.
pub(super) fn scheme(text: &str) -> Result<Scheme> {
    let wrong = |expected| Error::Flag { flag: "--schemes", found: text.to_owned(), expected };
    match text.parse() {
        Ok(Precision::Quantized(scheme, Rounding::Nearest)) => Ok(scheme),
        Ok(Precision::Quantized(..)) => {
            Err(wrong("schemes alone: their nearest codes are compared".to_owned()))
        }
        Ok(Precision::Full | Precision::Released(..)) => {
            Err(wrong("a scheme that quantizes: full precision has no codes".to_owned()))
        }
        Err(Error::Flag { expected, .. }) => Err(wrong(expected.replace("fp16, ", ""))),
        Err(other) => Err(other),
    }
}
