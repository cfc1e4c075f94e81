//! What was measured, and what follows from it.

use super::divergence::Apart;
use super::plan::{Model, Plan, Role};
use super::survival::Survival;
use crate::metrics::membership::priv_leak;
use crate::metrics::recovery::{Arms, Recovery};
use crate::metrics::{Measured, mean_percent};
use crate::model::Counters;
use crate::quant::{Precision, Scheme};
use crate::suite::muse::{Membership, Truth};

/// A mean, with the scores it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// MUSE's scale, x100.
    pub value: Measured,
    /// Examples that were asked.
    pub asked: usize,
    /// Of the examples that could be scored, in the order of the file; 0..=1 each. Arms that answered the same questions
    /// have them in the same order.
    pub scores: Vec<f64>,
}

impl Metric {
    /// The mean of the scores of all examples that were asked.
    #[must_use]
    pub fn mean(scores: Vec<f64>) -> Self {
        Self { value: mean_percent(&scores), asked: scores.len(), scores }
    }

    /// Examples that it is made of.
    #[must_use]
    pub fn n(&self) -> usize {
        self.scores.len()
    }
}

/// An AUC, with the values it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Auc {
    /// P(holdout looks more like a member than forget), 0..=1.
    pub value: Measured,
    /// Texts that were asked, forget and holdout together.
    pub asked: usize,
    /// Min-40 % of the forget texts that have one.
    pub forget: Vec<f64>,
    /// The same of the holdout texts.
    pub holdout: Vec<f64>,
}

impl Auc {
    /// Texts that it is made of, forget and holdout together.
    #[must_use]
    pub fn n(&self) -> usize {
        self.forget.len() + self.holdout.len()
    }
}

impl From<&Membership> for Auc {
    fn from(membership: &Membership) -> Self {
        let known = |scores: &[Measured]| scores.iter().filter_map(Measured::value).collect();
        Self {
            value: membership.auc(),
            asked: membership.forget.len() + membership.holdout.len(),
            forget: known(&membership.forget),
            holdout: known(&membership.holdout),
        }
    }
}

/// What one arm answered, scored.
#[derive(Clone, Debug)]
pub struct ArmResult {
    /// Index in [`Plan::models`].
    pub model: usize,
    /// As asked for.
    pub precision: Precision,
    /// The layers' matrices.
    pub scheme: Scheme,
    /// Verbatim memorisation of the forget set.
    pub verbmem_forget: Metric,
    /// Knowledge of the forget set.
    pub knowmem_forget: Metric,
    /// Knowledge of the retain set.
    pub knowmem_retain: Metric,
    /// AUC of Min-40 %, forget against holdout.
    pub auc: Auc,
    /// How well the true answers are known: VerbMem's forget set, KnowMem's forget and retain set.
    pub truths: [Truths; 3],
    /// What it said, as it was scored, in the order of the files: the same three sets.
    pub texts: [Vec<String>; 3],
}

/// How well an arm knows the true answers of a set, led along them token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Truths {
    /// Geometric mean of an answer's token probabilities, x100.
    pub probability: Metric,
    /// Share of an answer's tokens that are the likeliest ones at their places, x100.
    pub exact_memorization: Metric,
    /// Share of an answer from which on all tokens are the likeliest ones, x100.
    pub extraction_strength: Metric,
    /// log p of each token of each answer that was asked for, in nats.
    pub log_probs: Vec<Vec<f32>>,
}

impl Truths {
    /// The three metrics.
    #[must_use]
    pub fn metrics(&self) -> [&Metric; 3] {
        [&self.probability, &self.exact_memorization, &self.extraction_strength]
    }
}

impl From<&[Truth]> for Truths {
    fn from(truths: &[Truth]) -> Self {
        let metric = |field: fn(&Truth) -> &Measured| {
            let scores = truths.iter().filter_map(|truth| field(truth).value());
            Metric { asked: truths.len(), ..Metric::mean(scores.collect()) }
        };
        Self {
            probability: metric(|truth| &truth.probability),
            exact_memorization: metric(|truth| &truth.exact_memorization),
            extraction_strength: metric(|truth| &truth.extraction_strength),
            log_probs: truths.iter().map(|truth| truth.log_probs.clone()).collect(),
        }
    }
}

