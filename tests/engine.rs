//! The engine on a fake model whose answer to a row is a hash of everything the row can see
//! through the block table: a wrong slot, a leak or wrong sharing changes the answer.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and knows how small its numbers are"
)]

use std::collections::{HashMap, HashSet};

use undertext::engine::{Ask, Engine, Observation, Options, Task};
use undertext::error::Error;
use undertext::model::{Batch, Capacity, Counters, Each, Folded, Forward, PAGE, Phase, Room};

use crate::support::{SmallRoom, engine_of, run_one};

/// Small, so that hashes repeat tokens and stop ids come up.
const VOCAB: u32 = 50;
const ROOMY: Capacity = Capacity { tokens: 512, wanted: 512, pages: 512 };

/// What the fake says of a sequence's first tokens: a pure function of them.
fn answer(history: &[u32], given: u32) -> Folded {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &token in history {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01b3).rotate_left(17);
    }
    let fraction = |bits: u64| (bits % 4096) as f32 / 4096.0;
    Folded {
        log_sum_exp: 3.0 + fraction(hash),
        argmax: (hash >> 20) as u32 % VOCAB,
        max_logit: 2.0 + fraction(hash >> 12),
        given_logit: fraction((hash >> 5) ^ u64::from(given)),
    }
}

#[derive(Default)]
struct Fake {
    capacity: Option<Capacity>,
    /// The token whose key and value a slot holds.
    cache: Vec<Option<u32>>,
    batches: Vec<(Phase, usize)>,
    counters: Counters,
    /// Answer NaN to this row of this call.
    poison: Option<(usize, usize)>,
    /// Drop the last answer.
    short: bool,
}

impl Fake {
    fn new(capacity: Capacity) -> Self {
        Self { capacity: Some(capacity), cache: vec![None; capacity.pages * PAGE], ..Self::default() }
    }

    fn tokens(&self) -> usize {
        self.batches.iter().map(|&(_, tokens)| tokens).sum()
    }
}

impl Forward for Fake {
    fn capacity(&self) -> Capacity {
        self.capacity.unwrap()
    }

    fn forward(&mut self, batch: &Batch) -> undertext::Result<Vec<Folded>> {
        let capacity = self.capacity();
        assert!(!batch.tokens.is_empty() && batch.tokens.len() <= capacity.tokens, "tokens in the batch");
        assert!(batch.wanted.len() <= capacity.wanted, "wanted rows in the batch");
        assert_eq!(batch.tokens.len(), batch.places.len());

        // Each sequence of the batch is a run of rows with one table and rising positions.
        let mut tables: HashMap<u32, u32> = HashMap::new();
        let mut written = HashSet::new();
        let slot_of = |table: u32, position: u32| {
            let page = batch.table[(table + position / PAGE as u32) as usize];
            assert!((page as usize) < capacity.pages, "page {page}");
            (page * PAGE as u32 + position % PAGE as u32) as usize
        };
        let before = self.cache.clone();
        for (&token, place) in batch.tokens.iter().zip(&batch.places) {
            if let Some(last) = tables.insert(place.table, place.position) {
                assert_eq!(place.position, last + 1, "rows of a sequence come in order");
                assert_eq!(batch.phase, Phase::Prefill, "decode has one row a sequence");
            }
            assert_eq!(slot_of(place.table, place.position), place.slot as usize, "the row's own slot");
            assert!(written.insert(place.slot), "slot {} written twice", place.slot);
            self.cache[place.slot as usize] = Some(token);
        }
        // A row sees its own sequence's rows of this batch, and else only what was there before it.
        let first: HashMap<u32, u32> =
            batch.places.iter().rev().map(|place| (place.table, place.position)).collect();
        let history = |table: u32, position: u32| -> Vec<u32> {
            let seen = |p| {
                let slot = slot_of(table, p);
                let own = p >= first[&table];
                assert!(own || !written.contains(&(slot as u32)), "reads a slot that this batch writes");
                if own { self.cache[slot] } else { before[slot] }.expect("an unwritten slot")
            };
            (0..=position).map(seen).collect()
        };

        let call = self.batches.len();
        self.batches.push((batch.phase, batch.tokens.len()));
        self.counters.weight_passes += 1;
        let mut folded = Vec::new();
        for (i, wanted) in batch.wanted.iter().enumerate() {
            let place = batch.places[wanted.row as usize];
            let mut answer = answer(&history(place.table, place.position), wanted.given);
            if self.poison == Some((call, i)) {
                answer.log_sum_exp = f32::NAN;
            }
            folded.push(answer);
        }
        if self.short {
            folded.pop();
        }
        Ok(folded)
    }

    fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

/// What a task must give, without batches, pages or sharing.
fn expected(task: &Task) -> Observation {
    let mut tokens = task.tokens.clone();
    match &task.ask {
        Ask::Score { from } => {
            let rows = (*from..tokens.len()).map(|n| answer(&tokens[..n], tokens[n]));
            let (log_probs, argmax) = rows.map(|row| (row.log_prob(), row.argmax)).unzip();
            Observation::Scored { log_probs, argmax, details: vec![] }
        }
        Ask::Generate { max_new, stop } => {
            let mut log_probs = Vec::new();
            for _ in 0..*max_new {
                let row = answer(&tokens, 0);
                log_probs.push(row.max_logit - row.log_sum_exp);
                tokens.push(row.argmax);
                if stop.contains(&row.argmax) {
                    break;
                }
            }
            Observation::Generated { tokens: tokens.split_off(task.tokens.len()), log_probs }
        }
    }
}

/// What the fake model itself was asked.
fn fake(engine: &Engine<Each<Fake>>) -> &Fake {
    &engine.model().0[0]
}

fn run(capacity: Capacity, share_prefixes: bool, tasks: &[Task]) -> (Vec<Observation>, Engine<Each<Fake>>) {
    let options = Options { share_prefixes, ..Options::default() };
    let mut engine = engine_of(Fake::new(capacity), options);
    let mut told = vec![None; tasks.len()];
    let mut calls = 0;
    let mut tell = |finished: undertext::engine::Finished<'_>| {
        calls += 1;
        assert_eq!((finished.arm, finished.done, finished.total), (0, calls, tasks.len()));
        let before = told[finished.index].replace(finished.observation.clone());
        assert_eq!(before, None, "task {} told twice", finished.index);
        Ok(())
    };
    let observations = run_one(&mut engine, tasks, &mut tell).unwrap();
    assert_eq!(told.into_iter().flatten().collect::<Vec<_>>(), observations);
    (observations, engine)
}

fn score(tokens: &[u32]) -> Task {
    Task::score(tokens.to_vec())
}

fn generate(tokens: &[u32], max_new: usize, stop: &[u32]) -> Task {
    Task { tokens: tokens.to_vec(), ask: Ask::Generate { max_new, stop: stop.to_vec() } }
}

/// `count` tokens that differ with `seed`.
fn noise(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..count).map(|_| random.below(VOCAB as usize) as u32).collect()
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

/// Every kind of task: two preambles with tails of odd lengths, texts, repetitions, and the trivial ones.
fn mixed(seed: u64) -> Vec<Task> {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    let preambles = [noise(seed, 20 + random.below(60)), noise(seed + 1000, 5 + random.below(40))];
    let mut tasks = Vec::new();
    for i in 0..12 {
        let mut tokens = preambles[random.below(2)].clone();
        let cut = tokens.len() - random.below(3).min(tokens.len() - 1);
        tokens.truncate(cut);
        tokens.extend(noise(seed + i, random.below(25)));
        if random.below(2) == 0 {
            let from = 1 + random.below(tokens.len() + 2);
            tasks.push(Task { tokens: tokens.clone(), ask: Ask::Score { from } });
        }
        let stop: &[u32] = if random.below(2) == 0 { &[1, 2, 3, 4, 5] } else { &[] };
        tasks.push(generate(&tokens, random.below(20), stop));
        if random.below(2) == 0 {
            let count = 1 + random.below(70);
            tasks.push(score(&noise(seed + 7 * i, count)));
        }
        if random.below(4) == 0 {
            let again = tasks[random.below(tasks.len())].clone();
            tasks.push(again);
        }
    }
    tasks
}

