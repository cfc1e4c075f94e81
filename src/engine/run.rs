//! Which task runs when.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Instant;

use super::pages::Pages;
use super::sequence::{Packed, Sequence};
use super::{Ask, Observation, Task};
use crate::error::{Error, Result};
use crate::model::{Capacity, Counters, Folded, Forward, PAGE};

/// How an [`Engine`] works; no choice changes an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether prompts that begin alike compute their common pages once.
    pub share_prefixes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { share_prefixes: true }
    }
}

/// A task that has just been answered.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// Index of the task in the slice given to [`Engine::run`].
    pub index: usize,
    /// The answer.
    pub observation: &'a Observation,
    /// Tasks answered so far, with this one.
    pub done: usize,
    /// Tasks in all.
    pub total: usize,
}

/// Runs tasks on one arm.
#[derive(Debug)]
pub struct Engine<F> {
    arm: String,
    forward: F,
    options: Options,
    counters: Counters,
}

/// The observations so far, and whom to tell.
struct Answers<'a> {
    observations: Vec<Option<Observation>>,
    /// For each distinct task, by the index of its first: the indices of its repetitions.
    repeated: HashMap<usize, Vec<usize>>,
    done: usize,
    tell: &'a mut dyn FnMut(Finished<'_>) -> Result<()>,
}

/// A task in the order of admission.
struct Waiting<'a> {
    task: &'a Task,
    index: usize,
    /// Pages that hold the same tokens as those of the task before it in the order.
    shared: usize,
}

impl<F: Forward> Engine<F> {
    /// An engine on `forward`; `arm` is its name in errors.
    pub fn new(arm: impl Into<String>, forward: F, options: Options) -> Self {
        Self { arm: arm.into(), forward, options, counters: Counters::default() }
    }

    /// What the model and the engine did so far. Tokens are counted as computed: a repeated task
    /// counts once. Seconds are those of the calls of [`Forward::forward`].
    pub fn counters(&self) -> Counters {
        let mut counters = self.forward.counters();
        counters.add(&self.counters);
        counters
    }

    /// The model.
    pub fn forward(&self) -> &F {
        &self.forward
    }

    /// Gives the model back.
    pub fn into_forward(self) -> F {
        self.forward
    }

    /// Answers every task; the observations are in the order of the tasks.
    ///
    /// `tell` hears of each task as it is answered, in an order that depends on nothing but the
    /// tasks, the capacity and the options; if it fails, the run ends with its error. Scores come
    /// before generations. Tasks run in the order given, but those that share a prefix follow the
    /// first of them.
    ///
    /// A task is admitted when the cache has room for all tokens it can come to, so no task is
    /// ever stopped half way.
    ///
    /// # Errors
    ///
    /// Before any work: [`Error::Shape`] if a task has no tokens or the model no capacity,
    /// [`Error::CacheTooSmall`] if a task cannot fit. Then: what [`Forward::forward`] and `tell`
    /// return, and [`Error::LogitsNotFinite`].
    pub fn run(
        &mut self,
        tasks: &[Task],
        tell: &mut dyn FnMut(Finished<'_>) -> Result<()>,
    ) -> Result<Vec<Observation>> {
        check(tasks, self.forward.capacity())?;
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
        let mut answers = Answers { observations: vec![None; tasks.len()], repeated, done: 0, tell };

        // Nothing to run: no new token is allowed, or there is no token after the first.
        let (trivial, rest): (Vec<_>, Vec<_>) =
            distinct.into_iter().partition(|&index| tasks[index].cached() == 0);
        for index in trivial {
            answers.take(index, Sequence::new(&tasks[index], index, Vec::new(), 0).finish().0)?;
        }

        let (scores, prompts): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|&index| tasks[index].ask == Ask::Score);
        // Every row of a scored text is asked for, so there is nothing to skip.
        let alone = |index: usize| Waiting { task: &tasks[index], index, shared: 0 };
        self.drive(&scores.into_iter().map(alone).collect::<Vec<_>>(), &mut answers)?;
        let prompts = if self.options.share_prefixes {
            by_prefix(tasks, prompts)
        } else {
            prompts.into_iter().map(alone).collect()
        };
        self.drive(&prompts, &mut answers)?;

        Ok(answers.observations.into_iter().flatten().collect())
    }

