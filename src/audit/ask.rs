//! Asking a group of arms what is not known of them yet.

use super::run::{Audit, Watch};
use super::store::{Store, Sums};
use crate::engine::{Answered, Engine, Finished, Observation, Task};
use crate::error::{Error, Result};
use crate::model::{Comparing, Lockstep, Pair};

/// Arms that run together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    /// Number of the first arm in the audit.
    pub(super) first: usize,
    /// How many there are.
    pub(super) arms: usize,
    /// What they are asked, by number in the audit.
    pub(super) tasks: &'a [usize],
    /// Those that are held against each other, by place in the group.
    pub(super) pairs: &'a [Pair],
    /// From which task on they are.
    pub(super) compared: usize,
}

impl Group<'_> {
    /// The pair by the arms' numbers in the audit.
    fn in_audit(&self, pair: Pair) -> Pair {
        Pair { reference: self.first + pair.reference, arm: self.first + pair.arm }
    }

    fn is_compared(&self, task: usize) -> bool {
        !self.pairs.is_empty() && task >= self.compared
    }
}

/// By arm, then by task.
type Answers = Vec<Result<Vec<Observation>>>;

/// By pair, then by task.
type AllSums = Vec<Vec<Option<Sums>>>;

/// What is known of a group.
#[derive(Debug)]
pub(super) struct Known {
    /// By arm, then by task; an arm that failed has its error.
    answers: Vec<Result<Vec<Option<Observation>>>>,
    /// By pair, then by task.
    sums: AllSums,
}

impl Known {
    /// What the store has of the audit's `tasks` tasks.
    pub(super) fn stored(group: Group<'_>, tasks: usize, store: Option<&Store>) -> Self {
        let answer =
            |arm: usize, task| store.and_then(|store| store.answer(group.first + arm, task).cloned());
        let sums = |pair: Pair, task| store.and_then(|store| store.apart(group.in_audit(pair), task));
        Self {
            answers: (0..group.arms)
                .map(|arm| Ok((0..tasks).map(|task| answer(arm, task)).collect()))
                .collect(),
            sums: group.pairs.iter().map(|&pair| (0..tasks).map(|task| sums(pair, task)).collect()).collect(),
        }
    }

    /// The tasks that must be asked: lockstep asks all arms or none.
    pub(super) fn left(&self, group: Group<'_>) -> Vec<usize> {
        let lacks = |&task: &usize| {
            let answer = |arm: &Result<Vec<Option<Observation>>>| {
                arm.as_ref().is_ok_and(|tasks| tasks[task].is_some())
            };
            let apart = |pair: &Vec<Option<Sums>>| pair[task].is_some();
            !self.answers.iter().all(answer) || group.is_compared(task) && !self.sums.iter().all(apart)
        };
        group.tasks.iter().copied().filter(lacks).collect()
    }

    /// Asks the tasks of the audit that are `left`, and keeps the answers as they come.
    ///
    /// # Errors
    ///
    /// What [`Engine::compare`] and the store return.
    pub(super) fn ask<L: Lockstep>(
        &mut self,
        audit: &Audit,
        group: Group<'_>,
        left: &[usize],
        engine: &mut Engine<L>,
        mut store: Option<&mut Store>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let mut done = group.arms * (group.tasks.len() - left.len());
        let (compared, rest): (Vec<usize>, Vec<usize>) =
            left.iter().partition(|&&task| group.is_compared(task));
        for (indices, pairs) in [(compared, group.pairs), (rest, &[])] {
            if indices.is_empty() {
                continue;
            }
            let tasks: Vec<Task> = indices.iter().map(|&task| audit.tasks()[task].clone()).collect();
            let what = Comparing { pairs, detailed: false };
            let answered = engine.compare(&tasks, what, &mut |finished| {
                if let Some(store) = store.as_deref_mut() {
                    keep(audit, group, pairs, indices[finished.index], finished, store)?;
                }
                watch.answered(done + finished.done);
                Ok(())
            });
            self.take(&indices, answered.map_err(|error| named(error, &indices))?);
            done += group.arms * indices.len();
        }
        Ok(())
    }

    fn take(&mut self, indices: &[usize], answered: Answered) {
        for (known, observations) in self.answers.iter_mut().zip(answered.arms) {
            match observations {
                Err(error) => *known = Err(named(error, indices)),
                Ok(observations) => {
                    let Ok(known) = known else { continue };
                    for (&task, observation) in indices.iter().zip(observations) {
                        known[task] = Some(observation);
                    }
                }
            }
        }
        for (known, pair) in self.sums.iter_mut().zip(answered.pairs) {
            for (&task, tokens) in indices.iter().zip(&pair) {
                known[task] = Some(Sums::of(tokens));
            }
        }
    }

    /// By arm, then by task; and by pair, then by task.
    pub(super) fn into_parts(self) -> (Answers, AllSums) {
        let whole = |arm: Result<Vec<Option<Observation>>>| Ok(arm?.into_iter().flatten().collect());
        (self.answers.into_iter().map(whole).collect(), self.sums)
    }
}

/// Stores an answer, and what sets its arm apart from others that answered before.
fn keep(
    audit: &Audit,
    group: Group<'_>,
    pairs: &[Pair],
    task: usize,
    finished: Finished<'_>,
    store: &mut Store,
) -> Result<()> {
    let metric = audit.metric(task);
    let text = match finished.observation {
        Observation::Generated { tokens, .. } => audit.tokenizer().decode_cleaned(tokens).ok(),
        Observation::Scored { .. } => None,
    };
    store.keep(group.first + finished.arm, task, metric, finished.observation, text)?;
    for (pair, tasks) in pairs.iter().zip(finished.pairs).filter(|(pair, _)| pair.arm == finished.arm) {
        store.keep_apart(group.in_audit(*pair), task, metric, Sums::of(&tasks[finished.index]))?;
    }
    Ok(())
}

/// The error with the audit's number of the task.
fn named(mut error: Error, indices: &[usize]) -> Error {
    if let Error::LogitsNotFinite { task, .. } | Error::CacheTooSmall { task, .. } = &mut error {
        *task = indices.get(*task).copied().unwrap_or(*task);
    }
    error
}
