//! What a group of arms answered, and what that scores.

use super::ask::Known;
use super::divergence::apart;
use super::findings::{ArmResult, Findings, Metric};
use super::run::Audit;
use crate::engine::Observation;
use crate::error::{Error, Result};
use crate::model::Pair;
use crate::quant::Precision;
use crate::suite::muse::{self, Answers};

/// What a group of arms answered.
#[derive(Debug)]
pub(super) struct GroupAnswers {
    pub(super) arms: Vec<(usize, Precision)>,
    pub(super) pairs: Vec<Pair>,
    pub(super) known: Known,
}

impl GroupAnswers {
    /// The error of the first arm that failed.
    pub(super) fn failure(self) -> Option<Error> {
        self.known.into_parts().0.into_iter().find_map(Result::err)
    }
}

impl Audit {
    /// Scores what a group answered to all tasks; the error of an arm that failed, if the others did not.
    pub(super) fn take(&self, group: GroupAnswers, findings: &mut Findings) -> Option<Error> {
        let GroupAnswers { arms, pairs, known } = group;
        let (answers, sums) = known.into_parts();
        let sets = [
            [muse::Metric::VerbmemForget, muse::Metric::KnowmemForget]
                .map(|metric| self.questions().truths(metric)),
            [muse::Metric::KnowmemRetain; 2].map(|metric| self.questions().truths(metric)),
        ];
        let sets = sets.map(|[first, last]| first.start..last.end);
        findings.apart.extend(apart(&arms, &pairs, &answers, &sums, &sets));
        let mut failed = None;
        for (&(model, precision), observations) in arms.iter().zip(answers) {
            match observations.and_then(|observations| self.measure(model, precision, &observations)) {
                Ok(arm) => findings.arms.push(arm),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed
    }

    fn measure(&self, model: usize, precision: Precision, observations: &[Observation]) -> Result<ArmResult> {
        let values = self.questions().measure(self.tokenizer(), observations)?;
        let mean = |answers: &Answers| Metric::mean(answers.scores());
        Ok(ArmResult {
            model,
            precision,
            scheme: self.scheme(model, precision),
            verbmem_forget: mean(&values.verbmem_forget),
            knowmem_forget: mean(&values.knowmem_forget),
            knowmem_retain: mean(&values.knowmem_retain),
            auc: (&values.privleak).into(),
            truths: [
                &values.verbmem_forget_truths[..],
                &values.knowmem_forget_truths,
                &values.knowmem_retain_truths,
            ]
            .map(Into::into),
            texts: [values.verbmem_forget, values.knowmem_forget, values.knowmem_retain]
                .map(|answers| answers.items.into_iter().map(|answer| answer.text).collect()),
        })
    }
}
