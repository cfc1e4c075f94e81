//! Which layers' or modules' quantization alone brings the forgotten back.
//!
//! Every variant of the unlearned checkpoint, quantized in one part only, is an arm of one lockstep pass: arms fork at the
//! first block that differs, so that many variants cost far less than as many runs. What counts is the log-probability of
//! the true answers on the forget set, which moves long before greedy text does.

mod keep;
mod part;

use std::path::PathBuf;
use std::sync::Arc;

pub use keep::Kept;
pub use part::{Block, By, Part, modules};

use super::divergence::quotient;
use super::statistics::Estimate;
use super::verdict::Criteria;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, Finished, Needs, Observation, Options, Task};
use crate::error::{Error, Result};
use crate::metrics::bootstrap::Resamples;
use crate::metrics::mean_percent;
use crate::model::{Comparing, Counters, Lockstep, Pair, Source, check_tensors};
use crate::quant::Precision;
use crate::suite::Muse;
use crate::suite::muse::Metric;

/// The generator's stream, after those of an audit.
const STREAM: u64 = 8;

/// What is asked.
#[derive(Clone, Debug)]
pub struct LocalizePlan {
    /// The checkpoint that learned everything.
    pub target: PathBuf,
    /// The one that was made to forget.
    pub unlearned: PathBuf,
    /// The questions, in MUSE's layout.
    pub data: PathBuf,
    /// What parts are quantized to.
    pub precision: Precision,
    /// Most examples of each question set.
    pub limit: Option<usize>,
    /// How the model is taken apart.
    pub by: Vec<By>,
    /// Seed and resamples of the intervals; below `held_below` a recovery is none.
    pub criteria: Criteria,
}

/// Puts arms on a device.
pub trait OpenSources {
    /// Opens arms that will be asked for `needs`.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryTooSmall`] if there is no memory for so many together.
    fn open(&mut self, sources: Vec<Source>, names: Vec<String>, needs: Needs) -> Result<Box<dyn Lockstep>>;

    /// `done` of `total` answers are there, of those that are asked for now.
    fn answered(&mut self, done: usize, total: usize);
}

/// What one variant says of the true answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What is quantized.
    pub part: Part,
    /// Mean log-probability a token of each answer on the forget set (VerbMem's, then KnowMem's), nats.
    pub log_probs: Vec<f64>,
    /// Their mean.
    pub log_prob: f64,
    /// KL(variant || target at full precision), nats a token of the forget set's answers.
    pub kl_to_target: f64,
    /// Mean probability of VerbMem's, KnowMem's and the retain set's answers, x100; `None` without answers.
    pub probabilities: [Option<f64>; 3],
    /// How much of the log-probability that the quantized target has more than the unlearned model at full precision is
    /// back. `None` if it has no more.
    pub recovery: Option<Estimate>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Localized {
    /// Target at full precision and quantized, nothing, all, then the parts as they were asked for.
    pub rows: Vec<Row>,
    /// The blocks that must stay at full precision; `None` if nothing comes back anyway, or blocks were not looked at.
    pub kept: Option<Kept>,
    /// What it cost.
    pub counters: Counters,
}

/// Everything that is read before the weights.
#[derive(Debug)]
pub struct Localize {
    plan: LocalizePlan,
    target: Arc<Checkpoint>,
    unlearned: Arc<Checkpoint>,
    tasks: Vec<Task>,
    /// How many of the tasks are VerbMem's, and KnowMem's on the forget set; the rest are the retain set's.
    counts: [usize; 2],
}

impl Localize {
    /// Opens both checkpoints without their weights, and reads the questions.
    ///
    /// # Errors
    ///
    /// If anything is missing, broken or not supported, or if the two do not belong together.
    pub fn open(plan: LocalizePlan) -> Result<Self> {
        let found = plan.precision.to_string();
        if plan.precision == Precision::Full {
            let expected = "a precision that quantizes".to_owned();
            return Err(Error::Flag { flag: "--precision", found, expected });
        }
        if plan.precision != plan.precision.plain() {
            let expected = "a scheme alone: what nearest rounding brings back is looked for".to_owned();
            return Err(Error::Flag { flag: "--precision", found, expected });
        }
        plan.criteria.check()?;
        let suite = Muse::read(&plan.data, plan.limit)?;
        let open = |path: &PathBuf| -> Result<_> {
            let checkpoint = Arc::new(Checkpoint::open(path)?);
            check_tensors(&checkpoint)?;
            Ok(checkpoint)
        };
        let (target, unlearned) = (open(&plan.target)?, open(&plan.unlearned)?);
        unlearned.must_run_like(&target, "the target's")?;
        let context = target.config().context.min(unlearned.config().context);
        let prepared = suite.prepare(&target.tokenizer()?, context, &[])?;
        if suite.prepare(&unlearned.tokenizer()?, context, &[])? != prepared {
            return Err(Error::TokenizersDiffer { path: plan.unlearned, target: plan.target });
        }
        let [verbmem, knowmem, retain] =
            [Metric::VerbmemForget, Metric::KnowmemForget, Metric::KnowmemRetain]
                .map(|metric| prepared.tasks()[prepared.truths(metric)].to_vec());
        let counts = [verbmem.len(), knowmem.len()];
        Ok(Self { plan, target, unlearned, tasks: [verbmem, knowmem, retain].concat(), counts })
    }

    /// What was asked.
    #[must_use]
    pub fn plan(&self) -> &LocalizePlan {
        &self.plan
    }

