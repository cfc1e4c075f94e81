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
            let answer = |arm: &ArmResult| {
                let (text, score) = (arm.texts[set].get(index)?, field(arm).scores.get(index)?);
                Some(Answer { text: text.clone(), score: 100.0 * score })
            };
            // An arm without an answer would shift those after it.
            let Some(answers) = findings.arms.iter().map(answer).collect() else { continue };
            let (prompt, truth) = (prompt.clone(), truth.clone());
            samples.push(Sample { metric: metric.to_owned(), prompt, truth, answers });
        }
    }
    samples
}