#[test]
fn observations_depend_on_nothing_but_the_task() {
    for seed in 1..=40 {
        let tasks = mixed(seed);
        let want: Vec<_> = tasks.iter().map(expected).collect();
        let longest = tasks.iter().map(|task| task.cached().div_ceil(PAGE)).max().unwrap();
        let capacities = [
            ROOMY,
            Capacity { tokens: 1, wanted: 1, pages: longest },
            Capacity { tokens: 7, wanted: 3, pages: longest },
            Capacity { tokens: 64, wanted: 5, pages: longest + 3 },
            Capacity { tokens: 33, wanted: 40, pages: 2 * longest },
        ];
        for capacity in capacities {
            for share in [false, true] {
                assert_eq!(run(capacity, share, &tasks).0, want, "seed {seed} {capacity:?} sharing {share}");
            }
        }
        // The same tasks the other way round.
        let reversed: Vec<_> = tasks.iter().rev().cloned().collect();
        let mut got = run(capacities[3], true, &reversed).0;
        got.reverse();
        assert_eq!(got, want, "seed {seed} reversed");
    }
}

#[test]
fn runs_are_repeatable_to_the_batch() {
    let tasks = mixed(3);
    let capacity = Capacity { tokens: 33, wanted: 8, pages: 30 };
    let first = run(capacity, true, &tasks).1.into_model().0.remove(0).batches;
    assert!(first.len() > 5);
    assert_eq!(first, run(capacity, true, &tasks).1.into_model().0.remove(0).batches);
}

#[test]
fn a_second_run_of_the_same_engine_is_not_confused_by_the_first() {
    let (_, mut engine) = run(ROOMY, true, &mixed(4));
    let tasks = mixed(5);
    let observations = run_one(&mut engine, &tasks, &mut |_| Ok(())).unwrap();
    assert_eq!(observations, tasks.iter().map(expected).collect::<Vec<_>>());
}

#[test]
fn a_shared_preamble_is_computed_once() {
    let preamble = noise(9, 5 * PAGE + 3);
    let prompt = |i| [preamble.clone(), vec![i, i, i, i]].concat();
    // Another text between them, and not the first in the order of tokens first.
    let mut tasks: Vec<_> = (0..10).rev().map(|i| generate(&prompt(i), 1, &[])).collect();
    tasks.insert(4, generate(&noise(10, 20), 1, &[]));
    let apart = run(ROOMY, false, &tasks);
    let shared = run(ROOMY, true, &tasks);
    assert_eq!(apart.0, shared.0);
    assert_eq!(fake(&apart.1).tokens(), 10 * (5 * PAGE + 7) + 20);
    assert_eq!(fake(&shared.1).tokens(), 5 * PAGE + 10 * 7 + 20);
    assert_eq!(fake(&shared.1).batches.len(), 2, "one batch with the preamble, one with the tails");
}

#[test]
fn sharing_lets_more_sequences_in() {
    let preamble = noise(11, 8 * PAGE);
    let prompt = |i| [preamble.clone(), vec![i]].concat();
    let tasks: Vec<_> = (0..4).map(|i| generate(&prompt(i), 4, &[])).collect();
    // Eight pages for the preamble and one for each tail: without sharing only one fits at a time.
    let capacity = Capacity { tokens: 256, wanted: 16, pages: 12 };
    let passes = |share| run(capacity, share, &tasks).1.counters().weight_passes;
    assert_eq!(passes(false), 4 * 4);
    // The first prompt alone (the others wait for its pages), the tails, three new tokens for all at once.
    assert_eq!(passes(true), 2 + 3);
}

#[test]
fn a_repeated_task_is_computed_once() {
    let (one, two) = (generate(&noise(1, 30), 5, &[]), score(&noise(2, 10)));
    let (_, engine) = run(ROOMY, true, &[one.clone(), two.clone(), one.clone(), two, one]);
    assert_eq!(fake(&engine).tokens(), 30 + 4 + 9);
    let counters = engine.counters();
    assert_eq!((counters.tokens_generated, counters.tokens_scored), (5, 9));
    assert_eq!(counters.weight_passes, 2 + 4);
}

