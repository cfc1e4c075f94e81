//! Logits of some arms held against those of another, on the same tokens.

use std::path::PathBuf;
use std::sync::Arc;

use super::plan::unique_names;
use crate::checkpoint::{Checkpoint, Tokenizer};
use crate::engine::{Answered, Ask, Engine, Finished, Needs, Observation, Options, Task};
use crate::error::{Error, Result};
use crate::metrics::agreement::{Agreement, Position, uncertain};
use crate::metrics::divergence::Divergence;
use crate::model::{Comparing, Counters, Detail, Lockstep, Pair, Source, check_tensors};
use crate::quant::{Precision, Scheme};
use crate::suite::Muse;
use crate::suite::muse::Metric;
use crate::suite::text::{self, windows};

/// What the arms are compared on.
#[derive(Clone, Debug)]
pub enum Passages {
    /// A text file, in windows.
    Text {
        /// The file.
        path: PathBuf,
        /// Tokens in a window.
        window: Option<usize>,
        /// Tokens between the beginnings of two windows.
        stride: Option<usize>,
        /// llama.cpp's windows.
        second_half: bool,
    },
    /// The true answers of a MUSE corpus, after their prompts.
    Data {
        /// Its directory.
        path: PathBuf,
        /// Most examples of each list.
        limit: Option<usize>,
    },
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct ComparisonPlan {
    /// Directory and precision; the first is the reference.
    pub arms: Vec<(PathBuf, Precision)>,
    /// The checkpoint from which updates lead, for arms in roundings that ask for it.
    pub target: Option<PathBuf>,
    /// What the arms are compared on.
    pub passages: Passages,
}

/// Some of the tasks, which are reported together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    /// "text", "forget" or "retain".
    name: &'static str,
    /// Indices of its tasks.
    tasks: Vec<usize>,
}

/// Everything that is read before the weights.
#[derive(Debug)]
pub struct Comparison {
    names: Vec<String>,
    sources: Vec<Source>,
    schemes: Vec<Scheme>,
    tokenizer: Tokenizer,
    tasks: Vec<Task>,
    sets: Vec<Set>,
}

/// What was found on a set.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFound {
    /// "all", or the set's.
    pub name: &'static str,
    /// Each arm but the reference against it; none if there is no position.
    pub arms: Vec<Option<Agreement>>,
    /// Mean entropy and mean rank of the given token of every arm, the reference first.
    pub own: Vec<[f64; 2]>,
}

/// What was found.
#[derive(Debug)]
pub struct ComparisonFound {
    /// All tasks together, then the sets if there are several.
    pub sets: Vec<SetFound>,
    /// Positions in all.
    pub positions: usize,
    /// What it cost.
    pub counters: Counters,
    answered: Vec<Vec<Observation>>,
    apart: Answered,
}

/// One arm at one position, for a line of the per-token record.
#[derive(Clone, Copy, Debug)]
pub struct ArmToken<'a> {
    /// log p of the given token, nats.
    pub log_prob: f32,
    /// Entropy, rank and likeliest tokens.
    pub detail: &'a Detail,
    /// Against the reference; none for the reference itself.
    pub apart: Option<&'a Divergence>,
}

