//! What tasks ask of memory.

use super::{Ask, Task};
use crate::model::{PAGE, Work};

/// What tasks of one kind ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tasks.
    pub tasks: usize,
    /// Rows of the longest one: a cache that holds fewer cannot answer it.
    pub longest: usize,
    /// Pages of all: a cache larger than this is never filled.
    pub pages: usize,
    /// Rows of all that are known beforehand: scored tokens, or prompts.
    pub rows: usize,
    /// Most new tokens of one task.
    pub steps: usize,
}

/// What a set of tasks asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Scored texts.
    pub score: Demand,
    /// Continued prompts.
    pub generate: Demand,
    /// Pairs of arms that are held against each other where texts are scored. All arms run together then.
    pub pairs: usize,
}

impl Needs {
    /// What `tasks` need.
    #[must_use]
    pub fn of(tasks: &[Task]) -> Self {
        let mut needs = Self::default();
        for task in tasks.iter().filter(|task| task.cached() > 0) {
            let (demand, rows, steps) = match task.ask {
                Ask::Score { .. } => (&mut needs.score, task.cached(), 0),
                Ask::Generate { max_new, .. } => (&mut needs.generate, task.tokens.len(), max_new),
            };
            demand.tasks += 1;
            demand.longest = demand.longest.max(task.cached());
            demand.pages = demand.pages.saturating_add(task.cached().div_ceil(PAGE));
            demand.rows = demand.rows.saturating_add(rows);
            demand.steps = demand.steps.max(steps);
        }
        needs
    }

    /// The same with so many pairs of arms held against each other.
    #[must_use]
    pub fn with_pairs(self, pairs: usize) -> Self {
        Self { pairs, ..self }
    }

    /// Of one kind of work.
    #[must_use]
    pub fn demand(&self, work: Work) -> Demand {
        match work {
            Work::Score => self.score,
            Work::Generate => self.generate,
        }
    }

    /// Rows of the longest task of either kind.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.score.longest.max(self.generate.longest)
    }
}