#[test]
fn a_long_text_is_cut_into_batches() {
    let capacity = Capacity { tokens: 10, wanted: 4, pages: 7 };
    let tasks = [score(&noise(5, 101)), generate(&noise(6, 95), 3, &[])];
    let (observations, engine) = run(capacity, true, &tasks);
    assert_eq!(observations, tasks.each_ref().map(expected));
    let batches = &fake(&engine).batches;
    assert_eq!(batches.iter().filter(|&&batch| batch == (Phase::Prefill, 4)).count(), 25);
    assert_eq!(batches.iter().filter(|&&batch| batch == (Phase::Prefill, 10)).count(), 9);
    assert_eq!(batches[25 + 9..], [(Phase::Prefill, 5), (Phase::Decode, 1), (Phase::Decode, 1)]);
}

#[test]
fn generation_ends_at_a_stop_token_or_at_the_limit() {
    let prompt = noise(8, 12);
    let free = |max_new| match &run(ROOMY, true, &[generate(&prompt, max_new, &[])]).0[0] {
        Observation::Generated { tokens, .. } => tokens.clone(),
        Observation::Scored { .. } => unreachable!(),
    };
    let ten = free(10);
    assert_eq!(ten.len(), 10);
    assert!(free(0).is_empty());
    assert_eq!(free(1), ten[..1]);
    let stop = ten[6];
    let first = ten.iter().position(|&token| token == stop).unwrap();
    let (observations, engine) = run(ROOMY, true, &[generate(&prompt, 10, &[VOCAB + 1, stop])]);
    let Observation::Generated { tokens, log_probs } = &observations[0] else { unreachable!() };
    assert_eq!(tokens[..], ten[..=first], "the stop token is kept");
    assert_eq!(log_probs.len(), tokens.len());
    assert_eq!(engine.counters().tokens_generated, tokens.len() as u64);
}

#[test]
fn what_needs_no_row_runs_none() {
    let tasks = [score(&[7]), generate(&[1, 2], 0, &[])];
    let (observations, engine) = run(Capacity { pages: 0, ..ROOMY }, true, &tasks);
    assert_eq!(observations[0], Observation::Scored { log_probs: vec![], argmax: vec![], details: vec![] });
    assert_eq!(observations[1], Observation::Generated { tokens: vec![], log_probs: vec![] });
    assert!(fake(&engine).batches.is_empty());
    assert!(run(ROOMY, true, &[]).0.is_empty());
}

#[test]
fn pages_are_reused_when_they_run_out() {
    // Two pages each, room for two and a half: two run at a time, the next comes when one has stopped.
    let tasks: Vec<_> = (0..9).map(|i| generate(&noise(20 + i, 14), 1 + 2 * i as usize, &[])).collect();
    let capacity = Capacity { tokens: 64, wanted: 64, pages: 5 };
    let (observations, engine) = run(capacity, true, &tasks);
    assert_eq!(observations, tasks.iter().map(expected).collect::<Vec<_>>());
    let decode = fake(&engine).batches.iter().filter(|batch| batch.0 == Phase::Decode);
    let (calls, rows) = decode.fold((0, 0), |(calls, rows), &(_, tokens)| (calls + 1, rows + tokens));
    assert_eq!(rows, (0..9).map(|i| 2 * i).sum::<usize>());
    assert!(calls < rows * 2 / 3, "{calls} calls for {rows} rows: sequences did not run together");
}

#[test]
fn the_last_new_token_takes_no_room() {
    let fits = generate(&noise(1, PAGE), 1, &[]);
    let (observations, _) = run(Capacity { tokens: 16, wanted: 1, pages: 1 }, true, &[fits]);
    assert!(matches!(&observations[0], Observation::Generated { tokens, .. } if tokens.len() == 1));
}

/// The error of a run on a fake, and whether the model was called.
fn fails(mut fake: Fake, tasks: &[Task], prepare: impl FnOnce(&mut Fake)) -> (Error, usize) {
    prepare(&mut fake);
    let mut engine = engine_of(fake, Options::default());
    let error = run_one(&mut engine, tasks, &mut |_| Ok(())).unwrap_err();
    (error, engine.model().0[0].batches.len())
}

