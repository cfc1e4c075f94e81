//! `undertext audit`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::calibrated;
use super::folder::{Out, PLAN};
use super::plan_file::PlanFile;
use super::released::with_record;
use super::session::{self, SessionArgs};
use crate::audit::{ReleasedRequest, SeriesRequest};
use crate::error::Result;
use crate::metrics::membership::Corpus;
use crate::quant::Precision;

/// What is compared unless the user says otherwise.
pub(super) const PRECISIONS: &str = "fp16,int8,int4-g128";

/// Flags that a plan holds.
const PLANNED: [&str; 31] = [
    "target",
    "unlearned",
    "series",
    "retrain",
    "data",
    "released",
    "calibrate",
    "precision",
    "repair",
    "keep",
    "dose",
    "limit",
    "quantize_head",
    "tokenizer",
    "corpus",
    "fail_on",
    "resurrected_above",
    "held_below",
    "collapsed_below",
    "least_gap",
    "resamples",
    "seed",
    "no_divergence",
    "no_survival",
    "no_samples",
    "no_tune",
    "retune",
    "vram",
    "kv",
    "naive",
    "device",
];

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// A plan to run, such as a run folder's plan.toml, in place of the flags that say what is audited and how
    #[arg(value_name = "PLAN.TOML", conflicts_with_all = PLANNED)]
    plan: Option<PathBuf>,

    /// Go on with the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with_all = PLANNED, conflicts_with_all = ["plan", "out", "no_out", "shard"])]
    resume: Option<PathBuf>,

    /// The run's folder: a new one, or that of the same audit, which then goes on
    /// [default: undertext-runs/TIME_UNLEARNED]
    #[arg(long, value_name = "DIR", conflicts_with = "no_out")]
    out: Option<PathBuf>,

    /// Keep no run folder
    #[arg(long)]
    no_out: bool,

    /// The checkpoint that learned everything
    #[arg(long, value_name = "DIR", required_unless_present_any = ["plan", "resume"])]
    target: Option<PathBuf>,

    /// Checkpoints that were made to forget
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present_any = ["series", "plan", "resume"])]
    unlearned: Vec<PathBuf>,

    /// Unlearned checkpoints as steps of a series, such as how much was forgotten at once (MUSE's scalability) or how often
    /// (sustainability): gives every metric against these values. May be repeated
    #[arg(long, value_name = "NAME=DIR@VALUE,...")]
    series: Vec<SeriesRequest>,

    /// A quantized file of an unlearned checkpoint, as it is handed out (such as `undertext quantize` writes): asked as it
    /// is, and judged beside the checkpoint's own precisions. UNLEARNED is the checkpoint's name in the report, needed if
    /// there are several; SCHEME is needed if the file does not say it. May be repeated
    #[arg(long, value_name = "[UNLEARNED=]DIR[@SCHEME]")]
    released: Vec<ReleasedRequest>,

    /// Also write every unlearned checkpoint in every 4-bit precision by `undertext quantize --calibrate FILE`, to
    /// OUT/repaired/, and judge these as --released. FILE is a text like those that the models are used on, none of it to be
    /// forgotten. Takes minutes; files that are there already are used again
    #[arg(long, value_name = "FILE", requires_all = ["repair", "out"], conflicts_with = "shard")]
    calibrate: Option<PathBuf>,

    /// A checkpoint that never saw the forget set: PrivLeak's reference
    #[arg(long, value_name = "DIR")]
    retrain: Option<PathBuf>,

    /// The questions, in MUSE's layout
    #[arg(long, value_name = "DIR", required_unless_present_any = ["plan", "resume"])]
    data: Option<PathBuf>,

    /// Precisions to compare
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = PRECISIONS)]
    precision: Vec<Precision>,

    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Quantize the output head too (by default it stays as stored, like embeddings and norms)
    #[arg(long)]
    quantize_head: bool,

    /// A directory whose tokenizer.json serves all checkpoints
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,

    /// Compare PrivLeak with the published AUC of this MUSE corpus' retrained model
    #[arg(long, value_enum)]
    corpus: Option<CorpusName>,

    #[command(flatten)]
    session: SessionArgs,
}

/// A corpus of MUSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CorpusName {
    News,
    Books,
}

impl From<CorpusName> for Corpus {
    fn from(name: CorpusName) -> Self {
        match name {
            CorpusName::News => Self::News,
            CorpusName::Books => Self::Books,
        }
    }
}

/// Runs the audit that the flags, a plan or a run's folder describe.
pub(super) fn run(args: AuditArgs) -> Result<()> {
    let out = match (&args.resume, &args.out, args.no_out) {
        (Some(folder), ..) => Out::Resumed(folder.clone()),
        (None, Some(folder), _) => Out::Folder(folder.clone()),
        (None, None, true) => Out::None,
        (None, None, false) => Out::Dated,
    };
    let asked = args.session.asked(out);
    let plan = match (&args.resume, &args.plan) {
        (Some(folder), _) => PlanFile::read(&folder.join(PLAN))?,
        (None, Some(plan)) => args.session.of_shard(PlanFile::read(plan)?),
        (None, None) => args.plan_file()?,
    };
    session::run(&plan, &asked)
}

impl AuditArgs {
    /// What the flags say, as a plan.
    fn plan_file(self) -> Result<PlanFile> {
        let released = self.released.into_iter().map(with_record).collect::<Result<Vec<_>>>()?;
        let mut plan = PlanFile {
            target: self.target,
            unlearned: self.unlearned,
            retrain: self.retrain,
            data: self.data,
            tokenizer: self.tokenizer,
            precision: self.precision.iter().map(ToString::to_string).collect(),
            limit: self.limit,
            quantize_head: self.quantize_head,
            corpus: self.corpus,
            released: released.into_iter().map(Into::into).collect(),
            series: self.series.into_iter().map(Into::into).collect(),
            ..self.session.plan_file()
        };
        plan.resolve(Path::new(""))?;
        if let (Some(text), Some(out)) = (&self.calibrate, &self.out) {
            let repaired = calibrated::write(&plan, text, &self.session.calibrated_shares(), out)?;
            plan.released.extend(repaired.into_iter().map(Into::into));
        }
        Ok(plan)
    }
}
