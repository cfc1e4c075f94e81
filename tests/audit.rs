//! The audit over scripted answers: recovery, PrivLeak's reference, and what is left of a run that fails.

use std::collections::HashMap;
use std::ops::Range;

use undertext::audit::{
    ArmInfo, Audit, Criteria, Findings, Model, OpenArms, Outcome, Plan, Reference, Request, Role, Statistics,
    Watch, measure_survival, verdicts,
};
use undertext::engine::Options;
use undertext::metrics::Measured;
use undertext::metrics::membership::Corpus;
use undertext::model::{Batch, Capacity, Counters, Each, Folded, Forward, Lockstep, Source};
use undertext::quant::{Precision, Scheme};
use undertext::{Error, Result};

use crate::family::{ANSWER, EOS, Family, word};

const INT8: Precision = Precision::nearest(Scheme::Int8);
const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 128 });

/// A model that says one word and ends, and finds each token as likely as the script says.
#[derive(Clone)]
struct Script {
    /// What it answers to every KnowMem question.
    knows: u32,
    /// How it continues every VerbMem prompt.
    recites: u32,
    /// log p of a token; 0 if it is not here.
    log_probs: HashMap<u32, f32>,
}

impl Script {
    fn new(knows: u32, recites: u32, log_probs: [f32; 4]) -> Self {
        let texts = [30, 31, 40, 41].map(word);
        Self {
            knows: word(knows),
            recites: word(recites),
            log_probs: texts.into_iter().zip(log_probs).collect(),
        }
    }
}

