//! Tasks that wait for room, in the order in which they run.

use std::cmp::Ordering;

use super::pages::Pages;
use super::sequence::Sequence;
use super::{Ask, Task};
use crate::model::PAGE;

/// A task in the order of admission.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    pub(super) task: &'a Task,
    /// Index of the task in the caller's slice.
    pub(super) index: usize,
    /// Pages that hold the same tokens as those of the task before it in the order.
    shared: usize,
}

impl<'a> Waiting<'a> {
    /// A task that shares nothing.
    pub(super) fn alone(tasks: &'a [Task], index: usize) -> Self {
        Self { task: &tasks[index], index, shared: 0 }
    }
}

/// The tasks still to be admitted, and the cache they will live in.
#[derive(Debug)]
pub(super) struct Queue<'a, 'b> {
    waiting: &'b [Waiting<'a>],
    next: usize,
    pages: Pages,
    /// Pages of the task admitted last that the next one shares, held until it comes.
    kept: Vec<u32>,
}

impl<'a, 'b> Queue<'a, 'b> {
    /// A queue before a cache of `pages`.
    pub(super) fn new(waiting: &'b [Waiting<'a>], pages: usize) -> Self {
        Self { waiting, next: 0, pages: Pages::new(pages), kept: Vec::new() }
    }

    /// Forgets what the next task shares with the one before: a new pass finds nothing in the cache.
    pub(super) fn begin_pass(&mut self) {
        self.pages.release(&std::mem::take(&mut self.kept));
    }

    /// The task to be admitted next.
    pub(super) fn peek(&self) -> Option<&'a Task> {
        self.waiting.get(self.next).map(|waiting| waiting.task)
    }

    /// Admits the next task if the pages it shares are computed, or will be by a batch before its own, and there is
    /// room for the others.
    ///
    /// If nothing is active this succeeds: the only pages held are the ones that the task shares, and every task
    /// was seen to fit alone.
    pub(super) fn admit(&mut self, active: &[Sequence<'_>]) -> Option<Sequence<'a>> {
        let &Waiting { task, index, shared } = self.waiting.get(self.next)?;
        let shared = shared.min(self.kept.len());
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

    /// Lets go of a sequence's pages.
    pub(super) fn release(&mut self, pages: &[u32]) {
        self.pages.release(pages);
    }
}

/// Brings prompts with common pages next to each other, the groups in the order of their first task.
///
/// Sorted by their tokens, the prompts that begin alike are neighbours: what each has in common
/// with the one before it is all that sharing needs to know.
pub(super) fn by_prefix<'a>(tasks: &'a [Task], mut indices: Vec<usize>) -> Vec<Waiting<'a>> {
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
            _ => groups.push(vec![Waiting::alone(tasks, index)]),
        }
    }
    groups.sort_by_key(|group| group.iter().map(|waiting| waiting.index).min());
    groups.into_iter().flatten().collect()
}

/// Whole pages at the start of both tasks, without the rows of `task` that are asked for: those must be run.
fn common_pages(before: &Task, task: &Task) -> usize {
    let common = before.tokens.iter().zip(&task.tokens).take_while(|(a, b)| a == b).count();
    let unasked = match task.ask {
        Ask::Generate { .. } => task.tokens.len() - 1,
        Ask::Score { from } => from.max(1) - 1,
    };
    // The task before has no key for its last token if that is only an answer.
    common.min(unasked).min(before.cached()) / PAGE
}
