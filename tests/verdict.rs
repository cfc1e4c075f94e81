//! The rules that make verdicts of figures.

use undertext::audit::{
    ArmResult, Auc, Criteria, Findings, Metric, Outcome, Plan, Request, Statistics, verdicts,
};
use undertext::metrics::Measured;
use undertext::model::Counters;
use undertext::quant::{Precision, Scheme};

const INT4: Precision = Precision::nearest(Scheme::Int4 { group: 128 });

/// VerbMem, KnowMem and KnowMem retain of an arm, 0..=1.
type Scores = [f64; 3];

/// Target, unlearned, retrain; each at full precision and quantized.
#[derive(Clone, Copy)]
struct Case {
    target: [Scores; 2],
    unlearned: [Scores; 2],
    retrain: Option<[Scores; 2]>,
}

/// A target that learned, a retrained model that did not, and an unlearned model that quantization changes nothing in.
const PLAIN: Case = Case {
    target: [[0.9, 0.95, 0.9], [0.85, 0.9, 0.85]],
    unlearned: [[0.2, 0.15, 0.85], [0.2, 0.15, 0.85]],
    retrain: Some([[0.2, 0.1, 0.9], [0.2, 0.1, 0.9]]),
};

/// `n` scores around a mean; `arm` makes each arm's own.
fn scores(mean: f64, n: usize, arm: usize) -> Vec<f64> {
    let wave = |example: usize| ((example * (7 + 2 * arm) + arm) as f64).sin();
    (0..n).map(|example| (mean + 0.15 * wave(example)).clamp(0.0, 1.0)).collect()
}

fn findings(case: Case, n: usize) -> Findings {
    let plan = Plan::new(Request {
        target: "target".into(),
        unlearned: vec!["unlearned".into()],
        retrain: case.retrain.map(|_| "retrain".into()),
        precisions: vec![Precision::Full, INT4],
        ..Request::default()
    });
    let models = [Some(case.target), Some(case.unlearned), case.retrain];
    let models = models.into_iter().flatten().enumerate();
    let arms = models.flat_map(|(model, scores)| {
        [Precision::Full, INT4].into_iter().zip(scores).map(move |arm| (model, arm))
    });
    let arm = |(model, (precision, [verbmem, knowmem, retain])): (usize, (Precision, Scores))| {
        let metric = |mean: f64, metric: usize| match mean {
            0.0 => Metric::mean(vec![0.0; n]),
            mean => Metric::mean(scores(mean, n, 6 * metric + 2 * model + usize::from(precision == INT4))),
        };
        ArmResult {
            model,
            precision,
            scheme: precision.scheme(Scheme::F16),
            verbmem_forget: metric(verbmem, 0),
            knowmem_forget: metric(knowmem, 1),
            knowmem_retain: metric(retain, 2),
            auc: Auc { value: Measured::Value(0.5), asked: 2, forget: vec![1.0], holdout: vec![1.0] },
            truths: [(); 3].map(|()| [].as_slice().into()),
            texts: Default::default(),
        }
    };
    Findings {
        plan: plan.unwrap(),
        arms: arms.map(arm).collect(),
        truncated: 0,
        questions: Default::default(),
        tokens: Default::default(),
        apart: Vec::new(),
        stopped: None,
        survival: Vec::new(),
        codes_disk_bytes: 0,
        counters: Counters::default(),
    }
}

fn judge(case: Case, n: usize) -> (Outcome, String) {
    judge_by(case, n, Criteria::default())
}

fn judge_by(case: Case, n: usize, criteria: Criteria) -> (Outcome, String) {
    let mut findings = findings(case, n);
    findings.plan.criteria = criteria;
    let verdict = verdicts(&findings, &Statistics::of(&findings)).pop().unwrap();
    assert_eq!((verdict.unlearned, verdict.precision), (1, INT4));
    (verdict.outcome, verdict.because)
}

fn quantized(scores: Scores) -> Case {
    let mut case = PLAIN;
    case.unlearned[1] = scores;
    case
}

#[test]
fn what_came_back_is_resurrected() {
    let (outcome, because) = judge(quantized([0.8, 0.85, 0.85]), 100);
    assert_eq!(outcome, Outcome::Resurrected, "{because}");
    assert!(because.starts_with("VerbMem: 9") && because.contains("KnowMem: 9"), "{because}");
    // One metric that finds it is enough, and comes first.
    let (outcome, because) = judge(quantized([0.2, 0.85, 0.85]), 100);
    assert_eq!(outcome, Outcome::Resurrected, "{because}");
    assert!(because.starts_with("KnowMem: 9"), "{because}");
}

