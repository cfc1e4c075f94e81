//! Opening everything, then asking all arms.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::answered::GroupAnswers;
use super::ask::{Group, Known};
use super::divergence::pairs;
use super::findings::Findings;
use super::plan::{Model, Plan};
use super::share::Portion;
use super::store::Store;
use crate::checkpoint::{Checkpoint, Tokenizer};
use crate::engine::{Engine, Needs, Options, Task};
use crate::error::{Error, Result};
use crate::model::{Counters, Lockstep, Source, check_tensors, stored_scheme};
use crate::quant::{Precision, Scheme};
use crate::suite::Muse;
use crate::suite::muse::{self, Prepared};

/// An arm about to be asked.
#[derive(Clone, Copy, Debug)]
pub struct ArmInfo<'a> {
    /// The checkpoint.
    pub model: &'a Model,
    /// The precision.
    pub precision: Precision,
}

/// Who is told how a run goes.
pub trait Watch {
    /// These arms are about to be asked `tasks` tasks each, together; the first is number `first` (from 0) of the `total` that
    /// are asked these.
    fn arms(&mut self, arms: &[ArmInfo<'_>], first: usize, total: usize, tasks: usize);

    /// The arms have given `done` answers.
    fn answered(&mut self, done: usize);

    /// The device ran out of memory; what was not measured starts again in smaller batches.
    fn smaller(&mut self, error: &Error);

    /// The arms were measured. The findings hold them and all before them.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn measured(&mut self, findings: &Findings) -> Result<()>;
}

/// Puts arms, numbered as in [`Audit::sources`], on a device.
pub trait OpenArms {
    /// Parts the arms into groups that run one after the other, each in lockstep. With `halvings` batches are halved
    /// so many times: the device had less memory than was thought.
    ///
    /// # Errors
    ///
    /// If an arm cannot be laid out.
    fn part(&mut self, arms: Range<usize>, halvings: u32) -> Result<Vec<Range<usize>>>;

    /// Opens a group of the last parting.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read, or the device fails.
    fn open(&mut self, arms: Range<usize>) -> Result<Box<dyn Lockstep>>;

    /// Whether the arms of a group of the last parting may be held against each other: they give their logits, and there is
    /// memory for it.
    fn compares(&self) -> bool {
        false
    }

    /// Another parting after `error`, in which arms stand by themselves, so that one that cannot be opened does not take the
    /// others with it; `None` if that is not to be had, or was.
    fn separate(&mut self, _arms: Range<usize>, _error: &Error) -> Option<Vec<Range<usize>>> {
        None
    }
}

/// Everything that is read before the first arm: checkpoints without their weights, tokenizers, questions.
#[derive(Debug)]
pub struct Audit {
    plan: Plan,
    /// As [`Plan::models`].
    checkpoints: Vec<Arc<Checkpoint>>,
    /// Of each checkpoint's linear layers, as stored.
    stored: Vec<Scheme>,
    /// As [`Plan::released`], each with what its linear layers are read as.
    released: Vec<(Arc<Checkpoint>, Scheme)>,
    tokenizer: Tokenizer,
    questions: Prepared,
    /// The truths of [`MEANS`] in pieces, of the forget sets; none if no sample is shown.
    tokens: [Vec<Vec<String>>; 3],
    stop: Option<Arc<AtomicBool>>,
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
        let checkpoints: Vec<_> = plan
            .models
            .iter()
            .map(|model| Checkpoint::open(&model.path).map(Arc::new))
            .collect::<Result<_>>()?;
        checkpoints.iter().try_for_each(|checkpoint| check_tensors(checkpoint))?;
        let stored: Vec<_> = checkpoints.iter().map(|c| stored_scheme(c)).collect::<Result<_>>()?;

        let released = plan.released.iter().map(|file| {
            let checkpoint = file.open(&checkpoints[file.model])?;
            check_tensors(&checkpoint)?;
            let stored = stored_scheme(&checkpoint)?;
            Ok((checkpoint, stored))
        });
        let released: Vec<_> = released.collect::<Result<_>>()?;

        let all = checkpoints.iter().chain(released.iter().map(|(checkpoint, _)| checkpoint));
        let context = all.map(|checkpoint| checkpoint.config().context).min().unwrap_or(0);
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
        let mut tokens = [const { Vec::new() }; 3];
        // Shown of what was to be forgotten alone.
        let shown = [muse::Metric::VerbmemForget, muse::Metric::KnowmemForget];
        for (pieces, metric) in tokens.iter_mut().zip(shown).filter(|_| !plan.no_samples) {
            *pieces = questions.truth_tokens(&tokenizer, metric)?;
        }
        let audit = Self { plan, checkpoints, stored, released, tokenizer, questions, tokens, stop: None };
        audit.sources().iter().try_for_each(Source::check)?;
        Ok(audit)
    }

    /// Ends a run with [`Error::Interrupted`] soon after `stop` has become true.
    #[must_use]
    pub fn stopped_by(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = Some(stop);
        self
    }

    /// What the questions ask of a device; with `compared`, arms are also held against each other.
    #[must_use]
    pub fn needs(&self, compared: bool) -> Needs {
        let pairs = if compared { pairs(&self.plan, &self.plan.arms().collect::<Vec<_>>()).len() } else { 0 };
        Needs::of(self.questions.tasks()).with_pairs(pairs)
    }

    /// Every arm, by model, then by precision.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        let target = &self.checkpoints[Plan::TARGET];
        let source = |(model, precision)| match self.plan.released_as(model, precision) {
            Some(file) => Source::new(&self.released[file].0, Precision::Full),
            None => Source::new(&self.checkpoints[model], precision).with_target(target),
        };
        self.plan.arms().map(source).collect()
    }