#[test]
fn what_cannot_run_is_refused_before_any_work() {
    let good = score(&noise(1, 5));
    let small = Capacity { tokens: 8, wanted: 8, pages: 2 };
    let (error, calls) = fails(Fake::new(small), &[good.clone(), score(&[])], |_| ());
    assert!(matches!(error, Error::Shape { got: 0, .. }), "{error}");
    assert_eq!(calls, 0);
    let long = generate(&noise(2, 30), 4, &[]);
    let (error, calls) = fails(Fake::new(small), &[good.clone(), long], |_| ());
    assert!(matches!(error, Error::CacheTooSmall { task: 1, needed: 33, limit: 32 }), "{error}");
    assert_eq!((calls, error.exit_code()), (0, 4));
    let endless = generate(&[1], usize::MAX, &[]);
    let (error, _) = fails(Fake::new(small), &[endless], |_| ());
    assert!(matches!(error, Error::CacheTooSmall { task: 0, .. }), "{error}");
    let (error, _) = fails(Fake::new(Capacity { tokens: 0, ..small }), &[good], |_| ());
    assert!(matches!(error, Error::Shape { what: "capacity", .. }), "{error}");
}

#[test]
fn logits_that_are_not_finite_name_task_and_position() {
    let tasks = [score(&noise(1, 4)), score(&noise(2, 9)), generate(&noise(3, 10), 5, &[])];
    // Rows 0..3 belong to the first text, the others to the second.
    let (error, _) = fails(Fake::new(ROOMY), &tasks, |fake| fake.poison = Some((0, 5)));
    let Error::LogitsNotFinite { model, task, position } = error else { panic!("{error}") };
    assert_eq!((model.as_str(), task, position), ("arm", 1, 2));
    // Call 0 scores, 1 runs the prompt, 2 the first new token, which stands at 10.
    let (error, _) = fails(Fake::new(ROOMY), &tasks, |fake| fake.poison = Some((2, 0)));
    assert!(matches!(error, Error::LogitsNotFinite { task: 2, position: 10, .. }), "{error}");
}

#[test]
fn a_missing_answer_is_an_error() {
    let (error, _) = fails(Fake::new(ROOMY), &[score(&noise(1, 4))], |fake| fake.short = true);
    assert!(matches!(error, Error::Shape { got: 2, .. }), "{error}");
}

#[test]
fn the_listener_can_end_the_run() {
    let tasks = [score(&noise(1, 4)), generate(&noise(3, 10), 5, &[])];
    let mut engine = engine_of(Fake::new(ROOMY), Options::default());
    let full = |_: undertext::engine::Finished<'_>| {
        let source = std::io::Error::other("disk full");
        Err(Error::Write { path: "observations".into(), source })
    };
    let error = run_one(&mut engine, &tasks, &mut { full }).unwrap_err();
    assert!(matches!(error, Error::Write { .. }));
    assert_eq!(fake(&engine).batches.len(), 1, "the second task was not run");
}

#[test]
fn a_pass_that_has_enough_begins_no_text() {
    let capacity = Capacity { tokens: 16, wanted: 16, pages: 40 };
    let tasks: Vec<_> = (0..6).map(|seed| score(&noise(20 + seed, 41))).collect();
    // How many batches were run when the first answer came, and what came of it all.
    let run = |enough| {
        let room = Room { capacity, batches: 40, enough };
        let model = SmallRoom(Each(vec![Fake::new(capacity)]), room);
        let mut engine = Engine::new(vec!["arm".to_owned()], model, Options::default());
        let stop = |_: undertext::engine::Finished<'_>| Err(Error::Interrupted { resume: None });
        run_one(&mut engine, &tasks, &mut { stop }).unwrap_err();
        let first = engine.into_model().0.0.remove(0).batches.len();
        let model = SmallRoom(Each(vec![Fake::new(capacity)]), room);
        let mut engine = Engine::new(vec!["arm".to_owned()], model, Options::default());
        (first, run_one(&mut engine, &tasks, &mut |_| Ok(())).unwrap())
    };
    let want: Vec<_> = tasks.iter().map(expected).collect();
    // 6 x 40 rows in batches of 16; a text takes two and a half, and the next one begins in its last.
    assert_eq!(run(40), (15, want.clone()));
    assert_eq!(run(1), (3, want.clone()));
    assert_eq!(run(3), (5, want));
}
