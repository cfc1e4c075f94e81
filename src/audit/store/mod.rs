//! What arms answered, kept on disk as it comes, so that a run that was stopped goes on where it was.
//!
//! An answer is found again by content, not by name: by a hash of everything it depends on ([`Inputs`] and the arm's
//! precision), and one of the task (token ids and what is asked of them). Whatever of these has changed, its answers are not
//! found, and are asked again.
//!
//! ```text
//! observations/01_target@fp16.jsonl    one line an arm and task that differs from the others, appended as it comes
//! comparisons/02_target@int8.jsonl     what sets an arm apart from a reference, a line a task
//! inputs.json                          what the answers depended on
//! ```

mod inputs;
mod join;
mod journal;
mod line;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

pub(super) use inputs::hash_of_tokenizer;
pub use inputs::{Inputs, ModelInputs, engine_revision};
use journal::Journal;
pub(super) use line::Sums;
use line::{Answer, Key, Line};

use super::run::Audit;
use crate::engine::{Observation, Task};
use crate::error::{Error, Result};
use crate::model::Pair;

/// The folder of what arms answered.
const OBSERVATIONS: &str = "observations";

/// The folder of what sets arms apart.
const COMPARISONS: &str = "comparisons";

/// The file of what the answers depended on.
const INPUTS: &str = "inputs.json";

/// Longest file of inputs that is read.
const INPUTS_BYTES: u64 = 64 << 20;

/// The stored answers of an audit's arms.
#[derive(Debug)]
pub struct Store {
    inputs: Inputs,
    arms: Vec<Arm>,
    /// Of the audit's tasks.
    tasks: Vec<Key>,
    /// What there is to say about what was found, one sentence each.
    notices: Vec<String>,
    /// Answers that were found.
    found: usize,
    /// Answers that came out otherwise than before.
    differing: usize,
}

/// What is stored of one arm.
#[derive(Debug)]
struct Arm {
    key: Key,
    observations: Journal,
    comparisons: Journal,
    /// By task.
    answers: HashMap<Key, Observation>,
    /// By reference and task.
    apart: HashMap<(Key, Key), Sums>,
}

/// What the lines of one file were.
#[derive(Debug, Default)]
struct Read {
    /// Of other inputs than now.
    other_inputs: usize,
    /// Of tasks that are not asked now.
    other_tasks: usize,
}

impl Store {
    /// Reads what `folder` holds of the audit's arms, and keeps what comes from now on.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written, or is none of ours.
    pub fn open(folder: &Path, audit: &Audit, inputs: &Inputs) -> Result<Self> {
        let mut notices = Vec::new();
        let path = folder.join(INPUTS);
        let before = Inputs::read(&path, INPUTS_BYTES)?;
        if let Some(before) = &before {
            notices.extend(inputs.changes(before));
        }
        for name in [OBSERVATIONS, COMPARISONS] {
            let below = folder.join(name);
            std::fs::create_dir_all(&below).map_err(Error::write(&below))?;
        }
        let tasks: Vec<_> = audit.tasks().iter().map(Key::of_task).collect();
        let asked: HashSet<Key> = tasks.iter().copied().collect();
        let inputs = inputs.clone();
        let mut store = Self { inputs, arms: Vec::new(), tasks, notices, found: 0, differing: 0 };
        for (place, name) in audit.names().iter().enumerate() {
            let key = store.inputs.arm(audit, place);
            let file = format!("{:02}_{}.jsonl", place + 1, file_name(name));
            let mut arm = Arm {
                key,
                observations: Journal::new(folder.join(OBSERVATIONS).join(&file)),
                comparisons: Journal::new(folder.join(COMPARISONS).join(&file)),
                answers: HashMap::new(),
                apart: HashMap::new(),
            };
            let mut read = Read::default();
            let dropped = [
                arm.observations
                    .read(&mut |line| take(&mut arm.answers, &mut arm.apart, key, &asked, &mut read, line))?,
                arm.comparisons
                    .read(&mut |line| take(&mut arm.answers, &mut arm.apart, key, &asked, &mut read, line))?,
            ];
            for (journal, dropped) in [&arm.observations, &arm.comparisons].into_iter().zip(dropped) {
                let path = journal.path().display();
                if dropped.torn {
                    store.notices.push(format!("{path}: the last line is not whole and is dropped"));
                }
                if let Some(first) = dropped.broken.first() {
                    let n = dropped.broken.len();
                    store
                        .notices
                        .push(format!("{path}: {n} broken lines (the first is line {first}) are left out"));
                }
            }
            // Those that have been asked again since are of no interest.
            let lacks = arm.answers.len() < asked.len();
            for (n, why) in [
                (read.other_inputs, "depend on inputs that changed"),
                (read.other_tasks, "are to questions that changed"),
            ] {
                if n > 0 && lacks {
                    store.notices.push(format!("{name}: {n} stored answers {why} and are not used"));
                }
            }
            store.found += arm.answers.len();
            store.arms.push(arm);
        }
        if before.as_ref() != Some(&store.inputs) {
            store.inputs.write(&path)?;
        }
        Ok(store)
    }

