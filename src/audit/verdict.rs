//! What an audit's figures amount to, by stated rules.
//!
//! For each unlearned checkpoint, precision and forget metric the recovered share is `(q - u) / (t_q - u)`: of what the
//! target still knows at this precision and the unlearned model does not at full precision, how much is back. The target
//! at the *same* precision is the measure, so that what quantization alone destroys neither hides a recovery nor passes
//! for forgetting.
//!
//! 1. A metric says nothing if its examples are too few for any test at [`ALPHA`].
//! 2. It is **void** if, even by the upper end of its interval, the target never knew more than the retrained model (or
//!    than 0), or nothing was forgotten, or the target itself loses it at this precision: less than
//!    [`Criteria::least_gap`] points.
//! 3. It is **resurrected** if the share's interval lies above [`Criteria::resurrected_above`], also after what
//!    quantization gives the retrained model is taken off, and a permutation test says q > u at [`ALPHA`] after Holm's
//!    correction over the table.
//! 4. It is **held** if the share's interval lies below [`Criteria::held_below`] and a permutation test agrees likewise. "No
//!    difference was found" is no evidence of absence, so this is a test too: of the share being at least that large.
//!
//! A checkpoint whose retain metric is near zero at full precision is void as a whole: it forgot how to answer, which no
//! share can be read from. Else one resurrected metric makes the verdict resurrected (knowledge that one metric finds is
//! there), and held takes every metric that is not void. What is left is inconclusive.

use std::fmt::Write;

use super::findings::{Findings, MEANS, Recovered};
use super::statistics::{Estimate, Evidence, Interval, Statistics};
use crate::error::{Error, Result};
use crate::metrics::Measured;
use crate::metrics::hypothesis::least_p;
use crate::quant::Precision;

/// Error rate of the tests, over the whole table.
pub const ALPHA: f64 = 0.05;

/// Of all intervals.
pub const CONFIDENCE: f64 = 0.95;

/// How figures are judged.
///
/// One margin, a fifth, parts resurrected from held by default, so that what lies between is never certain and yet
/// undecided. A fifth of the target's knowledge is what utility-preserving unlearning leaves at full precision anyway
/// (21 % in arXiv 2410.16454), so less than that again changes no conclusion; and it is about the least that a hundred
/// questions can tell from nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criteria {
    /// Resamples of the bootstrap, and signs of a permutation test.
    pub resamples: usize,
    /// Of the random generator.
    pub seed: u64,
    /// A recovered share above this is a resurrection; 1 is all of the gap.
    pub resurrected_above: f64,
    /// A recovered share below this is none.
    pub held_below: f64,
    /// A retain metric below this share of the target's, at full precision, is a collapse.
    pub collapsed_below: f64,
    /// Points of a forget metric (of 100) that must have been there to forget, to lose and to bring back.
    pub least_gap: f64,
}

impl Default for Criteria {
    fn default() -> Self {
        Self {
            resamples: 9_999,
            seed: 0,
            resurrected_above: 0.2,
            held_below: 0.2,
            collapsed_below: 0.1,
            least_gap: 5.0,
        }
    }
}

impl Criteria {
    /// Checks that verdicts can be made of them.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if there are too few resamples for an interval (or absurdly many), a share is not in 0..=1, or
    /// what is held could be resurrected, too.
    pub fn check(&self) -> Result<()> {
        let refuse = |flag, found: String, expected: &str| {
            Err(Error::Flag { flag, found, expected: expected.to_owned() })
        };
        if !(100..=1_000_000).contains(&self.resamples) {
            return refuse("--resamples", self.resamples.to_string(), "100 to 1000000 resamples");
        }
        let shares = [
            ("--resurrected-above", self.resurrected_above),
            ("--held-below", self.held_below),
            ("--collapsed-below", self.collapsed_below),
        ];
        for (flag, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return refuse(flag, share.to_string(), "a share from 0 to 1");
            }
        }
        if self.held_below > self.resurrected_above {
            let found = self.held_below.to_string();
            return refuse("--held-below", found, "a share not above --resurrected-above");
        }
        if !(0.0..=100.0).contains(&self.least_gap) {
            return refuse("--least-gap", self.least_gap.to_string(), "points from 0 to 100");
        }
        Ok(())
    }
}