/// What PrivLeak compares an arm's AUC with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The retrained model's AUC at full precision.
    Retrain,
    /// The published AUC of the corpus' retrained model.
    Corpus,
    /// 0.5: no difference between forget and holdout.
    Half,
}

impl Reference {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrain => "retrain",
            Self::Corpus => "corpus",
            Self::Half => "0.5",
        }
    }
}

/// PrivLeak of one arm against one reference.
#[derive(Clone, Debug, PartialEq)]
pub struct PrivLeak {
    /// What the AUC is compared with.
    pub reference: Reference,
    /// The AUC it is compared with.
    pub reference_auc: Measured,
    /// `100 (auc - reference_auc) / reference_auc`, signed and not clamped.
    pub value: Measured,
}

/// How much of one metric one quantized unlearned arm has back.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Index in [`Plan::models`].
    pub unlearned: usize,
    /// The arm's precision.
    pub precision: Precision,
    /// `verbmem_forget` or `knowmem_forget`.
    pub metric: &'static str,
    /// The three ratios.
    pub ratios: Recovery,
}

/// Where a mean is in an arm.
pub(super) type Field = fn(&ArmResult) -> &Metric;

/// Names of the metrics that recovery is measured on.
pub(super) const RECOVERED: [(&str, Field); 2] =
    [("verbmem_forget", |arm| &arm.verbmem_forget), ("knowmem_forget", |arm| &arm.knowmem_forget)];

/// Names of all means.
pub(super) const MEANS: [(&str, Field); 3] =
    [RECOVERED[0], RECOVERED[1], ("knowmem_retain", |arm| &arm.knowmem_retain)];

/// What was measured so far.
#[derive(Clone, Debug)]
pub struct Findings {
    /// What was asked for.
    pub plan: Plan,
    /// In the order of the plan: by model, then by precision.
    pub arms: Vec<ArmResult>,
    /// Prompts that had to be cut to the context, in each arm.
    pub truncated: usize,
    /// What was asked and what the answer should have been, in the order of the files: VerbMem's forget set, KnowMem's forget
    /// and retain set.
    pub questions: [Vec<(String, String)>; 3],
    /// The true answers of these sets in pieces, one a token that was scored.
    pub tokens: [Vec<Vec<String>>; 3],
    /// What sets pairs of arms apart on the true answers, if they were held against each other.
    pub apart: Vec<Apart>,
    /// Why the run ended before all arms were measured.
    pub stopped: Option<String>,
    /// How much of each update each precision keeps, if that was looked at.
    pub survival: Vec<Survival>,
    /// Bytes that looking at it read from the checkpoints; not part of the counters.
    pub codes_disk_bytes: u64,
    /// What it cost, with opening the checkpoints.
    pub counters: Counters,
}

impl Findings {
    /// The model of an arm.
    #[must_use]
    pub fn model(&self, arm: &ArmResult) -> &Model {
        &self.plan.models[arm.model]
    }

    /// The arm of a model at a precision, or what is run in its place ([`Plan::precision_of`]), if it was measured.
    #[must_use]
    pub fn arm(&self, model: usize, precision: Precision) -> Option<&ArmResult> {
        self.place(model, precision).map(|place| &self.arms[place])
    }

    /// The place of [`Self::arm`] in [`Self::arms`].
    #[must_use]
    pub fn place(&self, model: usize, precision: Precision) -> Option<usize> {
        let precision = self.plan.precision_of(model, precision);
        self.arms.iter().position(|arm| arm.model == model && arm.precision == precision)
    }

    /// The measured unlearned arms below full precision.
    pub(super) fn quantized_unlearned(&self) -> impl Iterator<Item = &ArmResult> {
        let quantized =
            |arm: &&ArmResult| self.model(arm).role == Role::Unlearned && arm.precision != Precision::Full;
        self.arms.iter().filter(quantized)
    }

