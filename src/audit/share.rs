//! Which part of an audit one of several machines asks.
//!
//! All work is laid out on a line: every checkpoint's arms with the tasks that they are asked by themselves, checkpoint after
//! checkpoint, then the arms that are held against each other with the tasks on which they are. The line is cut into pieces
//! of about the same cost. So a shard reads few checkpoints, and arms that are compared stand in one piece with the task that
//! they are compared on. Nothing but the plan and the questions decides where the cuts are.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::divergence::pairs;
use super::plan::Plan;
use super::run::Audit;
use super::store::Store;
use crate::engine::{Ask, Needs, Task};
use crate::model::Pair;
use crate::suite::muse;

/// What a generated token costs, in tokens of a prompt: one alone cannot share a pass over the weights with those after it.
const GENERATED: u64 = 4;

/// Most shards of an audit: more than anybody has machines.
const MOST: u32 = 10_000;

/// One of so many parts of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    /// From 1.
    number: u32,
    of: u32,
}

impl Shard {
    /// Which one, from 1.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// How many there are.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = Self> {
        (1..=self.of).map(move |number| Self { number, ..self })
    }

    /// The unlearned models whose update is held against the target's by this shard, by index in [`Plan::models`].
    pub fn updates(self, plan: &Plan) -> impl Iterator<Item = usize> {
        plan.unlearned().skip(self.number as usize - 1).step_by(self.of as usize)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected K/N, such as 1/3 for the first of three: K from 1 to N, N up to {MOST}");
        let (number, of) = text.split_once('/').ok_or_else(expected)?;
        let read = |text: &str| text.trim().parse::<u32>().map_err(|_| expected());
        let (number, of) = (read(number)?, read(of)?);
        if (1..=of).contains(&number) && of <= MOST { Ok(Self { number, of }) } else { Err(expected()) }
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Arms and what they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// By number in the audit.
    pub arms: Range<usize>,
    /// By number in the audit, in rising order.
    pub tasks: Vec<usize>,
    /// Whether the arms are held against each other on them.
    pub compared: bool,
}

impl Audit {
    /// What a shard is asked; nothing if there are more shards than work. With `compared`, arms are held against each other.
    #[must_use]
    pub fn share(&self, shard: Shard, compared: bool) -> Vec<Portion> {
        let mut portions = self.line(compared);
        let units = portions.iter().flat_map(|portion| {
            let arms = portion.arms.len() as u64;
            distinct(self.tasks(), &portion.tasks)
                .into_iter()
                .map(move |(task, tasks)| (arms * cost(task), tasks))
        });
        let (costs, units): (Vec<_>, Vec<_>) = units.unzip();
        let mut places = owners(&costs, shard.of).into_iter().zip(units);
        for portion in &mut portions {
            let mut own = Vec::new();
            let mut left = portion.tasks.len();
            while left > 0 {
                let Some((owner, tasks)) = places.next() else { unreachable!("a unit for every task") };
                left -= tasks.len();
                if owner == shard.number {
                    own.extend(tasks);
                }
            }
            own.sort_unstable();
            portion.tasks = own;
        }
        portions.retain(|portion| !portion.tasks.is_empty());
        portions
    }

    /// All work, in the order in which it is cut.
    fn line(&self, compared: bool) -> Vec<Portion> {
        let arms: Vec<_> = self.plan().arms().collect();
        let all = self.tasks().len();
        let truths = self.questions().truths(muse::Metric::VerbmemForget).start;
        let pairs = if compared { pairs(self.plan(), &arms) } else { Vec::new() };
        // The retrained model's arms are in no pair, and come last.
        let together = pairs.iter().map(|pair| pair.arm + 1).max().unwrap_or(0);
        let mut portions: Vec<Portion> = Vec::new();
        for (arm, &(model, _)) in arms.iter().enumerate() {
            match portions.last_mut() {
                Some(portion) if arms[portion.arms.start].0 == model => portion.arms.end = arm + 1,
                _ => {
                    let tasks = (0..if arm < together { truths } else { all }).collect();
                    portions.push(Portion { arms: arm..arm + 1, tasks, compared: false });
                }
            }
        }
        if together > 0 {
            portions.push(Portion { arms: 0..together, tasks: (truths..all).collect(), compared: true });
        }
        portions
    }

    /// What a portion asks of a device.
    #[must_use]
    pub fn needs_of(&self, portion: &Portion) -> Needs {
        let tasks: Vec<_> = portion.tasks.iter().map(|&task| self.tasks()[task].clone()).collect();
        Needs::of(&tasks).with_pairs(self.pairs_of(portion).len())
    }