#[test]
fn what_stayed_away_is_held() {
    let (outcome, because) = judge(PLAIN, 100);
    assert_eq!(outcome, Outcome::Held, "{because}");
    assert!(because.contains("VerbMem: ") && because.contains("KnowMem: ") && because.contains("p < 0.001"));
    // Also where quantization takes more away.
    assert_eq!(judge(quantized([0.1, 0.05, 0.85]), 100).0, Outcome::Held);
}

#[test]
fn what_lies_on_the_margin_is_inconclusive() {
    let margin = |share: f64| quantized([0.2 + share * 0.65, 0.15 + share * 0.75, 0.85]);
    let (outcome, because) = judge(margin(0.2), 100);
    assert_eq!(outcome, Outcome::Inconclusive, "{because}");
    assert!(because.contains("KnowMem: 2") || because.contains("KnowMem: 1"), "{because}");
    // Other margins, other verdicts, of the same figures.
    let (mild, strict) = (
        Criteria { resurrected_above: 0.5, held_below: 0.5, ..Criteria::default() },
        Criteria { resurrected_above: 0.05, held_below: 0.05, ..Criteria::default() },
    );
    assert_eq!(judge_by(margin(0.2), 100, mild).0, Outcome::Held);
    assert_eq!(judge_by(margin(0.2), 100, strict).0, Outcome::Resurrected);
}

#[test]
fn few_examples_decide_nothing() {
    for case in [PLAIN, quantized([0.8, 0.85, 0.85])] {
        let (outcome, because) = judge(case, 3);
        assert_eq!(outcome, Outcome::Inconclusive, "{because}");
    }
    // Nor are they evidence of a collapse.
    let mut case = PLAIN;
    case.unlearned[0] = [0.0; 3];
    assert_eq!(judge(case, 3).0, Outcome::Inconclusive);
}

#[test]
fn a_collapsed_model_is_void() {
    let mut case = PLAIN;
    case.unlearned = [[0.0; 3], [0.3, 0.5, 0.5]];
    let (outcome, because) = judge(case, 50);
    assert_eq!(outcome, Outcome::Void);
    assert!(because.contains("collapsed") && because.contains("0.0 at full precision"), "{because}");

    // Questions that the target cannot answer either say nothing about the unlearned model.
    case.target = [[0.9, 0.9, 0.0]; 2];
    let (outcome, because) = judge(case, 50);
    assert_eq!(outcome, Outcome::Void);
    assert!(because.starts_with("the target's KnowMem retain is 0.0 at full precision"), "{because}");
}

#[test]
fn nothing_to_lose_is_void() {
    // The target knows no more than the retrained model.
    let mut never = PLAIN;
    never.target = [[0.2, 0.1, 0.9], [0.2, 0.1, 0.9]];
    never.unlearned = [[0.05, 0.05, 0.85], [0.05, 0.05, 0.85]];
    let (outcome, because) = judge(never, 100);
    assert!(outcome == Outcome::Void && because.contains("never knew"), "{because}");
    // Unlearning did nothing.
    let mut kept = PLAIN;
    kept.unlearned = [[0.9, 0.95, 0.9]; 2];
    let (outcome, because) = judge(kept, 100);
    assert!(outcome == Outcome::Void && because.contains("nothing was forgotten"), "{because}");
    // The precision destroys even the target.
    let mut destroyed = PLAIN;
    destroyed.target[1] = [0.1, 0.05, 0.3];
    let (outcome, because) = judge(destroyed, 100);
    assert!(outcome == Outcome::Void && because.contains("at this precision"), "{because}");
    // One metric that says nothing does not silence the other.
    let mut half = PLAIN;
    half.unlearned = [[0.9, 0.15, 0.85]; 2];
    let (outcome, because) = judge(half, 100);
    assert!(outcome == Outcome::Held && because.starts_with("KnowMem"), "{because}");
}

#[test]
fn what_quantization_gives_everybody_is_no_resurrection() {
    let mut case = quantized([0.5, 0.5, 0.85]);
    assert_eq!(judge(case, 100).0, Outcome::Resurrected);
    case.retrain = Some([[0.2, 0.1, 0.9], [0.5, 0.45, 0.9]]);
    let (outcome, because) = judge(case, 100);
    assert_eq!(outcome, Outcome::Inconclusive, "{because}");
    assert!(because.contains("beyond what the retrained model gains"), "{because}");
    case.retrain = None;
    assert_eq!(judge(case, 100).0, Outcome::Resurrected);
}