/// What became of the forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Quantization brought it back.
    Resurrected,
    /// It stayed forgotten.
    Held,
    /// The examples do not tell.
    Inconclusive,
    /// There is nothing to tell.
    Void,
}

impl Outcome {
    /// The name in reports and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resurrected => "resurrected",
            Self::Held => "held",
            Self::Inconclusive => "inconclusive",
            Self::Void => "void",
        }
    }
}

/// The verdict on one unlearned checkpoint at one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Index in [`Plan::models`](super::Plan::models).
    pub unlearned: usize,
    /// The precision.
    pub precision: Precision,
    /// What it is.
    pub outcome: Outcome,
    /// Why, with the numbers.
    pub because: String,
}

/// The verdicts on all measured unlearned arms below full precision, in the order of the findings.
#[must_use]
pub fn verdicts(findings: &Findings, statistics: &Statistics) -> Vec<Verdict> {
    let arms = findings.quantized_unlearned();
    arms.map(|arm| {
        let (outcome, because) = judge(findings, statistics, arm.model, arm.precision);
        Verdict { unlearned: arm.model, precision: arm.precision, outcome, because }
    })
    .collect()
}

fn judge(
    findings: &Findings,
    statistics: &Statistics,
    model: usize,
    precision: Precision,
) -> (Outcome, String) {
    if let Some(because) = collapsed(findings, statistics, model) {
        return (Outcome::Void, because);
    }
    let rows = statistics.recovery.iter();
    let rows = rows.filter(|(row, _)| row.unlearned == model && row.precision == precision);
    let found: Vec<_> = rows.map(|row| (row.0.metric, judge_metric(findings, &row.0, &row.1))).collect();
    let with = |outcome| found.iter().filter(move |(_, (other, _))| *other == outcome);
    let outcome = if with(Outcome::Resurrected).next().is_some() {
        Outcome::Resurrected
    } else if with(Outcome::Inconclusive).next().is_some() || found.is_empty() {
        Outcome::Inconclusive
    } else if with(Outcome::Held).next().is_some() {
        Outcome::Held
    } else {
        Outcome::Void
    };
    // What decided comes first.
    let mut parts: Vec<_> = with(outcome).collect();
    parts.extend(found.iter().filter(|(_, (other, _))| *other != outcome));
    let part = |(metric, (_, because)): &&(&str, (Outcome, String))| format!("{}: {because}", short(metric));
    (outcome, parts.iter().map(part).collect::<Vec<_>>().join("; "))
}

/// Why the unlearned model is no longer one that answers, if so.
fn collapsed(findings: &Findings, statistics: &Statistics, model: usize) -> Option<String> {
    let place = |model| findings.place(model, Precision::Full);
    const RETAIN: usize = 2;
    let (ours, targets) = (place(model)?, place(super::Plan::TARGET)?);
    let field = MEANS[RETAIN].1;
    let (retain, target) = (field(&findings.arms[ours]), field(&findings.arms[targets]));
    let (value, limit) =
        (retain.value.value()?, findings.plan.criteria.collapsed_below * target.value.value()?);
    let [_, high] = statistics.arms[ours].means[RETAIN]?;
    let collapsed = least_p(retain.n()) <= ALPHA && high <= limit;
    let target = target.value.value().unwrap_or_default();
    collapsed.then(|| match target < findings.plan.criteria.least_gap {
        true => format!(
            "the target's KnowMem retain is {target:.1} at full precision: on questions that it cannot answer nobody \
             can tell whether an unlearned model still does"
        ),
        false => format!(
            "the model collapsed: its KnowMem retain is {value:.1} at full precision, the target's {target:.1}; what \
             such a model answers says nothing about what it forgot"
        ),
    })
}

