//! An audit's record in the formats of other tools.
//!
//! | format | files | scale |
//! |---|---|---|
//! | `open-unlearning` | for each arm `MUSE_EVAL.json` and `MUSE_SUMMARY.json`, as its evaluator writes them | 0..=1; PrivLeak as MUSE's |
//! | `lm-eval` | for each arm `results_TIME.json`, and a `samples_TASK_TIME.jsonl` for each task, as lm-evaluation-harness writes them | 0..=1; PrivLeak as MUSE's |
//! | `muse-csv` | MUSE's table, a row an arm | MUSE's, x100 |
//! | `csv` | every figure on a row of its own, with its interval | as the record |
//!
//! Each format has the figures of the record; none computes another one. What the other tool would have computed
//! otherwise is said in the format's module.

mod csv;
mod lm_eval;
mod muse_csv;
mod open_unlearning;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::schema::{Arm, Report};
use crate::audit::StoredAnswers;
use crate::error::{Error, Result};
use crate::suite::muse::MuseValues;

pub use lm_eval::TASKS as LM_EVAL_TASKS;

/// What a record can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// open-unlearning's evaluation logs.
    OpenUnlearning,
    /// lm-evaluation-harness' results and samples.
    LmEval,
    /// MUSE's table.
    MuseCsv,
    /// A long table of every figure.
    Csv,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::OpenUnlearning, Self::LmEval, Self::MuseCsv, Self::Csv];

    /// The name in flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenUnlearning => "open-unlearning",
            Self::LmEval => "lm-eval",
            Self::MuseCsv => "muse-csv",
            Self::Csv => "csv",
        }
    }

    /// Whether it is one file; otherwise there is a folder for each arm.
    #[must_use]
    pub fn is_one_file(self) -> bool {
        matches!(self, Self::MuseCsv | Self::Csv)
    }
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFile {
    /// Below the export's folder; empty for a format of one file.
    pub path: PathBuf,
    /// What it holds.
    pub text: String,
}

/// What an export is made of.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The record.
    pub report: &'a Report,
    /// Where it is, for errors.
    pub path: &'a Path,
    /// When it was written, in seconds since 1970 (UTC).
    pub written: f64,
    /// What the arms answered, if that is known.
    pub answers: Option<&'a StoredAnswers>,
    /// Leave out what needs the answers, even if they are known.
    pub summary_only: bool,
}

impl Export<'_> {
    /// The files of a format.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the record has no arm, two arms of one name, or other figures than its answers give;
    /// [`Error::Missing`] if the format needs the answers of each example and they are not there.
    pub fn files(&self, format: Format) -> Result<Vec<ExportFile>> {
        let arms = &self.report.arms;
        if arms.is_empty() {
            return Err(self.malformed("arms", "none that was measured", "at least one"));
        }
        let mut folders = HashSet::new();
        if let Some(twice) = arms.iter().map(folder).find(|folder| !folders.insert(folder.clone())) {
            return Err(self.malformed("arms", &format!("two called {twice}"), "names that differ"));
        }
        arms.iter().try_for_each(|arm| self.check(arm))?;
        match format {
            Format::OpenUnlearning => open_unlearning::files(self),
            Format::LmEval => lm_eval::files(self),
            Format::MuseCsv => Ok(vec![whole(muse_csv::text(self.report))]),
            Format::Csv => Ok(vec![whole(csv::text(self.report))]),
        }
    }

    /// What an arm answered, if it is known and asked for.
    fn answers(&self, arm: &Arm) -> Option<(&StoredAnswers, &MuseValues)> {
        let answers = self.answers.filter(|_| !self.summary_only)?;
        Some((answers, answers.of(&name(arm))?))
    }

    /// Fails if the arm's answers do not give the record's figures: then they are not those of this record.
    fn check(&self, arm: &Arm) -> Result<()> {
        let Some((_, values)) = self.answers(arm) else { return Ok(()) };
        let metrics = &arm.metrics;
        for (metric, recorded, answers) in [
            ("verbmem_forget", &metrics.verbmem_forget, &values.verbmem_forget),
            ("knowmem_forget", &metrics.knowmem_forget, &values.knowmem_forget),
            ("knowmem_retain", &metrics.knowmem_retain, &values.knowmem_retain),
        ] {
            let (found, stored) = (recorded.value, answers.value().value());
            let near = match (found, stored) {
                (Some(found), Some(stored)) => (found - stored).abs() < 1e-6,
                (found, stored) => found == stored,
            };
            if !near || recorded.n != answers.items.len() {
                let say = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| v.to_string());
                return Err(self.malformed(
                    &format!("{metric} of {}", name(arm)),
                    &format!("{} on {} examples", say(found), recorded.n),
                    &format!(
                        "what the stored answers give, {} on {} examples (--summary-only leaves them out)",
                        say(stored),
                        answers.items.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn malformed(&self, what: &str, found: &str, expected: &str) -> Error {
        Error::Malformed {
            path: self.path.to_path_buf(),
            what: what.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }
}

fn whole(text: String) -> ExportFile {
    ExportFile { path: PathBuf::new(), text }
}

/// An arm's name, `model@precision`.
fn name(arm: &Arm) -> String {
    format!("{}@{}", arm.name, arm.precision)
}

/// An arm's folder: its name, with what may stand in no path replaced as lm-evaluation-harness does it.
fn folder(arm: &Arm) -> String {
    let mut folder = String::new();
    let mut replaced = false;
    for c in name(arm).chars() {
        let bad = "\"<>:/|\\?*[]".contains(c) || c.is_control();
        match (bad, replaced) {
            (true, false) => folder.push_str("__"),
            (true, true) => {}
            (false, _) => folder.push(c),
        }
        replaced = bad;
    }
    folder
}

/// A figure of MUSE's scale as a share.
fn share(percent: Option<f64>) -> Option<f64> {
    percent.map(|value| value / 100.0)
}

/// The rows as CSV (RFC 4180, `\n` between rows, `.` before decimals).
fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    // Rows of equal length go to memory: neither can fail.
    let _ = writer.write_record(header);
    for row in rows {
        let _ = writer.write_record(&row);
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// A cell; empty if there is no number.
fn cell(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}