    /// Whether every arm of the plan was measured.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.arms.len() == self.plan.arms().count()
    }

    /// PrivLeak of an arm, the main one first: against the retrained model at full precision if the plan has one,
    /// against the corpus' constant if it names one, against 0.5 if it has neither.
    #[must_use]
    pub fn priv_leak(&self, arm: &ArmResult) -> Vec<PrivLeak> {
        let against = |(reference, reference_auc): (Reference, Measured)| {
            let value = match (&arm.auc.value, &reference_auc) {
                (Measured::Value(auc), Measured::Value(reference)) => priv_leak(*auc, *reference),
                (Measured::Missing(reason), _) => Measured::Missing(reason.clone()),
                (_, Measured::Missing(reason)) => Measured::Missing(format!("the reference: {reason}")),
            };
            PrivLeak { reference, reference_auc, value }
        };
        self.references().into_iter().map(against).collect()
    }

    fn references(&self) -> Vec<(Reference, Measured)> {
        let retrain = self.plan.retrain().map(|model| {
            let auc = match self.arm(model, Precision::Full) {
                Some(arm) => arm.auc.value.clone(),
                None => Measured::Missing("the retrained model was not measured".to_owned()),
            };
            (Reference::Retrain, auc)
        });
        let corpus =
            self.plan.corpus.map(|corpus| (Reference::Corpus, Measured::Value(corpus.reference_auc())));
        let references: Vec<_> = retrain.into_iter().chain(corpus).collect();
        if references.is_empty() { vec![(Reference::Half, Measured::Value(0.5))] } else { references }
    }

    /// Recovery of every measured unlearned arm below full precision, by model, then precision, then metric.
    #[must_use]
    pub fn recovery(&self) -> Vec<Recovered> {
        let arms = self.quantized_unlearned();
        arms.flat_map(|arm| RECOVERED.map(|(metric, field)| self.recovered(arm, metric, field))).collect()
    }

    fn recovered(&self, arm: &ArmResult, metric: &'static str, field: Field) -> Recovered {
        let value = |model: usize, precision: Precision| match self.arm(model, precision) {
            Some(arm) => field(arm).value.clone(),
            None => {
                let name = &self.plan.models[model].name;
                Measured::Missing(format!("{name} was not measured at {precision}"))
            }
        };
        let values = [
            value(Plan::TARGET, Precision::Full),
            value(Plan::TARGET, arm.precision),
            value(arm.model, Precision::Full),
            field(arm).value.clone(),
        ];
        Recovered { unlearned: arm.model, precision: arm.precision, metric, ratios: ratios(&values) }
    }
}

/// The ratios of target, target at the same precision, unlearned and quantized. What lacks a value lacks the ratio, and
/// only the ratios made of it.
fn ratios(values: &[Measured; 4]) -> Recovery {
    let [target, target_same_precision, unlearned, quantized] = values;
    // A value that is missing is NaN to the ratios, which say "not finite" of it; that reason is replaced by the true one.
    let number = |measured: &Measured| measured.value().unwrap_or(f64::NAN);
    let plain = Recovery::new(Arms {
        target: number(target),
        target_same_precision: number(target_same_precision),
        unlearned: number(unlearned),
        quantized: number(quantized),
    });
    let because = |ratio: Measured, parts: &[&Measured]| {
        let reason = parts.iter().find_map(|part| part.reason());
        reason.map_or(ratio, |reason| Measured::Missing(reason.to_owned()))
    };
    Recovery {
        of_gap_to_target: because(plain.of_gap_to_target, &[target, unlearned, quantized]),
        of_gap_to_target_same_precision: because(
            plain.of_gap_to_target_same_precision,
            &[target_same_precision, unlearned, quantized],
        ),
        share_of_target_same_precision: because(
            plain.share_of_target_same_precision,
            &[target_same_precision, quantized],
        ),
    }
}