    /// Answers to these portions that the store has, and how many they come to. What sets an arm apart belongs to its answer.
    #[must_use]
    pub fn found(&self, portions: &[Portion], store: &Store) -> (usize, usize) {
        let (mut found, mut all) = (0, 0);
        for portion in portions {
            let pairs = self.pairs_of(portion);
            for arm in portion.arms.clone() {
                let own: Vec<_> = pairs.iter().filter(|pair| pair.arm == arm).collect();
                let has = |&task: &usize| {
                    store.answer(arm, task).is_some()
                        && own.iter().all(|pair| store.apart(**pair, task).is_some())
                };
                found += portion.tasks.iter().copied().filter(has).count();
                all += portion.tasks.len();
            }
        }
        (found, all)
    }

    /// The pairs of a portion, by the arms' numbers in the audit.
    fn pairs_of(&self, portion: &Portion) -> Vec<Pair> {
        if !portion.compared {
            return Vec::new();
        }
        let arms: Vec<_> = self.plan().arms().collect();
        let first = portion.arms.start;
        let pairs = pairs(self.plan(), &arms[portion.arms.clone()]);
        pairs.iter().map(|pair| Pair { reference: first + pair.reference, arm: first + pair.arm }).collect()
    }
}

/// The tasks of these numbers, each with all numbers that it has: what is asked twice is asked once, so it stays together.
fn distinct<'a>(tasks: &'a [Task], numbers: &[usize]) -> Vec<(&'a Task, Vec<usize>)> {
    let mut distinct: Vec<(&Task, Vec<usize>)> = Vec::new();
    let mut places: HashMap<&Task, usize> = HashMap::new();
    for &number in numbers {
        let task = &tasks[number];
        let place = *places.entry(task).or_insert(distinct.len());
        match distinct.get_mut(place) {
            Some((_, numbers)) => numbers.push(number),
            None => distinct.push((task, vec![number])),
        }
    }
    distinct
}

/// What an arm takes for a task, in tokens of a prompt.
fn cost(task: &Task) -> u64 {
    let new = match task.ask {
        Ask::Generate { max_new, .. } => GENERATED * max_new as u64,
        Ask::Score { .. } => 0,
    };
    task.tokens.len() as u64 + new
}

/// Which of `shards` (from 1) has each of these consecutive units: the one in whose piece of the line its middle lies. No
/// piece is longer than an even one by more than the longest unit.
fn owners(costs: &[u64], shards: u32) -> Vec<u32> {
    // Twice the length, so that middles are whole numbers.
    let total = 2 * costs.iter().map(|&cost| u128::from(cost)).sum::<u128>();
    let mut before = 0u128;
    let owner = |&cost: &u64| {
        let middle = before + u128::from(cost);
        before += 2 * u128::from(cost);
        let piece = (middle * u128::from(shards)).checked_div(total).unwrap_or(0);
        u32::try_from(piece).unwrap_or(shards).min(shards - 1) + 1
    };
    costs.iter().map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_read_as_they_are_written() {
        let shard: Shard = "2/3".parse().unwrap();
        assert_eq!((shard.number(), shard.of(), shard.to_string().as_str()), (2, 3, "2/3"));
        assert_eq!(shard.all().map(|shard| shard.to_string()).collect::<Vec<_>>(), ["1/3", "2/3", "3/3"]);
        assert!("".parse::<Shard>().is_err());
        for bad in "1 0/3 4/3 x/y 1/0 0/0 -1/3 1/3/5 1/ /3 1.0/3 1/10001 1/99999999999".split(' ') {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_unit_has_one_owner_and_pieces_are_even() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for units in [1, 2, 3, 7, 40, 301] {
            for longest in [1, 5, 1000] {
                let costs: Vec<_> = (0..units).map(|_| 1 + next(longest)).collect();
                let (total, longest) = (costs.iter().sum::<u64>(), *costs.iter().max().unwrap());
                for shards in [1, 2, 3, 4, 7, 16, 300, 1000] {
                    let owners = owners(&costs, shards);
                    assert_eq!(owners.len(), costs.len());
                    // One piece each, in order.
                    assert!(owners.is_sorted() && owners.iter().all(|owner| (1..=shards).contains(owner)));
                    for shard in 1..=shards {
                        let own = owners.iter().zip(&costs).filter(|(owner, _)| **owner == shard);
                        let own: u64 = own.map(|(_, cost)| cost).sum();
                        let even = total as f64 / f64::from(shards);
                        assert!(
                            (own as f64 - even).abs() <= longest as f64,
                            "shard {shard} of {shards}: {own} of {total}, units up to {longest}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_asked_twice_stays_together() {
        let task = |token: u32| Task::score(vec![1, token]);
        let tasks = [task(5), task(6), task(5), task(7), task(6)];
        let found = distinct(&tasks, &[0, 1, 2, 4]);
        let numbers: Vec<_> = found.iter().map(|(_, numbers)| numbers.clone()).collect();
        assert_eq!(numbers, [vec![0, 2], vec![1, 4]]);
    }
}
