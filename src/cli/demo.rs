//! `undertext demo`: the audit of a family that is built into the program.

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};

use clap::Args;

use super::folder::Out;
use super::plan_file::PlanFile;
use super::session::{self, SessionArgs};
use crate::audit::Request;
use crate::error::{Error, Result};
use crate::report::Report;

static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/demo/models");
static DATA: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/demo/data");

const UNLEARNED: [&str; 4] = ["npo_gdr", "ga_gdr", "sure", "control_fp32"];

pub(super) const TITLE: &str = "\
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

    /// A folder for the run: a new one, or that of the same audit, which then goes on [default: none]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    session: SessionArgs,
}

/// Audits the family.
pub(super) fn run(args: &DemoArgs) -> Result<()> {
    let plan = PlanFile { demo: true, limit: args.limit, ..args.session.plan_file() };
    let out = args.out.clone().map_or(Out::None, Out::Folder);
    session::run(&plan, &args.session.asked(out))
}

/// The family on disk, as long as this lives.
#[derive(Debug)]
pub(super) struct Family(tempfile::TempDir);

impl Family {
    pub(super) fn unpack() -> Result<Self> {
        let directory = tempfile::tempdir().map_err(Error::write(&std::env::temp_dir()))?;
        unpack(&MODELS, &directory.path().join("models"))?;
        unpack(&DATA, &directory.path().join("data"))?;
        Ok(Self(directory))
    }

    /// The request with this family in it.
    pub(super) fn request(&self, request: Request) -> Request {
        let models = self.0.path().join("models");
        Request {
            target: models.join("target"),
            unlearned: UNLEARNED.iter().map(|name| models.join(name)).collect(),
            retrain: Some(models.join("retrain")),
            data: self.0.path().join("data"),
            ..request
        }
    }
}

fn unpack(files: &Dir<'_>, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).and_then(|()| files.extract(to)).map_err(Error::write(to))
}

/// The report names the family's place in the sources: the directory it ran from is gone when the report is read.
pub(super) fn relabel(report: &mut Report) {
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