    /// The arms' names, as [`Self::sources`]: model@precision.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.plan
            .arms()
            .map(|(model, precision)| format!("{}@{precision}", self.plan.models[model].name))
            .collect()
    }

    /// Model, precision and scheme of the arm of this number.
    pub(super) fn arm(&self, place: usize) -> (usize, Precision, Scheme) {
        let Some((model, precision)) = self.plan.arms().nth(place) else {
            unreachable!("arm {place} of the plan")
        };
        (model, precision, self.scheme(model, precision))
    }

    /// What a model's matrices are in at a precision.
    pub(super) fn scheme(&self, model: usize, precision: Precision) -> Scheme {
        match self.plan.released_as(model, precision) {
            Some(file) => self.released[file].1,
            None => precision.scheme(self.stored[model]),
        }
    }

    /// As [`Plan::models`].
    pub(super) fn checkpoints(&self) -> &[Arc<Checkpoint>] {
        &self.checkpoints
    }

    /// As [`Plan::released`].
    pub(super) fn released(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        self.released.iter().map(|(checkpoint, _)| checkpoint)
    }

    /// What every arm is asked.
    pub(super) fn tasks(&self) -> &[Task] {
        self.questions.tasks()
    }

    /// What every arm is asked, and how it is scored.
    pub(super) fn questions(&self) -> &Prepared {
        &self.questions
    }

    /// The name of a task's metric.
    pub(super) fn metric(&self, task: usize) -> &'static str {
        self.questions.metric(task).map_or("", muse::Metric::name)
    }

    /// What the answers are decoded with.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the plan says.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Findings without any arm.
    #[must_use]
    pub fn nothing_yet(&self) -> Findings {
        let disk_bytes = self
            .checkpoints
            .iter()
            .chain(self.released())
            .map(|checkpoint| checkpoint.tensors().header_bytes())
            .sum();
        Findings {
            plan: self.plan.clone(),
            arms: Vec::new(),
            truncated: muse::Metric::ALL.into_iter().map(|metric| self.questions.truncated(metric)).sum(),
            questions: MEANS.map(|metric| {
                let both = self.questions.questions(metric);
                both.map(|(prompt, truth)| (prompt.to_owned(), truth.to_owned())).collect()
            }),
            tokens: self.tokens.clone(),
            apart: Vec::new(),
            stopped: None,
            survival: Vec::new(),
            codes_disk_bytes: 0,
            counters: Counters { disk_bytes, ..Counters::default() },
        }
    }

    /// Asks every arm and scores its answers.
    ///
    /// What was measured is returned whether or not an arm failed. A device that runs out of memory gets a second
    /// chance with smaller batches. What `store` has is not asked, and what is answered goes there at once.
    pub fn run(
        &self,
        open: &mut dyn OpenArms,
        options: Options,
        watch: &mut dyn Watch,
        store: Option<&mut Store>,
    ) -> (Findings, Result<()>) {
        let mut findings = self.nothing_yet();
        let part = Portion { arms: 0..self.plan.arms().count(), tasks: self.all_tasks(), compared: true };
        let result = self.run_into(&mut findings, &part, true, open, options, watch, store);
        if let Err(error) = &result {
            findings.stopped = Some(error.to_string());
        }
        (findings, result)
    }

    /// Asks a part of the audit and stores what is answered; of `findings`, only the counters grow. Otherwise as [`Self::run`].
    ///
    /// # Errors
    ///
    /// The first failure, of an arm too.
    pub fn run_portion(
        &self,
        part: &Portion,
        findings: &mut Findings,
        open: &mut dyn OpenArms,
        options: Options,
        watch: &mut dyn Watch,
        store: Option<&mut Store>,
    ) -> Result<()> {
        let result = self.run_into(findings, part, false, open, options, watch, store);
        if let Err(error) = &result {
            findings.stopped = Some(error.to_string());
        }
        result
    }

    fn all_tasks(&self) -> Vec<usize> {
        (0..self.questions.tasks().len()).collect()
    }

    /// With `measured`, the part is the whole audit, and what arms answered is scored.
    #[expect(clippy::too_many_arguments, reason = "each is another part of a run")]
    fn run_into(
        &self,
        findings: &mut Findings,
        part: &Portion,
        measured: bool,
        open: &mut dyn OpenArms,
        options: Options,
        watch: &mut dyn Watch,
        mut store: Option<&mut Store>,
    ) -> Result<()> {
        let mut halvings = 0;
        let mut groups: VecDeque<_> = open.part(part.arms.clone(), halvings)?.into();
        while let Some(group) = groups.pop_front() {
            let left = group.start..part.arms.end;
            let asked = self.ask(part, group, open, options, watch, store.as_deref_mut(), findings);
            store.as_deref_mut().map_or(Ok(()), Store::sync)?;
            match asked {
                // Neither is the arms' fault.
                Err(error @ (Error::Interrupted { .. } | Error::Write { .. })) => return Err(error),
                Err(error @ Error::OutOfMemory { .. }) if halvings == 0 => {
                    halvings = 1;
                    watch.smaller(&error);
                    groups = open.part(left, halvings)?.into();
                }
                Err(error) => match open.separate(left, &error) {
                    Some(parted) => groups = parted.into(),
                    None => return Err(error),
                },
                Ok(answered) => {
                    let failed = if measured { self.take(answered, findings) } else { answered.failure() };
                    watch.measured(findings)?;
                    failed.map_or(Ok(()), Err)?;
                }
            }
        }
        Ok(())
    }

    /// Asks a group of a part's arms.
    #[expect(clippy::too_many_arguments, reason = "each is another part of a run")]
    fn ask(
        &self,
        part: &Portion,
        range: Range<usize>,
        open: &mut dyn OpenArms,
        options: Options,
        watch: &mut dyn Watch,
        store: Option<&mut Store>,
        findings: &mut Findings,
    ) -> Result<GroupAnswers> {
        let arms: Vec<_> = self.plan.arms().skip(range.start).take(range.len()).collect();
        let info =
            |&(model, precision): &(usize, Precision)| ArmInfo { model: &self.plan.models[model], precision };
        let tasks = &part.tasks[..];
        let info: Vec<_> = arms.iter().map(info).collect();
        watch.arms(&info, range.start - part.arms.start, part.arms.len(), tasks.len());
        let names = self.names()[range.clone()].to_vec();
        let pairs = if open.compares() { pairs(&self.plan, &arms) } else { Vec::new() };
        // The truths come last; only there are arms held against each other.
        let compared = self.questions.truths(muse::Metric::VerbmemForget).start;
        let group = Group { first: range.start, arms: arms.len(), tasks, pairs: &pairs, compared };
        let mut known = Known::stored(group, self.questions.tasks().len(), store.as_deref());
        let left = known.left(group);
        let done = arms.len() * (tasks.len() - left.len());
        if done > 0 {
            watch.answered(done);
        }
        if !left.is_empty() {
            if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(Error::Interrupted { resume: None });
            }
            let mut engine = Engine::new(names, open.open(range)?, options).stopped_by(self.stop.clone());
            let asked = known.ask(self, group, &left, &mut engine, store, watch);
            findings.counters.add(&engine.counters());
            asked?;
        }
        Ok(GroupAnswers { arms, pairs, known })
    }
}

/// The metrics that have answers.
const MEANS: [muse::Metric; 3] =
    [muse::Metric::VerbmemForget, muse::Metric::KnowmemForget, muse::Metric::KnowmemRetain];