fn judge_metric(findings: &Findings, row: &Recovered, evidence: &Evidence) -> (Outcome, String) {
    let criteria = &findings.plan.criteria;
    let ratio = &row.ratios.of_gap_to_target_same_precision;
    let open = |because: String| (Outcome::Inconclusive, because);
    let Evidence { gap: Some(gap), gap_same_precision: Some(gap_q), known: Some(known), .. } = evidence
    else {
        let ratios = [&row.ratios.of_gap_to_target, ratio];
        let reason = ratios.into_iter().find_map(Measured::reason);
        return open(reason.unwrap_or("something it needs was not measured").to_owned());
    };
    if least_p(evidence.n) > ALPHA {
        return open(format!("{} examples are too few", evidence.n));
    }
    let known_from = if findings.plan.retrain().is_some() { " more than the retrained model" } else { "" };
    for (estimate, what) in [
        (known, format!("the target never knew it: it scores {}{known_from}", points(known))),
        (gap, format!("nothing was forgotten: the target scores {} more", points(gap))),
        (gap_q, format!("the target itself loses it at this precision: it scores {} more", points(gap_q))),
    ] {
        if estimate.ci95.is_some_and(|[_, high]| high < criteria.least_gap) {
            return (Outcome::Void, what);
        }
    }
    let (Some(share), Some(ci95)) = (ratio.value(), evidence.of_gap_to_target_same_precision) else {
        return open(format!("the gap to the target is not sure to be one ({})", points(gap_q)));
    };
    let shown = format!("{} back", share_text(share, Some(ci95)));
    let sure = |p: Option<f64>| p.is_some_and(|p| p <= ALPHA);
    let [low, high] = ci95;
    if low > criteria.resurrected_above {
        if !sure(evidence.p_recovered_holm) {
            return open(format!("{shown}, but {}", unsure(evidence.p_recovered_holm)));
        }
        if let Some(Estimate { value, ci95 }) = evidence.beyond_retrain
            && !ci95.is_some_and(|[low, _]| low > criteria.resurrected_above)
        {
            let beyond = share_text(value, ci95);
            return open(format!("{shown}, but only {beyond} beyond what the retrained model gains"));
        }
        return (Outcome::Resurrected, format!("{shown}, {}", p_text(evidence.p_recovered_holm)));
    }
    if high < criteria.held_below {
        if !sure(evidence.p_held_holm) {
            return open(format!("{shown}, but {}", unsure(evidence.p_held_holm)));
        }
        return (Outcome::Held, format!("{shown}, {}", p_text(evidence.p_held_holm)));
    }
    open(shown)
}

/// The metric's name in text.
fn short(metric: &str) -> &str {
    match metric {
        "verbmem_forget" => "VerbMem",
        "knowmem_forget" => "KnowMem",
        other => other,
    }
}

/// `97 % [94, 100]`.
fn share_text(share: f64, ci95: Interval) -> String {
    let percent = |share: f64| (100.0 * share).round() + 0.0;
    let mut text = format!("{} %", percent(share));
    if let Some([low, high]) = ci95 {
        let _ = write!(text, " [{}, {}]", percent(low), percent(high));
    }
    text
}

/// `12.3 points [10.1, 14.0]`.
fn points(estimate: &Estimate) -> String {
    let tenth = |value: f64| (10.0 * value).round() / 10.0 + 0.0;
    let mut text = format!("{:.1} points", tenth(estimate.value));
    if let Some([low, high]) = estimate.ci95 {
        let _ = write!(text, " [{:.1}, {:.1}]", tenth(low), tenth(high));
    }
    text
}

fn p_text(p: Option<f64>) -> String {
    match p {
        Some(p) if p < 0.001 => "p < 0.001".to_owned(),
        Some(p) => format!("p = {p:.3}"),
        None => "no p".to_owned(),
    }
}

fn unsure(p: Option<f64>) -> String {
    format!("the test is not sure ({})", p_text(p))
}
