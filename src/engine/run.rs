//! Asking all arms, and what they answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::passes::{Generating, Scoring, batch_rows};
use super::queue::{Queue, Waiting, by_prefix};
use super::sequence::Sequence;
use super::{Answered, Observation, Task};
use crate::error::{Error, Result};
use crate::metrics::divergence::Divergence;
use crate::model::{Compared, Comparing, Counters, Detail, Folded, Lockstep, PAGE, Pass, Room, Work};

/// How an [`Engine`] works; no choice changes an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether prompts that begin alike compute their common pages once.
    pub share_prefixes: bool,
    /// Whether tasks run one at a time: what a plain script does, to compare with.
    pub one_at_a_time: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { share_prefixes: true, one_at_a_time: false }
    }
}

/// A task that an arm has just answered.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// Number of the arm.
    pub arm: usize,
    /// Index of the task in the slice given to [`Engine::run`].
    pub index: usize,
    /// The answer.
    pub observation: &'a Observation,
    /// By pair, then by task: what sets the arms of pairs apart, so far. That of this task is whole.
    pub pairs: &'a [Vec<Vec<Divergence>>],
    /// Answers of all arms so far, with this one.
    pub done: usize,
    /// Answers in all.
    pub total: usize,
}

/// Runs tasks on arms in lockstep.
#[derive(Debug)]
pub struct Engine<L> {
    arms: Vec<String>,
    model: L,
    options: Options,
    counters: Counters,
    stop: Option<Arc<AtomicBool>>,
}

/// What the arms answered so far, and whom to tell.
struct Answers<'a> {
    /// By arm, then by task; an arm that failed keeps its error.
    arms: Vec<Result<Vec<Option<Observation>>>>,
    /// By pair, then by task.
    pairs: Vec<Vec<Vec<Divergence>>>,
    /// For each distinct task, by the index of its first: the indices of its repetitions.
    repeated: HashMap<usize, Vec<usize>>,
    done: usize,
    total: usize,
    tell: &'a mut dyn FnMut(Finished<'_>) -> Result<()>,
}

impl<L: Lockstep> Engine<L> {
    /// An engine on the arms of `model`, whose names in errors are `arms`.
    ///
    /// # Panics
    ///
    /// If there are not as many names as arms.
    pub fn new(arms: Vec<String>, model: L, options: Options) -> Self {
        assert_eq!(arms.len(), model.arms(), "names and arms");
        Self { arms, model, options, counters: Counters::default(), stop: None }
    }

    /// Ends a run with [`Error::Interrupted`] before its next pass once `stop` is true.
    #[must_use]
    pub fn stopped_by(mut self, stop: Option<Arc<AtomicBool>>) -> Self {
        self.stop = stop;
        self
    }

    /// What the model and the engine did so far. Tokens are added up over the arms as computed: a repeated task
    /// counts once. Seconds are those of the calls of [`Lockstep::run`], without what the model calls loading.
    pub fn counters(&self) -> Counters {
        let mut counters = self.model.counters();
        counters.add(&self.counters);
        counters
    }

    /// The model.
    pub fn model(&self) -> &L {
        &self.model
    }

    /// Gives the model back.
    pub fn into_model(self) -> L {
        self.model
    }

    /// Answers every task on every arm; an arm's observations are in the order of the tasks.
    ///
    /// `tell` hears of each task as an arm answers it, in an order that depends on nothing but the tasks, the
    /// model's room and the options; if it fails, the run ends with its error. Scores come before generations.
    /// Tasks run in the order given, but those that share a prefix follow the first of them.
    ///
    /// A task is admitted when the cache has room for all tokens it can come to, so no task is ever stopped half
    /// way. An arm that fails ([`Error::LogitsNotFinite`]) is left out from there on and does not end the others.
    ///
    /// # Errors
    ///
    /// Before any work: [`Error::Shape`] if a task has no tokens or the model no capacity, [`Error::CacheTooSmall`]
    /// if a task cannot fit. Then: what [`Lockstep::run`] and `tell` return.
    pub fn run(
        &mut self,
        tasks: &[Task],
        tell: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Vec<Result<Vec<Observation>>>> {
        Ok(self.compare(tasks, Comparing::default(), tell)?.arms)
    }

    /// [`Self::run`], and the arms of each pair held against each other wherever tokens are scored; every arm's scores come
    /// with their [`Detail`]s if these are wanted.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn compare(
        &mut self,
        tasks: &[Task],
        what: Comparing<'_>,
        tell: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Answered> {
        self.check(tasks)?;
        let mut distinct = Vec::new();
        let mut firsts = HashMap::new();
        let mut repeated: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, task) in tasks.iter().enumerate() {
            let first = *firsts.entry(task).or_insert(index);
            if first == index {
                distinct.push(index);
            } else {
                repeated.entry(first).or_default().push(index);
            }
        }
        let arms = self.arms.len();
        let mut answers = Answers {
            arms: (0..arms).map(|_| Ok(vec![None; tasks.len()])).collect(),
            pairs: vec![vec![Vec::new(); tasks.len()]; what.pairs.len()],
            repeated,
            done: 0,
            total: arms * tasks.len(),
            tell,
        };

        // Nothing to run: no new token is allowed, or there is no token after the first.
        let (trivial, rest): (Vec<_>, Vec<_>) =
            distinct.into_iter().partition(|&index| tasks[index].cached() == 0);
        for index in trivial {
            for arm in 0..arms {
                answers.take(arm, index, Sequence::new(&tasks[index], index, Vec::new(), 0).finish())?;
            }
        }

        let (scores, prompts): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|&index| tasks[index].ask.work() == Work::Score);
        let waiting = |indices: Vec<usize>| {
            if self.options.share_prefixes && !self.options.one_at_a_time {
                by_prefix(tasks, indices)
            } else {
                indices.into_iter().map(|index| Waiting::alone(tasks, index)).collect()
            }
        };
        let (scores, prompts) = (waiting(scores), waiting(prompts));
        self.score(tasks, &scores, what, &mut answers)?;
        self.generate(&prompts, &mut answers)?;

