//! `undertext demo`: the audit of a family that is built into the program.

use std::path::Path;

use include_dir::{Dir, include_dir};

use clap::Args;

use super::args::{MemoryArgs, ReportedArgs, TuneArgs};
use super::audit::execute;
use super::judge::JudgeArgs;
use super::repair::RepairArgs;
use crate::audit::{Plan, Request};
use crate::error::{Error, Result};
use crate::quant::{Precision, Scheme};
use crate::report::Report;

static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/demo/models");
static DATA: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/demo/data");

const UNLEARNED: [&str; 4] = ["npo_gdr", "ga_gdr", "sure", "control_fp32"];

const PRECISIONS: [Precision; 3] =
    [Precision::Full, Precision::nearest(Scheme::Int8), Precision::nearest(Scheme::Int4 { group: 128 })];

const TITLE: &str = "\
A tiny Llama learned about invented people and books (target), then was made to forget some of them in four ways.
npo_gdr and ga_gdr: small updates to bf16 weights, as the field does it. sure: larger updates to the most salient
rows only. control_fp32: npo_gdr's loss with larger updates to fp32 weights. retrain never met what was forgotten.
Every model answers the same questions as stored, in int8 and in int4. Does the forgotten come back?

";

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    #[command(flatten)]
    repair: RepairArgs,

    #[command(flatten)]
    judge: JudgeArgs,

    #[command(flatten)]
    tune: TuneArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    reported: ReportedArgs,
}

/// Unpacks the family and audits it.
pub(super) fn run(args: &DemoArgs) -> Result<()> {
    let directory = tempfile::tempdir().map_err(Error::write(&std::env::temp_dir()))?;
    let (models, data) = (directory.path().join("models"), directory.path().join("data"));
    unpack(&MODELS, &models)?;
    unpack(&DATA, &data)?;
    let (doses, choose_dose) = args.repair.doses();
    let plan = Plan::new(Request {
        target: models.join("target"),
        unlearned: UNLEARNED.iter().map(|name| models.join(name)).collect(),
        retrain: Some(models.join("retrain")),
        data,
        precisions: PRECISIONS.to_vec(),
        limit: args.limit,
        doses,
        choose_dose,
        criteria: args.judge.criteria(),
        ..Request::default()
    })?;
    execute(plan, &args.judge, &args.reported, args.tune, &args.memory, &relabel, TITLE)
}

fn unpack(files: &Dir<'_>, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).and_then(|()| files.extract(to)).map_err(Error::write(to))
}

/// The report names the family's place in the sources: the directory it ran from is gone when the report is read.
fn relabel(report: &mut Report) {
    report.plan.data = "assets/demo/data".to_owned();
    for arm in &mut report.arms {
        arm.path = format!("assets/demo/models/{}", arm.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_complete() {
        for name in UNLEARNED.iter().chain(&["target", "retrain"]) {
            for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                assert!(MODELS.contains(format!("{name}/{file}")), "{name}/{file}");
            }
        }
        assert!(DATA.contains("knowmem/forget_qa.json"));
    }
}
