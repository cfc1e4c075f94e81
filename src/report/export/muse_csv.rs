//! MUSE's table (`eval.py` of github.com/swj0419/muse_bench): a row an arm, on MUSE's scale.

use super::{cell, name, table};
use crate::report::schema::Report;

/// The table; a figure that there is none of is an empty cell.
pub(super) fn text(report: &Report) -> String {
    let rows = report.arms.iter().map(|arm| {
        let metrics = &arm.metrics;
        [
            name(arm),
            cell(metrics.verbmem_forget.value),
            cell(metrics.privleak.value),
            cell(metrics.knowmem_forget.value),
            cell(metrics.knowmem_retain.value),
        ]
    });
    table(["name", "verbmem_f", "privleak", "knowmem_f", "knowmem_r"], rows)
}