    /// Reads what a run in `folder` has stored, by the inputs that it wrote down: checkpoints are not read again, and nothing
    /// is written until an answer is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the folder has no stored answers; otherwise as [`Self::open`].
    pub fn read(folder: &Path, audit: &Audit) -> Result<Self> {
        let missing = |path: PathBuf| Error::Missing {
            path,
            what: "what the run stored of each answer",
            remedy: "name the folder of a run (`--out`) with its observations".to_owned(),
        };
        let path = folder.join(INPUTS);
        let inputs = Inputs::read(&path, INPUTS_BYTES)?.ok_or_else(|| missing(path))?;
        let same = |name: &str, model: &ModelInputs| model.name == name;
        let names = audit.plan().models.iter().map(|model| model.name.as_str());
        if inputs.models.len() != audit.plan().models.len()
            || !names.zip(&inputs.models).all(|(name, model)| same(name, model))
        {
            let found = inputs.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(malformed(&folder.join(INPUTS), "models", found, "the plan's"));
        }
        match folder.join(OBSERVATIONS) {
            observations if observations.is_dir() => Self::open(folder, audit, &inputs),
            observations => Err(missing(observations)),
        }
    }

    /// What the answers depend on.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// What there is to say about what was found, one sentence each.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Answers that were found, and those that the audit asks for; equal tasks count once.
    #[must_use]
    pub fn found(&self) -> (usize, usize) {
        let mut distinct = self.tasks.clone();
        distinct.sort_unstable();
        distinct.dedup();
        (self.found, distinct.len() * self.arms.len())
    }

    /// Answers that were asked again, since other arms lacked them, and came out otherwise: the device does not repeat itself.
    #[must_use]
    pub fn differing(&self) -> usize {
        self.differing
    }

    /// The answer of an arm to a task.
    pub(super) fn answer(&self, arm: usize, task: usize) -> Option<&Observation> {
        self.arms[arm].answers.get(&self.tasks[task])
    }

    /// What sets the arms of a pair apart on a task.
    pub(super) fn apart(&self, pair: Pair, task: usize) -> Option<Sums> {
        let reference = self.arms[pair.reference].key;
        self.arms[pair.arm].apart.get(&(reference, self.tasks[task])).copied()
    }

    /// Keeps an arm's answer to a task of this metric; `text` is what it says, for those who read the file.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(super) fn keep(
        &mut self,
        arm: usize,
        task: usize,
        metric: &'static str,
        observation: &Observation,
        text: Option<String>,
    ) -> Result<()> {
        let (key, arm) = (self.tasks[task], &mut self.arms[arm]);
        match arm.answers.get(&key) {
            Some(known) if known == observation => return Ok(()),
            Some(_) => self.differing += 1,
            None => {}
        }
        let answer = Answer::of(observation, text);
        arm.observations.append(&Line {
            arm: arm.key,
            task: key,
            index: task,
            metric: metric.into(),
            answer,
        })?;
        arm.answers.insert(key, observation.clone());
        Ok(())
    }

    /// Keeps what sets the arms of a pair apart on a task of this metric.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(super) fn keep_apart(
        &mut self,
        pair: Pair,
        task: usize,
        metric: &'static str,
        sums: Sums,
    ) -> Result<()> {
        let reference = self.arms[pair.reference].key;
        let (key, arm) = (self.tasks[task], &mut self.arms[pair.arm]);
        if arm.apart.get(&(reference, key)).is_some_and(|known| known.bits() == sums.bits()) {
            return Ok(());
        }
        let answer = Answer::Apart { reference, sums };
        arm.comparisons.append(&Line {
            arm: arm.key,
            task: key,
            index: task,
            metric: metric.into(),
            answer,
        })?;
        arm.apart.insert((reference, key), sums);
        Ok(())
    }

    /// Brings everything that was kept to the disk itself.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn sync(&mut self) -> Result<()> {
        self.arms.iter_mut().try_for_each(|arm| arm.observations.sync().and(arm.comparisons.sync()))
    }
}

/// Sorts one stored line in. Of two for the same task the later one counts.
fn take(
    answers: &mut HashMap<Key, Observation>,
    apart: &mut HashMap<(Key, Key), Sums>,
    arm: Key,
    asked: &HashSet<Key>,
    read: &mut Read,
    line: Line,
) {
    if line.arm != arm {
        read.other_inputs += 1;
    } else if !asked.contains(&line.task) {
        read.other_tasks += 1;
    } else {
        match line.answer {
            Answer::Apart { reference, sums } => {
                apart.insert((reference, line.task), sums);
            }
            answer => {
                if let Some(observation) = answer.into_observation() {
                    answers.insert(line.task, observation);
                }
            }
        }
    }
}

/// An arm's name as a file's: what may not stand in one, anywhere, is replaced.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@+=".contains(c) { c } else { '_' };
    name.chars().map(plain).take(100).collect()
}

impl Key {
    /// Of a task: its token ids, and what is asked of them.
    fn of_task(task: &Task) -> Self {
        use crate::engine::Ask;
        let mut hasher = blake3::Hasher::new();
        let mut add = |number: u64| {
            hasher.update(&number.to_le_bytes());
        };
        add(task.tokens.len() as u64);
        task.tokens.iter().for_each(|&token| add(token.into()));
        match &task.ask {
            Ask::Generate { max_new, stop } => {
                add(1);
                add(*max_new as u64);
                stop.iter().for_each(|&token| add(token.into()));
            }
            Ask::Score { from } => {
                add(2);
                add(*from as u64);
            }
        }
        Self::from(&hasher)
    }
}

/// A path inside the store, for errors.
pub(super) fn malformed(path: &Path, what: &str, found: String, expected: &str) -> Error {
    Error::Malformed {
        path: PathBuf::from(path),
        what: what.to_owned(),
        found,
        expected: expected.to_owned(),
    }
}
