//! Plan to tasks to observations to findings.
//!
//! [`Plan`] says which checkpoints at which precisions, [`Audit`] opens them and asks all arms the same questions, and
//! [`Findings`] holds what was measured so far: every number of a report is computed from it, so a run that stopped half
//! way still has a report. [`Store`] keeps what arms answered on disk, so that such a run goes on where it was. [`Shard`]
//! says which part of an audit one of several machines asks.
//!
//! [`Comparison`] holds arms' logits against a reference's, token by token.
//!
//! [`Statistics`] says how sure those numbers are, [`verdicts`] what they amount to.
//!
//! [`Localize`] says which parts' quantization brings the forgotten back.
//!
//! [`compare_codes`] and [`compare_codes_on`] (a device) ask no questions: they read off two checkpoints' weights how much of
//! an update quantization keeps.
//! [`quantize()`] writes a checkpoint whose rounding keeps it.

mod answered;
mod ask;
mod codes;
mod comparison;
mod divergence;
mod fate;
mod findings;
mod localize;
mod packing;
mod plan;
mod quantize;
mod released;
mod repair;
mod rounded;
mod run;
mod series;
mod share;
mod statistics;
mod store;
mod stored;
mod survival;
mod verdict;
mod weighted;

pub use codes::{Codes, CodesPlan, CodesWatch, HEAD, TensorChange, compare_codes, compare_codes_on};
pub use comparison::{ArmToken, Comparison, ComparisonFound, ComparisonPlan, Passages, SetFound};
pub use divergence::{AnswerApart, AnswerSet, Apart, FourWay, four_way};
pub use fate::{Fate, MatrixFate};
pub use findings::{ArmResult, Auc, Findings, Metric, PrivLeak, Recovered, Reference, Truths};
pub use localize::{Block, By, Kept, Localize, LocalizePlan, Localized, OpenSources, Part, Row, modules};
pub use packing::Format;
pub use plan::{Model, Plan, Request, Role};
pub use quantize::{
    GOOD_ENOUGH, QuantizeInputs, QuantizePlan, QuantizeStage, QuantizeWatch, Quantized, QuantizedTensor,
    quantize,
};
pub use released::{Released, ReleasedRequest};
pub use repair::{Chosen, MetricChange, Repaired, chosen_doses};
pub use run::{ArmInfo, Audit, OpenArms, Watch};
pub use series::{Curve, Point, Series, SeriesRequest, Step};
pub use share::{Portion, Shard};
pub use statistics::{ArmIntervals, Control, Estimate, Evidence, Interval, Statistics};
pub use store::{Inputs, ModelInputs, Store, engine_revision};
pub use stored::StoredAnswers;
pub use survival::{Survival, closeness_correlation, measure_survival, rank_correlation};
pub use verdict::{ALPHA, CONFIDENCE, Criteria, Outcome, Verdict, verdicts};
