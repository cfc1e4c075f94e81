//! Opening everything, then asking one arm after the other.

use super::findings::{ArmResult, Findings, Metric};
use super::plan::{Model, Plan};
use crate::checkpoint::{Checkpoint, Tokenizer};
use crate::engine::{Engine, Finished, Options};
use crate::error::{Error, Result};
use crate::model::{Forward, PAGE, check_tensors, stored_scheme};
use crate::quant::{Precision, Scheme};
use crate::suite::Muse;
use crate::suite::muse::{self, Answers, Prepared};

/// What the tasks ask of the model that answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whether the head is quantized too.
    pub quantize_head: bool,
    /// Tokens of the longest task: a cache smaller than this cannot answer it.
    pub longest: usize,
    /// Tokens of all tasks, each rounded up to whole pages: a cache larger than this is never filled.
    pub all: usize,
}

impl Needs {
    /// What `tasks` need.
    #[must_use]
    pub fn of(tasks: &[crate::engine::Task], quantize_head: bool) -> Self {
        let paged = || tasks.iter().map(|task| task.cached().div_ceil(PAGE).saturating_mul(PAGE));
        let longest = paged().max().unwrap_or(0).max(PAGE);
        Self { quantize_head, longest, all: paged().fold(0, usize::saturating_add).max(longest) }
    }
}

/// An arm about to be asked.
#[derive(Clone, Copy, Debug)]
pub struct ArmInfo<'a> {
    /// The checkpoint.
    pub model: &'a Model,
    /// The precision.
    pub precision: Precision,
    /// The arm's number, from 0.
    pub index: usize,
    /// Arms in all.
    pub total: usize,
    /// Tasks that it will be asked.
    pub tasks: usize,
}

/// Who is told how a run goes.
pub trait Watch {
    /// An arm's weights are about to be read.
    fn arm(&mut self, arm: ArmInfo<'_>);

    /// The arm has answered `done` of its tasks.
    fn task(&mut self, done: usize);

    /// An arm was measured. The findings hold it and all before it.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn measured(&mut self, findings: &Findings) -> Result<()>;
}

/// Opens a checkpoint at a precision on some device.
pub type Open<'a> = dyn FnMut(&Checkpoint, Precision, Needs) -> Result<Box<dyn Forward>> + 'a;

/// Everything that is read before the first arm: checkpoints without their weights, tokenizers, questions.
#[derive(Debug)]
pub struct Audit {
    plan: Plan,
    /// As [`Plan::models`].
    checkpoints: Vec<Checkpoint>,
    /// Of each checkpoint's linear layers, as stored.
    stored: Vec<Scheme>,
    tokenizer: Tokenizer,
    questions: Prepared,
}

impl Audit {
    /// Reads the data, opens every checkpoint, checks that all tensors are there with the right shapes, and that all
    /// tokenizers say the same about the questions.
    ///
    /// # Errors
    ///
    /// If anything of that is missing, broken or not supported: no weight has been read by then.
    pub fn open(plan: Plan) -> Result<Self> {
        let suite = Muse::read(&plan.data, plan.limit)?;
        let checkpoints: Vec<_> =
            plan.models.iter().map(|model| Checkpoint::open(&model.path)).collect::<Result<_>>()?;
        checkpoints.iter().try_for_each(check_tensors)?;
        let stored: Vec<_> = checkpoints.iter().map(stored_scheme).collect::<Result<_>>()?;

        let context = checkpoints.iter().map(|checkpoint| checkpoint.config().context).min().unwrap_or(0);
        let stop = checkpoints.first().map_or(&[][..], |target| &target.config().eos);
        let mut first: Option<(Tokenizer, Prepared)> = None;
        for (model, checkpoint) in plan.models.iter().zip(&checkpoints) {
            let tokenizer = match &plan.tokenizer {
                Some(path) => Tokenizer::read(path, checkpoint.config().vocab_size)?,
                None => checkpoint.tokenizer()?,
            };
            let questions = suite.prepare(&tokenizer, context, stop)?;
            match &first {
                None => first = Some((tokenizer, questions)),
                Some((_, theirs)) if *theirs == questions => {}
                Some(_) => {
                    let target = plan.models[Plan::TARGET].path.clone();
                    return Err(Error::TokenizersDiffer { path: model.path.clone(), target });
                }
            }
        }
        let (tokenizer, questions) = first.ok_or_else(|| Error::Flag {
            flag: "--target",
            found: "no directory".to_owned(),
            expected: "a checkpoint directory".to_owned(),
        })?;
        Ok(Self { plan, checkpoints, stored, tokenizer, questions })
    }

    /// What the questions ask of a model.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::of(self.questions.tasks(), self.plan.quantize_head)
    }

    /// Findings without any arm.
    #[must_use]
    pub fn nothing_yet(&self) -> Findings {
        Findings {
            plan: self.plan.clone(),
            arms: Vec::new(),
            truncated: muse::Metric::ALL.into_iter().map(|metric| self.questions.truncated(metric)).sum(),
            stopped: None,
        }
    }

    /// Asks every arm, one after the other, and scores its answers.
    ///
    /// What was measured is returned whether or not a later arm failed.
    pub fn run(&self, open: &mut Open<'_>, watch: &mut dyn Watch) -> (Findings, Result<()>) {
        let mut findings = self.nothing_yet();
        let models = self.plan.models.len();
        let arms = (0..models).flat_map(|m| self.plan.precisions.iter().map(move |&p| (m, p)));
        let total = models * self.plan.precisions.len();
        for (index, (model, precision)) in arms.enumerate() {
            watch.arm(ArmInfo {
                model: &self.plan.models[model],
                precision,
                index,
                total,
                tasks: self.questions.tasks().len(),
            });
            let measured = self.ask(model, precision, open, watch).and_then(|arm| {
                findings.arms.push(arm);
                watch.measured(&findings)
            });
            if let Err(error) = measured {
                findings.stopped = Some(error.to_string());
                return (findings, Err(error));
            }
        }
        (findings, Ok(()))
    }

    fn ask(
        &self,
        model: usize,
        precision: Precision,
        open: &mut Open<'_>,
        watch: &mut dyn Watch,
    ) -> Result<ArmResult> {
        let forward = open(&self.checkpoints[model], precision, self.needs())?;
        let name = format!("{}@{precision}", self.plan.models[model].name);
        let mut engine = Engine::new(name, forward, Options::default());
        let mut tell = |finished: Finished<'_>| {
            watch.task(finished.done);
            Ok(())
        };
        let observations = engine.run(self.questions.tasks(), &mut tell)?;
        let values = self.questions.measure(&self.tokenizer, &observations)?;
        let mean = |answers: &Answers| Metric { value: answers.value(), n: answers.items.len() };
        let texts = values.privleak.forget.len() + values.privleak.holdout.len();
        Ok(ArmResult {
            model,
            precision,
            scheme: precision.scheme(self.stored[model]),
            verbmem_forget: mean(&values.verbmem_forget),
            knowmem_forget: mean(&values.knowmem_forget),
            knowmem_retain: mean(&values.knowmem_retain),
            auc: Metric { value: values.privleak.auc(), n: texts },
            counters: engine.counters(),
        })
    }
}