impl Comparison {
    /// Opens the checkpoints without their weights, and reads the passages.
    ///
    /// # Errors
    ///
    /// If anything is missing, broken or not supported, or if the models do not have one architecture and tokenizer.
    pub fn open(plan: &ComparisonPlan) -> Result<Self> {
        let mut opened: Vec<(PathBuf, Arc<Checkpoint>)> = Vec::new();
        let mut sources = Vec::new();
        let target = plan.target.as_ref().map(|path| Checkpoint::open(path).map(Arc::new)).transpose()?;
        target.iter().try_for_each(|target| check_tensors(target))?;
        for (path, precision) in &plan.arms {
            let known = opened.iter().find(|(known, _)| known == path).map(|(_, checkpoint)| checkpoint);
            let checkpoint = match known {
                Some(checkpoint) => Arc::clone(checkpoint),
                None => {
                    let checkpoint = Arc::new(Checkpoint::open(path)?);
                    check_tensors(&checkpoint)?;
                    opened.push((path.clone(), Arc::clone(&checkpoint)));
                    checkpoint
                }
            };
            let source = Source { target: target.clone(), ..Source::new(&checkpoint, *precision) };
            source.check()?;
            sources.push(source);
        }
        let Some((_, reference)) = opened.first() else {
            let expected = "a reference and at least one arm".to_owned();
            return Err(Error::Flag { flag: "DIR[@PRECISION]", found: "nothing".to_owned(), expected });
        };
        let context = opened.iter().map(|(_, checkpoint)| checkpoint.config().context).min().unwrap_or(0);
        let mut first: Option<(Tokenizer, Vec<Task>, Vec<Set>)> = None;
        for (path, checkpoint) in &opened {
            checkpoint.must_run_like(reference, "the same: logits are compared token by token")?;
            let tokenizer = checkpoint.tokenizer()?;
            let (tasks, sets) = read(&plan.passages, &tokenizer, context)?;
            match &first {
                None => first = Some((tokenizer, tasks, sets)),
                Some((_, theirs, _)) if *theirs == tasks => {}
                Some(_) => {
                    let target = reference.path().to_path_buf();
                    return Err(Error::TokenizersDiffer { path: path.clone(), target });
                }
            }
        }
        let Some((tokenizer, tasks, sets)) = first else { unreachable!("there is a reference") };
        let scheme =
            |source: &Source| Ok(source.precision.scheme(crate::model::stored_scheme(&source.checkpoint)?));
        Ok(Self {
            names: names(&plan.arms),
            schemes: sources.iter().map(scheme).collect::<Result<_>>()?,
            sources,
            tokenizer,
            tasks,
            sets,
        })
    }

    /// The arms' names, the reference first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the arms are made of.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// What the layers' matrices of each arm are stored in.
    #[must_use]
    pub fn schemes(&self) -> &[Scheme] {
        &self.schemes
    }

    /// What encodes the passages.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Each arm against the first.
    fn pairs(&self) -> Vec<Pair> {
        (1..self.names.len()).map(|arm| Pair { reference: 0, arm }).collect()
    }

    /// What it asks of a device.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::of(&self.tasks).with_pairs(self.pairs().len())
    }

    /// How many tasks every arm has.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Asks the arms of `model`; `tell` hears how many answers there are.
    ///
    /// # Errors
    ///
    /// If the device fails or an arm's logits are not finite.
    pub fn run(&self, model: impl Lockstep, tell: &mut dyn FnMut(usize)) -> Result<ComparisonFound> {
        let mut engine = Engine::new(self.names.clone(), model, Options::default());
        let pairs = self.pairs();
        let mut told = |finished: Finished<'_>| {
            tell(finished.done);
            Ok(())
        };
        let what = Comparing { pairs: &pairs, detailed: true };
        let mut apart = engine.compare(&self.tasks, what, &mut told)?;
        let answered = std::mem::take(&mut apart.arms).into_iter().collect::<Result<Vec<_>>>()?;
        let mut compared = ComparisonFound {
            sets: Vec::new(),
            positions: apart.pairs.first().map_or(0, |pair| pair.iter().map(Vec::len).sum()),
            counters: engine.counters(),
            answered,
            apart,
        };
        let all = Set { name: "all", tasks: (0..self.tasks.len()).collect() };
        let several = if self.sets.len() > 1 { &self.sets[..] } else { &[] };
        let found = std::iter::once(&all).chain(several).map(|set| compared.of(set, self.names.len()));
        compared.sets = found.collect();
        Ok(compared)
    }

    /// Every position: its task, its place there, the token, and what each arm says of it.
    pub fn tokens<'a>(
        &'a self,
        compared: &'a ComparisonFound,
    ) -> impl Iterator<Item = (usize, usize, u32, Vec<ArmToken<'a>>)> + 'a {
        self.tasks.iter().enumerate().flat_map(move |(index, task)| {
            let from = match task.ask {
                Ask::Score { from } => from,
                Ask::Generate { .. } => task.tokens.len(),
            };
            (from..task.tokens.len()).map(move |at| {
                let arm = |(arm, observations): (usize, &'a Vec<Observation>)| {
                    let Observation::Scored { log_probs, details, .. } = &observations[index] else {
                        unreachable!("all tasks are scored")
                    };
                    let apart = arm.checked_sub(1).map(|pair| &compared.apart.pairs[pair][index][at - from]);
                    ArmToken { log_prob: log_probs[at - from], detail: &details[at - from], apart }
                };
                (index, at, task.tokens[at], compared.answered.iter().enumerate().map(arm).collect())
            })
        })
    }
}