impl Forward for Script {
    fn capacity(&self) -> Capacity {
        Capacity { tokens: 64, wanted: 64, pages: 64 }
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<Folded>> {
        let answer = |wanted: &undertext::model::Wanted| {
            let last = batch.tokens[wanted.row as usize];
            let argmax = match last {
                ANSWER => self.knows,
                last if last == word(60) => self.recites,
                _ => EOS,
            };
            let given_logit = self.log_probs.get(&wanted.given).copied().unwrap_or(0.0);
            Folded { log_sum_exp: 0.0, argmax, max_logit: 0.0, given_logit }
        };
        Ok(batch.wanted.iter().map(answer).collect())
    }

    fn counters(&self) -> Counters {
        Counters { weight_passes: 1, peak_device_bytes: 7, ..Counters::default() }
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Told {
    arms: Vec<String>,
    answered: usize,
    smaller: usize,
    measured: Vec<usize>,
}

impl Watch for Told {
    fn arms(&mut self, arms: &[ArmInfo<'_>], first: usize, total: usize, tasks: usize) {
        assert_eq!(tasks, 64, "10 continuations, 2 x 10 questions, the truths of these 30, 4 texts");
        // Those that are asked again replace what was said of them.
        assert!(first == self.arms.len() || (self.smaller > 0 && first < self.arms.len()));
        assert!(first + arms.len() <= total);
        self.arms.truncate(first);
        self.arms.extend(arms.iter().map(|arm| format!("{}@{}", arm.model.name, arm.precision)));
        self.answered = 0;
    }

    fn answered(&mut self, done: usize) {
        assert_eq!(done, self.answered + 1);
        self.answered = done;
    }

    fn smaller(&mut self, _: &Error) {
        self.smaller += 1;
    }

    fn measured(&mut self, findings: &Findings) -> Result<()> {
        self.measured.push(findings.arms.len());
        Ok(())
    }
}

/// How one arm is opened, by its model's name.
type Open = dyn Fn(&str, Precision) -> Result<Script>;

/// Arms in groups of a fixed size.
struct Groups<'a> {
    sources: Vec<Source>,
    size: usize,
    open: &'a Open,
    /// How often batches were to be halved.
    halvings: Vec<u32>,
}

impl OpenArms for Groups<'_> {
    fn part(&mut self, arms: Range<usize>, halvings: u32) -> Result<Vec<Range<usize>>> {
        self.halvings.push(halvings);
        Ok(arms.clone().step_by(self.size).map(|first| first..arms.end.min(first + self.size)).collect())
    }

    fn open(&mut self, arms: Range<usize>) -> Result<Box<dyn Lockstep>> {
        let open = |source: &Source| {
            let name = source.checkpoint.path().file_name().unwrap().to_str().unwrap();
            (self.open)(name, source.precision)
        };
        Ok(Box::new(Each(self.sources[arms].iter().map(open).collect::<Result<Vec<_>>>()?)))
    }
}

/// What comes of an audit whose arms run in groups of `size`.
fn ask(audit: &Audit, size: usize, open: &Open, told: &mut Told) -> (Findings, Result<()>) {
    let mut groups = Groups { sources: audit.sources(), size, open, halvings: Vec::new() };
    audit.run(&mut groups, Options::default(), told, None)
}

fn request(family: &Family) -> Request {
    Request {
        target: family.path("target"),
        unlearned: vec![family.path("npo")],
        data: family.path("data"),
        precisions: vec![Precision::Full, INT8, INT4],
        ..Request::default()
    }
}

/// Of the ten answers, w20 scores 50, w21 scores 30, w22 and w23 score 10, other words nothing.
fn script(name: &str, precision: Precision) -> Script {
    match (name, precision) {
        // Forget texts look seen, holdout texts do not.
        ("target", INT4) => Script::new(21, 20, [-0.1, -0.1, -5.0, -5.0]),
        ("target", _) => Script::new(20, 20, [-0.1, -0.1, -5.0, -5.0]),
        ("npo", INT4) => Script::new(21, 29, [-1.0, -1.0, -1.0, -1.0]),
        ("npo", _) => Script::new(22, 29, [-1.0, -1.0, -1.0, -1.0]),
        // One of the four pairs of a forget and a holdout text has the holdout text likelier.
        ("retrain", _) => Script::new(29, 29, [-1.0, -3.0, -2.0, -4.0]),
        (other, _) => panic!("no script for {other}"),
    }
}

fn open(name: &str, precision: Precision) -> Result<Script> {
    Ok(script(name, precision))
}

fn run(request: Request) -> Findings {
    let audit = Audit::open(Plan::new(request).unwrap()).unwrap();
    let (findings, result) = ask(&audit, 2, &open, &mut Told::default());
    result.unwrap();
    findings
}

fn value(measured: &Measured) -> f64 {
    measured.value().unwrap_or_else(|| panic!("{measured:?}"))
}

/// Equal but for the rounding of a few operations on numbers of this size.
fn same(got: &Measured, want: f64) {
    assert!((value(got) - want).abs() < 1e-12, "{got:?} for {want}");
}

#[test]
fn recovery_names_its_denominators() {
    let family = Family::new(&["target", "npo"]);
    let findings = run(request(&family));
    assert!(findings.is_complete());
    let knowmem = |model, precision| value(&findings.arm(model, precision).unwrap().knowmem_forget.value);
    assert_eq!([knowmem(0, Precision::Full), knowmem(0, INT4)], [50.0, 30.0]);
    assert_eq!([knowmem(1, Precision::Full), knowmem(1, INT8), knowmem(1, INT4)], [10.0, 10.0, 30.0]);

    let recovery = findings.recovery();
    let of: Vec<_> = recovery.iter().map(|r| (r.unlearned, r.precision, r.metric)).collect();
    let all =
        [INT8, INT4].map(|precision| [(1, precision, "verbmem_forget"), (1, precision, "knowmem_forget")]);
    assert_eq!(of, all.concat());

    let int8 = &recovery[1].ratios;
    same(&int8.of_gap_to_target, 0.0);
    same(&int8.of_gap_to_target_same_precision, 0.0);
    same(&int8.share_of_target_same_precision, 10.0 / 50.0);
    let int4 = &recovery[3].ratios;
    same(&int4.of_gap_to_target, (30.0 - 10.0) / (50.0 - 10.0));
    same(&int4.of_gap_to_target_same_precision, (30.0 - 10.0) / (30.0 - 10.0));
    same(&int4.share_of_target_same_precision, 1.0);
}

#[test]
fn counters_add_up_and_the_watcher_hears_of_every_arm() {
    let family = Family::new(&["target", "npo"]);
    let audit = Audit::open(Plan::new(request(&family)).unwrap()).unwrap();
    let headers: u64 =
        audit.sources().iter().step_by(3).map(|source| source.checkpoint.tensors().header_bytes()).sum();
    let mut told = Told::default();
    let (findings, result) = ask(&audit, 4, &open, &mut told);
    result.unwrap();
    let arms = ["target@fp16", "target@int8", "target@int4-g128", "npo@fp16", "npo@int8", "npo@int4-g128"];
    assert_eq!(told.arms, arms);
    assert_eq!(told.measured, [4, 6], "a group of four arms, and the rest");
    let counters = &findings.counters;
    assert_eq!((counters.weight_passes, counters.peak_device_bytes, counters.disk_bytes), (6, 7, headers));
    // Four words a text, one a truth; a generation is a word and the end.
    assert_eq!(counters.tokens_scored, 6 * (4 * 4 + 2 * 10));
    // Forget and retain questions are the same texts here, so they are asked once.
    assert_eq!(counters.tokens_generated, 6 * 2 * 20);
}

#[test]
fn privleak_is_measured_against_what_was_given() {
    let family = Family::new(&["target", "npo", "retrain"]);
    let leaks = |findings: &Findings, model| {
        let arm = findings.arm(model, INT4).unwrap();
        findings
            .priv_leak(arm)
            .into_iter()
            .map(|leak| (leak.reference, value(&leak.value)))
            .collect::<Vec<_>>()
    };
    let findings = run(request(&family));
    assert_eq!(leaks(&findings, 0), [(Reference::Half, -100.0)]);
    assert_eq!(leaks(&findings, 1), [(Reference::Half, 0.0)]);

    let findings = run(Request { corpus: Some(Corpus::Books), ..request(&family) });
    let corpus = 100.0 * (0.5 - 0.5393) / 0.5393;
    assert_eq!(leaks(&findings, 1), [(Reference::Corpus, corpus)]);

    let retrain = Some(family.path("retrain"));
    let findings = run(Request { retrain, corpus: Some(Corpus::Books), ..request(&family) });
    // The retrained model's AUC is 1/4, so an AUC of 1/2 is 100 % above it.
    assert_eq!(leaks(&findings, 1), [(Reference::Retrain, 100.0), (Reference::Corpus, corpus)]);
    assert_eq!(leaks(&findings, 2)[0], (Reference::Retrain, 0.0));
}

#[test]
fn what_was_measured_outlives_a_failure() {
    let family = Family::new(&["target", "npo", "retrain"]);
    let plan = Plan::new(Request { retrain: Some(family.path("retrain")), ..request(&family) }).unwrap();
    let audit = Audit::open(plan).unwrap();
    let failing = |name: &str, precision| {
        if name == "npo" && precision == INT4 {
            return Err(Error::Device { during: "loading".to_owned(), report: "it is gone".to_owned() });
        }
        open(name, precision)
    };
    let (findings, result) = ask(&audit, 1, &failing, &mut Told::default());
    assert_eq!(result.unwrap_err().exit_code(), 4);
    assert_eq!(findings.arms.len(), 5);
    assert!(!findings.is_complete());
    assert!(findings.stopped.as_deref().unwrap().contains("it is gone"));
    // int8 of the unlearned model is known; the reference is not.
    let recovery = findings.recovery();
    assert_eq!(recovery.len(), 2);
    same(&recovery[1].ratios.share_of_target_same_precision, 0.2);
    let leak = &findings.priv_leak(&findings.arms[0])[0];
    assert_eq!(leak.reference, Reference::Retrain);
    assert!(leak.value.reason().unwrap().contains("was not measured"), "{leak:?}");
}

#[test]
fn an_arm_whose_logits_are_not_finite_is_named_and_does_not_end_the_others() {
    let family = Family::new(&["target", "npo"]);
    let audit = Audit::open(Plan::new(request(&family)).unwrap()).unwrap();
    let broken = |name: &str, precision| {
        if (name, precision) == ("target", INT8) {
            return Ok(Script::new(20, 20, [f32::NAN, 0.0, 0.0, 0.0]));
        }
        open(name, precision)
    };
    let (findings, result) = ask(&audit, 3, &broken, &mut Told::default());
    assert!(result.unwrap_err().to_string().contains("target@int8"));
    let measured: Vec<_> = findings.arms.iter().map(|arm| (arm.model, arm.precision)).collect();
    assert_eq!(measured, [(0, Precision::Full), (0, INT4)], "the rest of its group");
    assert!(findings.stopped.is_some());
}

#[test]
fn a_device_that_runs_out_of_memory_gets_one_second_chance() {
    let family = Family::new(&["target", "npo"]);
    let audit = Audit::open(Plan::new(request(&family)).unwrap()).unwrap();
    let out = || Error::OutOfMemory { what: "weights".to_owned(), bytes: 1, report: "no".to_owned() };
    for fails in [1, 2] {
        let left = std::cell::Cell::new(fails);
        let open = move |name: &str, precision| {
            if name == "npo" && left.get() > 0 {
                left.set(left.get() - 1);
                return Err(out());
            }
            open(name, precision)
        };
        let mut groups = Groups { sources: audit.sources(), size: 3, open: &open, halvings: Vec::new() };
        let mut told = Told::default();
        let (findings, result) = audit.run(&mut groups, Options::default(), &mut told, None);
        assert_eq!((&groups.halvings[..], told.smaller), (&[0, 1][..], 1), "{fails}");
        assert_eq!(result.is_ok(), fails == 1);
        assert_eq!(findings.arms.len(), if fails == 1 { 6 } else { 3 });
        assert_eq!(result.err().map(|error| error.exit_code()), (fails == 2).then_some(4));
    }
}

#[test]
fn a_value_that_is_missing_takes_only_its_own_ratios_along() {
    let family = Family::new(&["target", "npo"]);
    let mut findings = run(request(&family));
    // As if the target had not been measured at int4.
    findings.arms.retain(|arm| (arm.model, arm.precision) != (Plan::TARGET, INT4));
    let ratios = findings.recovery().pop().unwrap().ratios;
    same(&ratios.of_gap_to_target, 0.5);
    let reason = ratios.share_of_target_same_precision.reason().unwrap();
    assert!(reason.contains("target was not measured at int4-g128"), "{reason}");
    assert_eq!(ratios.of_gap_to_target_same_precision.reason(), Some(reason));
}

#[test]
fn tokenizers_must_agree_or_be_named() {
    let family = Family::new(&["target", "npo"]);
    // A tokenizer that adds no BOS.
    family.change("npo/tokenizer.json", &serde_json::json!({"post_processor": null}));
    let error = Audit::open(Plan::new(request(&family)).unwrap()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.contains("npo") && message.contains("target"), "{message}");

    let named = Request { tokenizer: Some(family.path("target")), ..request(&family) };
    assert!(Audit::open(Plan::new(named).unwrap()).is_ok());
}

#[test]
fn broken_checkpoints_are_found_before_any_work() {
    let family = Family::new(&["target", "npo"]);
    family.change("npo/config.json", &serde_json::json!({"intermediate_size": 32}));
    let message = Audit::open(Plan::new(request(&family)).unwrap()).unwrap_err().to_string();
    for part in ["npo", "gate_proj", "[24, 16]", "[32, 16]"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn limit_takes_the_first_examples() {
    let family = Family::new(&["target", "npo"]);
    let audit = Audit::open(Plan::new(Request { limit: Some(6), ..request(&family) }).unwrap()).unwrap();
    struct Quiet;
    impl Watch for Quiet {
        fn arms(&mut self, _: &[ArmInfo<'_>], _: usize, _: usize, _: usize) {}
        fn answered(&mut self, _: usize) {}
        fn smaller(&mut self, _: &Error) {}
        fn measured(&mut self, _: &Findings) -> Result<()> {
            Ok(())
        }
    }
    let mut groups = Groups { sources: audit.sources(), size: 6, open: &open, halvings: Vec::new() };
    let (findings, result) = audit.run(&mut groups, Options::default(), &mut Quiet, None);
    result.unwrap();
    let knowmem = &findings.arms[0].knowmem_forget;
    assert_eq!((knowmem.n(), knowmem.asked), (6, 6));
    // Five of the first six answers are w20.
    same(&knowmem.value, 100.0 * 5.0 / 6.0);
    assert_eq!((findings.arms[0].auc.n(), findings.arms[0].auc.asked), (4, 4));
}

#[test]
fn plan_orders_models_and_precisions() {
    let family = Family::new(&[]);
    let plan = Plan::new(Request {
        retrain: Some(family.path("retrain")),
        precisions: vec![INT4],
        ..request(&family)
    })
    .unwrap();
    let models: Vec<_> = plan.models.iter().map(|Model { name, role, .. }| (name.as_str(), *role)).collect();
    assert_eq!(models, [("target", Role::Target), ("npo", Role::Unlearned), ("retrain", Role::Retrain)]);
    assert_eq!(plan.precisions, [Precision::Full, INT4]);
    assert_eq!(plan.notices.len(), 1, "{:?}", plan.notices);
    assert_eq!((plan.retrain(), plan.unlearned().collect::<Vec<_>>()), (Some(2), vec![1]));
}

#[test]
fn few_examples_are_inconclusive_and_more_are_not() {
    let family = Family::new(&["target", "npo", "retrain"]);
    let request = Request { retrain: Some(family.path("retrain")), ..request(&family) };
    let judged = |limit| {
        let findings = run_limited(Request { limit, ..request.clone() });
        let statistics = Statistics::of(&findings);
        verdicts(&findings, &statistics).into_iter().map(|v| (v.outcome, v.because)).collect::<Vec<_>>()
    };
    for (outcome, because) in judged(Some(3)) {
        assert_eq!(outcome, Outcome::Inconclusive);
        assert!(because.contains("3 examples are too few"), "{because}");
    }
    // Of ten continuations the target recites five and the quantized unlearned model none; of its questions the target at
    // int4 answers three, all three the quantized model: too few to be sure.
    let all = judged(None);
    assert_eq!(all[1].0, Outcome::Inconclusive, "{all:?}");
}

fn run_limited(request: Request) -> Findings {
    let audit = Audit::open(Plan::new(request).unwrap()).unwrap();
    struct Quiet;
    impl Watch for Quiet {
        fn arms(&mut self, _: &[ArmInfo<'_>], _: usize, _: usize, _: usize) {}
        fn answered(&mut self, _: usize) {}
        fn smaller(&mut self, _: &Error) {}
        fn measured(&mut self, _: &Findings) -> Result<()> {
            Ok(())
        }
    }
    let mut groups = Groups { sources: audit.sources(), size: 6, open: &open, halvings: Vec::new() };
    let (findings, result) = audit.run(&mut groups, Options::default(), &mut Quiet, None);
    result.unwrap();
    findings
}

#[test]
fn statistics_depend_on_the_seed_alone() {
    let family = Family::new(&["target", "npo"]);
    let of = |seed| {
        let criteria = Criteria { seed, resamples: 100, ..Criteria::default() };
        let statistics = Statistics::of(&run(Request { criteria, ..request(&family) }));
        (statistics.arms, statistics.recovery, statistics.controls)
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1).0, of(2).0);
}

#[test]
fn survival_reads_the_checkpoints_apart_from_the_audit() {
    let family = Family::new(&["target", "npo"]);
    let plan = Plan::new(request(&family)).unwrap();
    let mut told = Vec::new();
    let (survival, bytes) =
        measure_survival(&plan, &[1], &mut |name, done, total| told.push((name.to_owned(), done, total)));
    let found: Vec<_> = survival.iter().map(|found| (found.unlearned, found.precision)).collect();
    assert_eq!(found, [(1, INT8), (1, INT4)]);
    assert!(survival.iter().all(|found| found.value.value().is_some()), "{survival:?}");
    let file = |name: &str| std::fs::metadata(family.path(name).join("model.safetensors")).unwrap().len();
    assert_eq!(bytes, file("target") + file("npo"), "each is read once");
    assert!(told.last().is_some_and(|(name, done, total)| name == "npo" && done == total));

    // What cannot be compared has a reason, and the audit goes on.
    family.change("npo/config.json", &serde_json::json!({"num_hidden_layers": 2}));
    let (survival, _) = measure_survival(&plan, &[1], &mut |_, _, _| {});
    assert!(survival[0].value.reason().is_some(), "{survival:?}");
}

#[test]
fn steps_of_a_series_are_unlearned_models() {
    let family = Family::new(&["target", "npo"]);
    let path = |name: &str| family.path(name).display().to_string();
    let series = format!("size={}@2,{}@1", path("npo"), path("ga"));
    let plan = Plan::new(Request { series: vec![series.parse().unwrap()], ..request(&family) }).unwrap();
    let names: Vec<_> = plan.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["target", "npo", "ga"]);
    let steps: Vec<_> = plan.series[0].steps.iter().map(|step| (step.value, step.model)).collect();
    assert_eq!(steps, [(1.0, 2), (2.0, 1)]);
    // A series alone is enough.
    let plan =
        Plan::new(Request { unlearned: vec![], series: vec![series.parse().unwrap()], ..request(&family) });
    assert_eq!(plan.unwrap().unlearned().count(), 2);
}

#[test]
fn criteria_that_make_no_sense_are_refused() {
    let family = Family::new(&["target", "npo"]);
    let good = Criteria::default();
    for criteria in [
        Criteria { resamples: 10, ..good },
        Criteria { held_below: 0.3, ..good },
        Criteria { resurrected_above: 1.5, ..good },
        Criteria { collapsed_below: f64::NAN, ..good },
        Criteria { least_gap: -1.0, ..good },
    ] {
        let error = Plan::new(Request { criteria, ..request(&family) }).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{criteria:?}");
    }
}
