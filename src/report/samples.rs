//! What every arm said, sample by sample: in the record.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::{ArmResult, Findings, Metric};

/// One prompt with everybody's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// `verbmem_forget`, `knowmem_forget` or `knowmem_retain`.
    pub metric: String,
    /// What was asked; of KnowMem the question, without the examples before it.
    pub prompt: String,
    /// What the answer should have been.
    pub truth: String,
    /// The true answer in pieces, one a token whose log p was computed (of a long answer the first 127); only on the forget
    /// set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<String>,
    /// Of every arm, in the order of `arms`.
    pub answers: Vec<Answer>,
}

/// One arm's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// What it said, as it was scored.
    pub text: String,
    /// ROUGE-L F, x100.
    pub score: f64,
    /// log p of each of the true answer's `tokens`, given those before it, in nats and hundredths of them; `null` if it was not
    /// finite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_probs: Vec<Option<f64>>,
}

/// Where a mean is in an arm.
type Field = fn(&ArmResult) -> &Metric;

/// All samples, by metric, then in the order of the files; none if the plan says so.
pub(super) fn samples(findings: &Findings) -> Vec<Sample> {
    if findings.plan.no_samples {
        return Vec::new();
    }
    let sets: [(&str, Field); 3] = [
        ("verbmem_forget", |arm| &arm.verbmem_forget),
        ("knowmem_forget", |arm| &arm.knowmem_forget),
        ("knowmem_retain", |arm| &arm.knowmem_retain),
    ];
    let mut samples = Vec::new();
    for (set, ((metric, field), questions)) in sets.into_iter().zip(&findings.questions).enumerate() {
        for (index, (prompt, truth)) in questions.iter().enumerate() {
            // Token by token, only what was to be forgotten is of interest.
            let pieces = if metric.ends_with("forget") { findings.tokens[set].get(index) } else { None };
            let tokens = pieces.cloned().unwrap_or_default();
            let answer = |arm: &ArmResult| {
                let (text, score) = (arm.texts[set].get(index)?, field(arm).scores.get(index)?);
                let log_probs = if tokens.is_empty() { None } else { arm.truths[set].log_probs.get(index) };
                let log_probs = log_probs.map_or_else(Vec::new, |log_probs| in_hundredths(log_probs));
                Some(Answer { text: text.clone(), score: 100.0 * score, log_probs })
            };
            // An arm without an answer would shift those after it.
            let Some(answers) = findings.arms.iter().map(answer).collect() else { continue };
            let (prompt, truth) = (prompt.clone(), truth.clone());
            samples.push(Sample { metric: metric.to_owned(), prompt, truth, tokens, answers });
        }
    }
    samples
}

fn in_hundredths(log_probs: &[f32]) -> Vec<Option<f64>> {
    // Without the sign of a zero.
    let rounded = |log_prob: f64| (100.0 * log_prob).round() / 100.0 + 0.0;
    log_probs.iter().map(|&log_prob| log_prob.is_finite().then(|| rounded(log_prob.into()))).collect()
}