    /// Runs the waiting tasks to their ends.
    fn drive(&mut self, waiting: &[Waiting<'_>], answers: &mut Answers<'_>) -> Result<()> {
        let capacity = self.forward.capacity();
        let mut queue = Queue { waiting, next: 0, pages: Pages::new(capacity.pages), kept: Vec::new() };
        let mut active: Vec<Sequence<'_>> = Vec::new();
        loop {
            // In decode every sequence has one wanted row, and all go into one batch.
            while active.len() < capacity.tokens.min(capacity.wanted) {
                let Some(sequence) = queue.admit(&active) else { break };
                active.push(sequence);
            }
            if active.is_empty() {
                return Ok(());
            }
            let packed = Packed::next(&mut active, capacity);
            let folded = self.ask(&packed, &active)?;
            for (&(owner, _), folded) in packed.owners.iter().zip(&folded) {
                active[owner].answer(folded);
            }
            let (finished, rest) = active.into_iter().partition(Sequence::is_finished);
            active = rest;
            for sequence in finished {
                let index = sequence.index;
                let (observation, pages) = sequence.finish();
                queue.pages.release(&pages);
                answers.take(index, observation)?;
            }
        }
    }

    /// Runs one batch, counts it and checks what came back.
    fn ask(&mut self, packed: &Packed, active: &[Sequence<'_>]) -> Result<Vec<Folded>> {
        let start = Instant::now();
        let folded = self.forward.forward(&packed.batch)?;
        let seconds = start.elapsed().as_secs_f64();
        let rows = packed.owners.len();
        if folded.len() != rows {
            return Err(Error::Shape {
                kernel: "forward",
                what: "number of answers",
                got: folded.len(),
                expected: format!("the {rows} that were asked for"),
            });
        }
        // One call holds either scores or generations.
        if active.first().is_some_and(Sequence::is_score) {
            self.counters.seconds.score += seconds;
            self.counters.tokens_scored += rows as u64;
        } else {
            self.counters.seconds.generate += seconds;
            self.counters.tokens_generated += rows as u64;
        }
        for (&(owner, position), folded) in packed.owners.iter().zip(&folded) {
            let values = [folded.log_sum_exp, folded.max_logit, folded.given_logit];
            if !values.iter().all(|value| value.is_finite()) {
                return Err(Error::LogitsNotFinite {
                    model: self.arm.clone(),
                    task: active[owner].index,
                    position,
                });
            }
        }
        Ok(folded)
    }
}

impl Answers<'_> {
    /// Keeps an observation for the task and its repetitions.
    fn take(&mut self, first: usize, observation: Observation) -> Result<()> {
        let total = self.observations.len();
        let repetitions = self.repeated.remove(&first).unwrap_or_default();
        for &index in std::iter::once(&first).chain(&repetitions) {
            self.done += 1;
            (self.tell)(Finished { index, observation: &observation, done: self.done, total })?;
        }
        for index in repetitions {
            self.observations[index] = Some(observation.clone());
        }
        self.observations[first] = Some(observation);
        Ok(())
    }
}

/// The tasks still to be admitted, and the cache they will live in.
struct Queue<'a, 'b> {
    waiting: &'b [Waiting<'a>],
    next: usize,
    pages: Pages,
    /// Pages of the task admitted last that the next one shares, held until it comes.
    kept: Vec<u32>,
}

impl<'a> Queue<'a, '_> {
    /// Admits the next task if the pages it shares are computed and there is room for the others.
    ///
    /// If nothing is active this succeeds: the only pages held are the ones that the task shares,
    /// and `check` has seen that it fits alone.
    fn admit(&mut self, active: &[Sequence<'_>]) -> Option<Sequence<'a>> {
        let &Waiting { task, index, shared } = self.waiting.get(self.next)?;
        if shared > 0 {
            // A batch may read only what an earlier one wrote.
            let before = self.waiting[self.next - 1].index;
            let computed = |sequence: &Sequence<'_>| sequence.cached() >= shared * PAGE;
            if !active.iter().find(|sequence| sequence.index == before).is_none_or(computed) {
                return None;
            }
        }
        let own = self.pages.take(task.cached().div_ceil(PAGE) - shared)?;
        let mut pages = std::mem::take(&mut self.kept);
        pages.extend(own);
        self.next += 1;
        if let Some(after) = self.waiting.get(self.next) {
            self.kept = pages[..after.shared].to_vec();
            self.pages.hold(&self.kept);
        }
        Some(Sequence::new(task, index, pages, shared * PAGE))
    }
}

/// Refuses what can never run.
fn check(tasks: &[Task], capacity: Capacity) -> Result<()> {
    if !tasks.is_empty() && (capacity.tokens == 0 || capacity.wanted == 0) {
        let got = capacity.tokens.min(capacity.wanted);
        let expected = "at least one token and one wanted row".to_owned();
        return Err(Error::Shape { kernel: "forward", what: "capacity", got, expected });
    }
    for (index, task) in tasks.iter().enumerate() {
        if task.tokens.is_empty() {
            let expected = format!("at least 1 in task {index}");
            return Err(Error::Shape { kernel: "engine", what: "number of tokens", got: 0, expected });
        }
        let (needed, limit) = (task.cached(), capacity.pages.saturating_mul(PAGE));
        if needed > limit {
            return Err(Error::CacheTooSmall { task: index, needed, limit });
        }
    }
    Ok(())
}

/// Brings prompts with common pages next to each other, the groups in the order of their first task.
///
/// Sorted by their tokens, the prompts that begin alike are neighbours: what each has in common
/// with the one before it is all that sharing needs to know.
fn by_prefix<'a>(tasks: &'a [Task], mut indices: Vec<usize>) -> Vec<Waiting<'a>> {
    indices.sort_by(|&a, &b| match tasks[a].tokens.cmp(&tasks[b].tokens) {
        Ordering::Equal => a.cmp(&b),
        unequal => unequal,
    });
    let mut groups: Vec<Vec<Waiting<'a>>> = Vec::new();
    for index in indices {
        let task = &tasks[index];
        let last = groups.last_mut().and_then(|group| Some((group.last()?.task, group)));
        match last.map(|(before, group)| (common_pages(before, task), group)) {
            Some((shared, group)) if shared > 0 => group.push(Waiting { task, index, shared }),
            _ => groups.push(vec![Waiting { task, index, shared: 0 }]),
        }
    }
    groups.sort_by_key(|group| group.iter().map(|waiting| waiting.index).min());
    groups.into_iter().flatten().collect()
}

/// Whole pages at the start of both prompts; the last token of `task` must be run, so it is left out.
fn common_pages(before: &Task, task: &Task) -> usize {
    let common = before.tokens.iter().zip(&task.tokens).take_while(|(a, b)| a == b).count();
    common.min(task.tokens.len() - 1) / PAGE
}