    /// Layers of the models.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.unlearned.config().layers
    }

    /// Asks all variants.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read, the device fails, or logits are not finite.
    pub fn run(&self, open: &mut dyn OpenSources) -> Result<Localized> {
        let config = self.unlearned.config();
        let mut parts = vec![Part::TargetFull, Part::Target, Part::Nothing, Part::All];
        parts.extend(self.plan.by.iter().flat_map(|by| by.parts(config)));
        let mut counters = Counters::default();
        let mut rows = self.ask(&parts, open, &mut counters)?;
        let judge = Judge::new(self, &rows);
        rows.iter_mut().for_each(|row| row.recovery = judge.recovery(row));
        let mut again = |parts: &[Part]| -> Result<Vec<Row>> {
            let mut rows = self.ask(parts, open, &mut counters)?;
            rows.iter_mut().for_each(|row| row.recovery = judge.recovery(row));
            Ok(rows)
        };
        let kept = keep::smallest(&rows, self.plan.criteria.held_below, &mut again)?;
        Ok(Localized { rows, kept, counters })
    }

    /// Asks these variants, in as few groups as there is memory for.
    fn ask(&self, parts: &[Part], open: &mut dyn OpenSources, counters: &mut Counters) -> Result<Vec<Row>> {
        let source = |part: &Part| part.source(&self.target, &self.unlearned, self.plan.precision);
        // Everything is held against the first.
        let all: Vec<Part> = std::iter::once(Part::TargetFull).chain(parts.iter().cloned()).collect();
        let pairs: Vec<_> = (1..all.len()).map(|arm| Pair { reference: 0, arm }).collect();
        let names: Vec<_> = all.iter().map(ToString::to_string).collect();
        let needs = Needs::of(&self.tasks).with_pairs(pairs.len());
        let model = match open.open(all.iter().map(source).collect(), names.clone(), needs) {
            Err(Error::MemoryTooSmall { .. }) if parts.len() > 1 => {
                let (first, second) = parts.split_at(parts.len() / 2);
                let mut rows = self.ask(first, open, counters)?;
                rows.extend(self.ask(second, open, counters)?);
                return Ok(rows);
            }
            model => model?,
        };
        let mut engine = Engine::new(names, model, Options::default());
        let mut tell = |finished: Finished<'_>| {
            open.answered(finished.done, finished.total);
            Ok(())
        };
        let what = Comparing { pairs: &pairs, detailed: false };
        let answered = engine.compare(&self.tasks, what, &mut tell)?;
        counters.add(&engine.counters());
        let mut arms = answered.arms.into_iter();
        arms.next().transpose()?;
        let rows = parts.iter().zip(arms).zip(&answered.pairs);
        rows.map(|((part, observations), apart)| Ok(self.row(part.clone(), &observations?, apart))).collect()
    }

    fn row(
        &self,
        part: Part,
        observations: &[Observation],
        apart: &[Vec<crate::metrics::divergence::Divergence>],
    ) -> Row {
        let [verbmem, knowmem] = self.counts;
        let forget = verbmem + knowmem;
        let log_prob = |observation: &Observation| match observation {
            Observation::Scored { log_probs, .. } if !log_probs.is_empty() => {
                log_probs.iter().map(|log_prob| f64::from(*log_prob)).sum::<f64>() / log_probs.len() as f64
            }
            _ => f64::NAN,
        };
        let log_probs: Vec<f64> = observations.iter().map(log_prob).collect();
        let probability = |range: std::ops::Range<usize>| {
            let known = log_probs[range].iter().filter(|log_prob| log_prob.is_finite());
            mean_percent(&known.map(|log_prob| log_prob.exp()).collect::<Vec<_>>()).value()
        };
        let probabilities =
            [probability(0..verbmem), probability(verbmem..forget), probability(forget..log_probs.len())];
        let log_probs: Vec<f64> =
            log_probs[..forget].iter().copied().filter(|log_prob| log_prob.is_finite()).collect();
        let tokens = apart[..forget].iter().map(Vec::len).sum::<usize>().max(1);
        let kl = apart[..forget].iter().flatten().map(|apart| apart.reverse_kl).sum::<f64>();
        Row {
            part,
            log_prob: log_probs.iter().sum::<f64>() / log_probs.len().max(1) as f64,
            log_probs,
            kl_to_target: kl / tokens as f64,
            probabilities,
            recovery: None,
        }
    }
}

/// Measures recovery on the same resamples everywhere.
struct Judge {
    draws: Resamples,
    before: Vec<f64>,
    most: Vec<f64>,
}

impl Judge {
    fn new(localize: &Localize, rows: &[Row]) -> Self {
        let of = |part: Part| {
            let row = rows.iter().find(|row| row.part == part);
            row.map_or_else(Vec::new, |row| row.log_probs.clone())
        };
        let (before, most) = (of(Part::Nothing), of(Part::Target));
        let Criteria { seed, resamples, .. } = localize.plan.criteria;
        Self { draws: Resamples::new(seed, STREAM, before.len(), resamples), before, most }
    }

    fn recovery(&self, row: &Row) -> Option<Estimate> {
        if row.log_probs.len() != self.before.len() || self.most.len() != self.before.len() {
            return None;
        }
        let estimate = quotient(
            &self.draws,
            |answer| row.log_probs[answer] - self.before[answer],
            |answer| self.most[answer] - self.before[answer],
        );
        estimate.value.is_finite().then_some(estimate)
    }
}
