//! The audit over scripted answers: recovery, PrivLeak's reference, and what is left of a run that fails.

use std::collections::HashMap;

use undertext::audit::{ArmInfo, Audit, Findings, Model, Needs, Plan, Reference, Request, Role, Watch};
use undertext::checkpoint::Checkpoint;
use undertext::metrics::Measured;
use undertext::metrics::membership::Corpus;
use undertext::model::{Batch, Capacity, Counters, Folded, Forward};
use undertext::quant::{Precision, Scheme};
use undertext::{Error, Result};

use crate::family::{ANSWER, EOS, Family, word};

const INT8: Precision = Precision::Quantized(Scheme::Int8);
const INT4: Precision = Precision::Quantized(Scheme::Int4 { group: 128 });

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
    last_task: usize,
    measured: Vec<usize>,
}

impl Watch for Told {
    fn arm(&mut self, arm: ArmInfo<'_>) {
        assert_eq!(arm.index, self.arms.len());
        assert_eq!(arm.tasks, 34, "10 continuations, 2 x 10 questions, 4 texts");
        self.arms.push(format!("{}@{}", arm.model.name, arm.precision));
    }

    fn task(&mut self, done: usize) {
        self.last_task = done;
    }

    fn measured(&mut self, findings: &Findings) -> Result<()> {
        assert_eq!(self.last_task, 34);
        self.measured.push(findings.arms.len());
        Ok(())
    }
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

fn open(checkpoint: &Checkpoint, precision: Precision, _: Needs) -> Result<Box<dyn Forward>> {
    let name = checkpoint.path().file_name().unwrap().to_str().unwrap();
    Ok(Box::new(script(name, precision)))
}

fn run(request: Request) -> Findings {
    let audit = Audit::open(Plan::new(request).unwrap()).unwrap();
    let (findings, result) = audit.run(&mut open, &mut Told::default());
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
    let mut told = Told::default();
    let (findings, result) = audit.run(&mut open, &mut told);
    result.unwrap();
    let arms = ["target@fp16", "target@int8", "target@int4-g128", "npo@fp16", "npo@int8", "npo@int4-g128"];
    assert_eq!(told.arms, arms);
    assert_eq!(told.measured, [1, 2, 3, 4, 5, 6]);
    let counters = findings.counters();
    assert_eq!((counters.weight_passes, counters.peak_device_bytes), (6, 7));
    // Four words a text; a generation is a word and the end.
    assert_eq!(counters.tokens_scored, 6 * 4 * 4);
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
    let mut failing = |checkpoint: &Checkpoint, precision, needs| {
        if checkpoint.path().ends_with("npo") && precision == INT4 {
            return Err(Error::Device { during: "loading".to_owned(), report: "it is gone".to_owned() });
        }
        open(checkpoint, precision, needs)
    };
    let (findings, result) = audit.run(&mut failing, &mut Told::default());
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
fn logits_that_are_not_finite_name_the_arm() {
    let family = Family::new(&["target", "npo"]);
    let audit = Audit::open(Plan::new(request(&family)).unwrap()).unwrap();
    let mut broken = |_: &Checkpoint, _: Precision, _: Needs| -> Result<Box<dyn Forward>> {
        Ok(Box::new(Script::new(20, 20, [f32::NAN, 0.0, 0.0, 0.0])))
    };
    let (findings, result) = audit.run(&mut broken, &mut Told::default());
    assert!(result.unwrap_err().to_string().contains("target@fp16"));
    assert!(findings.arms.is_empty());
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
        fn arm(&mut self, _: ArmInfo<'_>) {}
        fn task(&mut self, _: usize) {}
        fn measured(&mut self, _: &Findings) -> Result<()> {
            Ok(())
        }
    }
    let (findings, result) = audit.run(&mut open, &mut Quiet);
    result.unwrap();
    let knowmem = &findings.arms[0].knowmem_forget;
    assert_eq!(knowmem.n, 6);
    // Five of the first six answers are w20.
    same(&knowmem.value, 100.0 * 5.0 / 6.0);
    assert_eq!(findings.arms[0].auc.n, 4);
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
