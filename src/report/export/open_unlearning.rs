//! open-unlearning's evaluation logs: `MUSE_EVAL.json` with every example, `MUSE_SUMMARY.json` with one number a metric
//! (`src/evals/base.py` of github.com/locuslab/open-unlearning).
//!
//! Its `mia_min_k` is P(forget looks more like a member than holdout), one minus MUSE's AUC, which the record has; so the
//! logs of a retrained arm serve it as `retain_logs_path`. Two things it would have computed otherwise: its ROUGE stems words,
//! MUSE's (and ours) does not, and it strips what a model said. `extraction_strength` and `exact_memorization` are over the
//! continuations of the forget set.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{Export, ExportFile, folder, name, share};
use crate::error::{Error, Result};
use crate::metrics::Measured;
use crate::metrics::rouge::rouge_1_recall;
use crate::report::schema::{Arm, Metric};
use crate::suite::muse::{self, Answer, Answers, MuseValues, Truth};

/// Values by their index, as a JSON object.
struct Indexed<T>(Vec<T>);

impl<T: Serialize> Serialize for Indexed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().enumerate())
    }
}

/// Fields in the order in which Python sorts them.
#[derive(Serialize)]
#[expect(non_snake_case, reason = "open-unlearning's names")]
struct Eval {
    exact_memorization: Values<Score>,
    extraction_strength: Values<Score>,
    forget_knowmem_ROUGE: Values<Rouge>,
    forget_verbmem_ROUGE: Values<Rouge>,
    mia_min_k: Membership,
    privleak: Aggregate,
    retain_knowmem_ROUGE: Values<Rouge>,
}

#[derive(Serialize)]
struct Values<T> {
    agg_value: Option<f64>,
    value_by_index: Indexed<T>,
}

#[derive(Serialize)]
struct Aggregate {
    agg_value: Option<f64>,
}

#[derive(Serialize)]
struct Score {
    score: Option<f64>,
}

#[derive(Serialize)]
struct Membership {
    agg_value: Option<f64>,
    auc: Option<f64>,
    forget: Values<Score>,
    holdout: Values<Score>,
}

/// An answer.
#[derive(Serialize)]
#[expect(non_snake_case, reason = "open-unlearning's names")]
struct Rouge {
    generation: String,
    ground_truth: String,
    input: String,
    rouge1_recall: f64,
    rougeL_f1: f64,
    rougeL_recall: f64,
}

/// What has a number; fields in the order in which Python sorts them.
#[derive(Serialize)]
#[expect(non_snake_case, reason = "open-unlearning's names")]
struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_memorization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extraction_strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forget_knowmem_ROUGE: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forget_verbmem_ROUGE: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mia_min_k: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    privleak: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retain_knowmem_ROUGE: Option<f64>,
}

/// Two files for each arm.
pub(super) fn files(export: &Export<'_>) -> Result<Vec<ExportFile>> {
    let mut files = Vec::new();
    for arm in &export.report.arms {
        let folder = PathBuf::from(folder(arm));
        let summary = summary(arm);
        if !export.summary_only {
            let (stored, values) = export.answers(arm).ok_or_else(|| Error::Missing {
                path: export.path.to_path_buf(),
                what: "each answer, which MUSE_EVAL.json lists,",
                remedy: format!(
                    "name the folder of the run, with its plan.toml, inputs.json and observations (there are none of {}), or \
                     ask for MUSE_SUMMARY.json alone with --summary-only",
                    name(arm)
                ),
            })?;
            let prompts = |metric| stored.prompts(metric);
            let text = json(&eval(&summary, values, &prompts));
            files.push(ExportFile { path: folder.join("MUSE_EVAL.json"), text });
        }
        files.push(ExportFile { path: folder.join("MUSE_SUMMARY.json"), text: json(&summary) });
    }
    Ok(files)
}

fn summary(arm: &Arm) -> Summary {
    let metrics = &arm.metrics;
    let truth = metrics.verbmem_forget.truth.as_deref();
    let of = |metric: Option<&Metric>| share(metric.and_then(|metric| metric.value));
    Summary {
        exact_memorization: of(truth.map(|truth| &truth.exact_memorization)),
        extraction_strength: of(truth.map(|truth| &truth.extraction_strength)),
        forget_knowmem_ROUGE: share(metrics.knowmem_forget.value),
        forget_verbmem_ROUGE: share(metrics.verbmem_forget.value),
        mia_min_k: metrics.privleak.auc.map(|auc| 1.0 - auc),
        privleak: metrics.privleak.value,
        retain_knowmem_ROUGE: share(metrics.knowmem_retain.value),
    }
}

fn eval<'a>(summary: &Summary, values: &MuseValues, prompts: &dyn Fn(muse::Metric) -> &'a [String]) -> Eval {
    let truths = |agg_value, of: fn(&Truth) -> &Measured| {
        let scores = values.verbmem_forget_truths.iter().map(|truth| Score { score: of(truth).value() });
        Values { agg_value, value_by_index: Indexed(scores.collect()) }
    };
    Eval {
        exact_memorization: truths(summary.exact_memorization, |truth| &truth.exact_memorization),
        extraction_strength: truths(summary.extraction_strength, |truth| &truth.extraction_strength),
        forget_knowmem_ROUGE: rouge(
            summary.forget_knowmem_ROUGE,
            &values.knowmem_forget,
            prompts(muse::Metric::KnowmemForget),
        ),
        forget_verbmem_ROUGE: rouge(
            summary.forget_verbmem_ROUGE,
            &values.verbmem_forget,
            prompts(muse::Metric::VerbmemForget),
        ),
        mia_min_k: Membership {
            agg_value: summary.mia_min_k,
            auc: summary.mia_min_k,
            forget: membership(&values.privleak.forget),
            holdout: membership(&values.privleak.holdout),
        },
        privleak: Aggregate { agg_value: summary.privleak },
        retain_knowmem_ROUGE: rouge(
            summary.retain_knowmem_ROUGE,
            &values.knowmem_retain,
            prompts(muse::Metric::KnowmemRetain),
        ),
    }
}

fn rouge(agg_value: Option<f64>, answers: &Answers, prompts: &[String]) -> Values<Rouge> {
    let item = |(answer, prompt): (&Answer, &String)| Rouge {
        generation: answer.text.clone(),
        ground_truth: answer.truth.clone(),
        input: prompt.clone(),
        rouge1_recall: rouge_1_recall(&answer.text, &answer.truth),
        rougeL_f1: answer.rouge_l_f,
        rougeL_recall: answer.rouge_l_recall,
    };
    Values { agg_value, value_by_index: Indexed(answers.items.iter().zip(prompts).map(item).collect()) }
}

/// Min-40 % of texts, and their mean; higher is less like a member there too.
fn membership(scores: &[Measured]) -> Values<Score> {
    let known: Vec<_> = scores.iter().filter_map(Measured::value).collect();
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 texts")]
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    let scores = scores.iter().map(|score| Score { score: score.value() });
    Values { agg_value: mean.is_finite().then_some(mean), value_by_index: Indexed(scores.collect()) }
}

/// As Python's `json.dump(indent=4)`.
fn json(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    // Plain structs with string keys go to memory: that cannot fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    String::from_utf8(text).unwrap_or_default()
}
