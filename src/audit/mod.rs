//! Plan to tasks to observations to findings.
//!
//! [`Plan`] says which checkpoints at which precisions, [`Audit`] opens them and asks all arms the same questions, and
//! [`Findings`] holds what was measured so far: every number of a report is computed from it, so a run that stopped half
//! way still has a report.
//!
//! [`Comparison`] holds arms' logits against a reference's, token by token.
//!
//! [`compare_codes`] asks no questions: it reads off two checkpoints' weights how much of an update quantization keeps.

mod codes;
mod comparison;
mod findings;
mod plan;
mod run;

pub use codes::{Codes, CodesPlan, HEAD, TensorChange, compare_codes};
pub use comparison::{ArmToken, Compared, Comparison, ComparisonPlan, Passages, Set, SetFound, position};
pub use findings::{ArmResult, Findings, Metric, PrivLeak, Recovered, Reference};
pub use plan::{Model, Plan, Request, Role};
pub use run::{ArmInfo, Audit, OpenArms, Watch};