impl ComparisonFound {
    fn of(&self, set: &Set, arms: usize) -> SetFound {
        let scored = |arm: usize, task: usize| match &self.answered[arm][task] {
            Observation::Scored { log_probs, details, .. } => (log_probs, details),
            Observation::Generated { .. } => unreachable!("all tasks are scored"),
        };
        let against = |arm: usize| {
            let positions = set.tasks.iter().flat_map(|&task| {
                let ((p, reference), (q, own)) = (scored(0, task), scored(arm, task));
                let apart = &self.apart.pairs[arm - 1][task];
                (0..apart.len())
                    .map(move |at| position([p[at], q[at]], [&reference[at], &own[at]], apart[at]))
            });
            Agreement::new(&positions.collect::<Vec<_>>())
        };
        let own = |arm: usize| {
            let details = set.tasks.iter().flat_map(|&task| scored(arm, task).1);
            let (entropies, ranks): (Vec<_>, Vec<_>) =
                details.map(|detail| (detail.entropy, f64::from(detail.rank))).unzip();
            [entropies, ranks].map(|values| uncertain(&values).value)
        };
        SetFound { name: set.name, arms: (1..arms).map(against).collect(), own: (0..arms).map(own).collect() }
    }
}

/// What a pair of arms said at one place.
fn position(
    [reference_log_prob, log_prob]: [f32; 2],
    [reference, arm]: [&Detail; 2],
    apart: Divergence,
) -> Position {
    let common = |k: usize| reference.top[..k].iter().filter(|token| arm.top[..k].contains(token)).count();
    Position {
        reference_log_prob: f64::from(reference_log_prob),
        log_prob: f64::from(log_prob),
        apart,
        same_top: reference.top[0] == arm.top[0],
        top5: common(5),
        top10: common(10),
    }
}

/// What reports call the arms: directories' shortest distinct names, with the precision; what is given twice is numbered.
fn names(arms: &[(PathBuf, Precision)]) -> Vec<String> {
    let mut directories: Vec<PathBuf> = Vec::new();
    for (path, _) in arms {
        if !directories.contains(path) {
            directories.push(path.clone());
        }
    }
    let short = unique_names(&directories);
    let mut names: Vec<String> = Vec::new();
    for (path, precision) in arms {
        let short = directories.iter().zip(&short).find(|(known, _)| *known == path).map(|(_, short)| short);
        let plain = format!("{}@{precision}", short.map_or("", String::as_str));
        let mut name = plain.clone();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{plain} ({number})");
            number += 1;
        }
        names.push(name);
    }
    names
}

fn read(passages: &Passages, tokenizer: &Tokenizer, context: usize) -> Result<(Vec<Task>, Vec<Set>)> {
    match passages {
        Passages::Text { path, window, stride, second_half } => {
            let tasks = windows(path, tokenizer, text::choose(*window, *stride, *second_half, context)?)?;
            let set = Set { name: "text", tasks: (0..tasks.len()).collect() };
            Ok((tasks, vec![set]))
        }
        Passages::Data { path, limit } => {
            let prepared = Muse::read(path, *limit)?.prepare(tokenizer, context, &[])?;
            let mut tasks = Vec::new();
            let mut set = |name, metrics: &[Metric]| {
                let first = tasks.len();
                for metric in metrics {
                    tasks.extend_from_slice(&prepared.tasks()[prepared.truths(*metric)]);
                }
                Set { name, tasks: (first..tasks.len()).collect() }
            };
            let forget = set("forget", &[Metric::VerbmemForget, Metric::KnowmemForget]);
            let retain = set("retain", &[Metric::KnowmemRetain]);
            Ok((tasks, vec![forget, retain]))
        }
    }
}
