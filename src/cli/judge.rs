//! Flags that say how figures are judged, and what to do about the verdicts.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::plan_file::PlanFile;
use crate::audit::{Criteria, Outcome};
use crate::error::{Error, Result};
use crate::report::Report;

/// How figures are judged.
#[derive(Clone, Debug, Args)]
pub(super) struct JudgeArgs {
    /// End with exit code 5 if a verdict is one of these (a complete audit only; its report is written all the same)
    #[arg(long, value_name = "VERDICTS", value_delimiter = ',', value_enum)]
    fail_on: Vec<OutcomeName>,

    /// A verdict is `resurrected` if the 95 % interval of the recovered share lies above this
    #[arg(long, value_name = "SHARE", default_value_t = Criteria::default().resurrected_above)]
    resurrected_above: f64,

    /// A verdict is `held` if the 95 % interval of the recovered share lies below this
    #[arg(long, value_name = "SHARE", default_value_t = Criteria::default().held_below)]
    held_below: f64,

    /// A verdict is `void` if the unlearned model's retain metric is below this share of the target's
    #[arg(long, value_name = "SHARE", default_value_t = Criteria::default().collapsed_below)]
    collapsed_below: f64,

    /// A verdict is `void` if less than so many points (of 100) were there to forget and to bring back
    #[arg(long, value_name = "POINTS", default_value_t = Criteria::default().least_gap)]
    least_gap: f64,

    /// Resamples behind every interval and test; Holm's correction over more than 500 figures needs more
    #[arg(long, value_name = "N", default_value_t = Criteria::default().resamples)]
    resamples: usize,

    /// Seed of the resamples
    #[arg(long, value_name = "N", default_value_t = Criteria::default().seed)]
    seed: u64,

    /// Do not hold the arms' logits against each other on the true answers: takes less time and memory
    #[arg(long)]
    no_divergence: bool,

    /// Do not read the checkpoints once more to say how much of each update survives
    #[arg(long)]
    no_survival: bool,

    /// Leave the questions and the answers out of the report: they are text that was to be forgotten
    #[arg(long)]
    no_samples: bool,
}

impl JudgeArgs {
    fn criteria(&self) -> Criteria {
        Criteria {
            resamples: self.resamples,
            seed: self.seed,
            resurrected_above: self.resurrected_above,
            held_below: self.held_below,
            collapsed_below: self.collapsed_below,
            least_gap: self.least_gap,
        }
    }

    /// These flags' part of a plan.
    pub(super) fn plan_file(&self) -> PlanFile {
        PlanFile {
            divergence: !self.no_divergence,
            survival: !self.no_survival,
            samples: !self.no_samples,
            fail_on: self.fail_on.clone(),
            criteria: self.criteria().into(),
            ..PlanFile::default()
        }
    }
}

/// Fails if a verdict is one that the user wants to fail on.
pub(super) fn check(fail_on: &[OutcomeName], report: &Report) -> Result<()> {
    let asked: Vec<_> = fail_on.iter().map(|&name| Outcome::from(name).name()).collect();
    let found = report.verdicts.iter().filter(|verdict| asked.contains(&verdict.verdict.as_str()));
    let verdicts: Vec<_> = found
        .map(|verdict| format!("{}@{} is {}", verdict.unlearned, verdict.precision, verdict.verdict))
        .collect();
    if verdicts.is_empty() { Ok(()) } else { Err(Error::Verdict { verdicts }) }
}

/// A verdict to fail on; whoever wants to fail on `held` has a reason that is not ours to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutcomeName {
    Resurrected,
    Held,
    Inconclusive,
    Void,
}

impl From<OutcomeName> for Outcome {
    fn from(name: OutcomeName) -> Self {
        match name {
            OutcomeName::Resurrected => Self::Resurrected,
            OutcomeName::Held => Self::Held,
            OutcomeName::Inconclusive => Self::Inconclusive,
            OutcomeName::Void => Self::Void,
        }
    }
}