        let observations = |arm: Result<Vec<Option<Observation>>>| Ok(arm?.into_iter().flatten().collect());
        Ok(Answered { arms: answers.arms.into_iter().map(observations).collect(), pairs: answers.pairs })
    }

    /// Scores the waiting texts, pass by pass.
    fn score(
        &mut self,
        tasks: &[Task],
        waiting: &[Waiting<'_>],
        what: Comparing<'_>,
        answers: &mut Answers<'_>,
    ) -> Result<()> {
        let room = self.model.room(Work::Score);
        let batch = waiting.len().min(if self.options.one_at_a_time { 1 } else { usize::MAX });
        for waiting in waiting.chunks(batch.max(1)) {
            let mut queue = Queue::new(waiting, room.capacity.pages);
            while queue.peek().is_some() && answers.any_left() {
                let pass = Scoring::next(&mut queue, room);
                let rows = pass.owners.len();
                let expected = vec![rows; self.arms.len()];
                let Compared { folded, details, pairs: apart } = if what.pairs.is_empty() && !what.detailed {
                    let folded =
                        self.ask(Work::Score, &expected, |model| model.run(Pass::Score(&pass.batches)))?;
                    Compared { folded, ..Compared::default() }
                } else {
                    let mut rest = Compared::default();
                    let folded = self.ask(Work::Score, &expected, |model| {
                        rest = model.compare(&pass.batches, what)?;
                        Ok(std::mem::take(&mut rest.folded))
                    })?;
                    Compared { folded, ..rest }
                };
                answers.take_apart(&pass.owners, &apart);
                self.counters.tokens_scored += (rows * answers.left()) as u64;
                for (arm, folded) in folded.iter().enumerate() {
                    if answers.arms[arm].is_err() {
                        continue;
                    }
                    let bad = folded.iter().position(|folded| !is_finite(folded));
                    if let Some((task, position)) = bad.and_then(|row| pass.owners.get(row)) {
                        answers.arms[arm] = Err(self.not_finite(arm, *task, *position));
                        continue;
                    }
                    let mut texts: HashMap<usize, Vec<(&Folded, Option<Detail>)>> = HashMap::new();
                    for (row, ((task, _), folded)) in pass.owners.iter().zip(folded).enumerate() {
                        let detail = details.get(arm).and_then(|details| details.get(row)).copied();
                        texts.entry(*task).or_default().push((folded, detail));
                    }
                    for index in &pass.finished {
                        let mut sequence = Sequence::new(&tasks[*index], *index, Vec::new(), 0);
                        let rows = texts.remove(index).unwrap_or_default();
                        for (folded, detail) in rows {
                            sequence.answer(folded);
                            detail.into_iter().for_each(|detail| sequence.detail(detail));
                        }
                        answers.take(arm, *index, sequence.finish())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Continues the waiting prompts on every arm to their ends.
    fn generate(&mut self, waiting: &[Waiting<'_>], answers: &mut Answers<'_>) -> Result<()> {
        let mut room = self.model.room(Work::Generate);
        let mut slots = usize::MAX;
        if self.options.one_at_a_time {
            (room.batches, slots) = (1, 1);
        }
        let mut arms: Vec<_> = self.arms.iter().map(|_| Generating::new(waiting, room, slots)).collect();
        loop {
            let batches = arms.iter_mut().zip(&answers.arms);
            let batches: Vec<_> =
                batches.map(|(arm, answers)| if answers.is_ok() { arm.next() } else { vec![] }).collect();
            if batches.iter().all(Vec::is_empty) {
                return Ok(());
            }
            let rows: Vec<_> =
                batches.iter().map(|batches| batches.iter().map(|batch| batch.wanted.len()).sum()).collect();
            let folded = self.ask(Work::Generate, &rows, |model| model.run(Pass::Generate(&batches)))?;
            self.counters.tokens_generated += rows.iter().sum::<usize>() as u64;
            for (number, (arm, folded)) in arms.iter_mut().zip(&folded).enumerate() {
                if rows[number] == 0 {
                    continue;
                }
                for (&(owner, position), folded) in std::mem::take(&mut arm.owners).iter().zip(folded) {
                    if !is_finite(folded) {
                        let task = arm.sequence(owner).index;
                        answers.arms[number] = Err(self.not_finite(number, task, position));
                        break;
                    }
                    arm.sequence(owner).answer(folded);
                }
                if answers.arms[number].is_ok() {
                    for sequence in arm.finished() {
                        answers.take(number, sequence.index, sequence.finish())?;
                    }
                }
            }
        }
    }

    /// Runs one pass, times it and checks that each arm answered the `rows` that were asked of it.
    fn ask(
        &mut self,
        work: Work,
        rows: &[usize],
        run: impl FnOnce(&mut L) -> Result<Vec<Vec<Folded>>>,
    ) -> Result<Vec<Vec<Folded>>> {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Error::Interrupted { resume: None });
        }
        let load_before = self.model.counters().seconds.load;
        let start = Instant::now();
        let folded = run(&mut self.model)?;
        let loading = self.model.counters().seconds.load - load_before;
        let seconds = (start.elapsed().as_secs_f64() - loading).max(0.0);
        match work {
            Work::Score => self.counters.seconds.score += seconds,
            Work::Generate => self.counters.seconds.generate += seconds,
        }
        let found: Vec<_> = folded.iter().map(Vec::len).collect();
        if found != rows {
            return Err(Error::Shape {
                kernel: "forward",
                what: "number of answers",
                got: found.iter().sum(),
                expected: format!("the {rows:?} that were asked for, not {found:?}"),
            });
        }
        Ok(folded)
    }

    fn not_finite(&self, arm: usize, task: usize, position: usize) -> Error {
        Error::LogitsNotFinite { model: self.arms[arm].clone(), task, position }
    }

    /// Refuses what can never run.
    fn check(&self, tasks: &[Task]) -> Result<()> {
        for (index, task) in tasks.iter().enumerate() {
            let work = task.ask.work();
            let Room { capacity, batches, .. } = self.model.room(work);
            if batch_rows(capacity) == 0 || batches == 0 {
                let expected = "at least one token and one wanted row".to_owned();
                return Err(Error::Shape { kernel: "forward", what: "capacity", got: 0, expected });
            }
            if task.tokens.is_empty() {
                let expected = format!("at least 1 in task {index}");
                return Err(Error::Shape { kernel: "engine", what: "number of tokens", got: 0, expected });
            }
            let mut limit = capacity.pages.saturating_mul(PAGE);
            if work == Work::Score {
                // A scored text is whole in its pass.
                limit = limit.min(batches.saturating_mul(batch_rows(capacity)));
            }
            let needed = task.cached();
            if needed > limit {
                return Err(Error::CacheTooSmall { task: index, needed, limit });
            }
        }
        Ok(())
    }
}

fn is_finite(folded: &Folded) -> bool {
    [folded.log_sum_exp, folded.max_logit, folded.given_logit].iter().all(|value| value.is_finite())
}

impl Answers<'_> {
    /// Arms that have not failed.
    fn left(&self) -> usize {
        self.arms.iter().filter(|arm| arm.is_ok()).count()
    }

    fn any_left(&self) -> bool {
        self.left() > 0
    }

    /// Keeps what sets each pair's arms apart in the rows of a pass.
    fn take_apart(&mut self, owners: &[(usize, usize)], apart: &[Vec<Divergence>]) {
        for (pair, rows) in self.pairs.iter_mut().zip(apart) {
            for ((first, _), row) in owners.iter().zip(rows) {
                pair[*first].push(*row);
                for index in self.repeated.get(first).map_or(&[][..], Vec::as_slice) {
                    pair[*index].push(*row);
                }
            }
        }
    }

    /// Keeps an arm's observation for the task and its repetitions.
    fn take(&mut self, arm: usize, first: usize, observation: Observation) -> Result<()> {
        let total = self.total;
        let repetitions = self.repeated.get(&first).map_or(&[][..], Vec::as_slice);
        for &index in std::iter::once(&first).chain(repetitions) {
            self.done += 1;
            let (done, pairs) = (self.done, &self.pairs[..]);
            (self.tell)(Finished { arm, index, observation: &observation, pairs, done, total })?;
        }
        if let Ok(observations) = &mut self.arms[arm] {
            for &index in repetitions {
                observations[index] = Some(observation.clone());
            }
            observations[first] = Some(observation);
        }
        Ok(())
    }
}
