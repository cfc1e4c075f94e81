//! A run's plan as a TOML file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::audit::CorpusName;
use super::judge::OutcomeName;
use super::plan_tables::{CriteriaTable, DeviceTable, ReleasedTable, SeriesTable, share};
use crate::audit::{Request, Shard};
use crate::checkpoint::files::read_text;
use crate::error::{Error, Result};
use crate::quant::Precision;

/// Longest plan that is read.
const LIMIT_BYTES: u64 = 1 << 20;

/// Everything that an audit's answers and verdicts depend on; what is not in a file is as without the flag.
///
/// Relative paths in a file are relative to the file's folder; the program writes absolute ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PlanFile {
    /// Whether the family is the one that is built into the program; then the next four are not given.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) demo: bool,
    /// `--shard`; the whole audit without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<Shard>,
    /// `--target`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<PathBuf>,
    /// `--unlearned`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unlearned: Vec<PathBuf>,
    /// `--retrain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retrain: Option<PathBuf>,
    /// `--data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<PathBuf>,
    /// `--tokenizer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokenizer: Option<PathBuf>,
    /// `--precision`.
    pub(super) precision: Vec<String>,
    /// Shares of the update that kept rounding keeps: those of `--repair` and `--dose`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) dose: Vec<String>,
    /// `--keep auto`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) choose_dose: bool,
    /// `--limit`; all examples without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<usize>,
    /// `--quantize-head`.
    pub(super) quantize_head: bool,
    /// `--corpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) corpus: Option<CorpusName>,
    /// Not `--no-divergence`.
    pub(super) divergence: bool,
    /// Not `--no-survival`.
    pub(super) survival: bool,
    /// Not `--no-samples`.
    pub(super) samples: bool,
    /// `--fail-on`.
    pub(super) fail_on: Vec<OutcomeName>,
    /// How figures are judged.
    pub(super) criteria: CriteriaTable,
    /// What it runs on.
    pub(super) device: DeviceTable,
    /// `--released`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) released: Vec<ReleasedTable>,
    /// `--series`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) series: Vec<SeriesTable>,
}

impl Default for PlanFile {
    fn default() -> Self {
        Self {
            demo: false,
            shard: None,
            target: None,
            unlearned: Vec::new(),
            retrain: None,
            data: None,
            tokenizer: None,
            precision: super::audit::PRECISIONS.split(',').map(str::to_owned).collect(),
            dose: Vec::new(),
            choose_dose: false,
            limit: None,
            quantize_head: false,
            corpus: None,
            divergence: true,
            survival: true,
            samples: true,
            fail_on: Vec::new(),
            criteria: CriteriaTable::default(),
            device: DeviceTable::default(),
            released: Vec::new(),
            series: Vec::new(),
        }
    }
}

impl PlanFile {
    /// Reads a plan.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not TOML, has a key that no plan has, or lacks what every plan must have.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let remedy = "name a plan.toml, or the folder of a run with --resume";
        let text = read_text(path, "the plan", remedy, LIMIT_BYTES)?;
        let mut plan: Self = toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
            broken(path, &format!("line {line}"), error.message(), "what a plan holds")
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        plan.resolve(folder)?;
        plan.spell()?;
        plan.check(path)?;
        Ok(plan)
    }

    /// Makes all paths absolute; relative ones are relative to `folder`.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if a path is empty.
    pub(super) fn resolve(&mut self, folder: &Path) -> Result<()> {
        let named = [
            ("--target", self.target.iter_mut().collect::<Vec<_>>()),
            ("--unlearned", self.unlearned.iter_mut().collect()),
            ("--retrain", self.retrain.iter_mut().collect()),
            ("--data", self.data.iter_mut().collect()),
            ("--tokenizer", self.tokenizer.iter_mut().collect()),
            ("--released", self.released.iter_mut().map(ReleasedTable::checkpoint).collect()),
            ("--series", self.series.iter_mut().flat_map(SeriesTable::checkpoints).collect()),
        ];
        for (flag, paths) in named {
            for path in paths {
                if path.as_os_str().is_empty() {
                    let (found, expected) = ("an empty path".to_owned(), "a directory".to_owned());
                    return Err(Error::Flag { flag, found, expected });
                }
                let absolute = std::path::absolute(folder.join(&*path));
                *path = absolute.map_err(Error::read(path))?;
            }
        }
        Ok(())
    }

    /// Spells what has several spellings as flags are written.
    fn spell(&mut self) -> Result<()> {
        for name in &mut self.precision {
            *name = name.parse::<Precision>()?.to_string();
        }
        for dose in &mut self.dose {
            *dose = share("--dose", dose)?.to_string();
        }
        self.device.spell()
    }

    /// Checks that it says what is audited.
    fn check(&self, path: &Path) -> Result<()> {
        let given = [
            ("target", self.target.is_some(), true),
            ("data", self.data.is_some(), true),
            ("unlearned", !self.unlearned.is_empty(), self.series.is_empty()),
            ("retrain", self.retrain.is_some(), false),
        ];
        for (field, given, needed) in given {
            if self.demo && given {
                return Err(broken(path, field, "a directory", "none: demo = true says what is audited"));
            }
            if !self.demo && needed && !given {
                return Err(broken(path, field, "nothing", "a directory"));
            }
        }
        Ok(())
    }

    /// Whether arms are held against each other: one at a time, there is nothing to hold them against.
    pub(super) fn compares(&self) -> bool {
        self.divergence && !self.device.naive()
    }

    /// The file's text.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if a path is not UTF-8.
    pub(super) fn to_text(&self) -> Result<String> {
        let text = toml::to_string(self).map_err(|error| Error::Flag {
            flag: "--out",
            found: error.to_string(),
            expected: "paths in UTF-8 (--no-out keeps no plan)".to_owned(),
        })?;
        let version = env!("CARGO_PKG_VERSION");
        Ok(format!("# undertext {version}: `undertext audit plan.toml` asks the same again.\n\n{text}"))
    }

    /// What is asked, if it is not the demo.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if a precision does not exist.
    pub(super) fn request(&self) -> Result<Request> {
        Ok(Request {
            target: self.target.clone().unwrap_or_default(),
            unlearned: self.unlearned.clone(),
            retrain: self.retrain.clone(),
            data: self.data.clone().unwrap_or_default(),
            precisions: self.precision.iter().map(|name| name.parse()).collect::<Result<Vec<Precision>>>()?,
            doses: self.dose.iter().map(|dose| share("--dose", dose)).collect::<Result<_>>()?,
            choose_dose: self.choose_dose,
            no_samples: !self.samples,
            limit: self.limit,
            quantize_head: self.quantize_head,
            tokenizer: self.tokenizer.clone(),
            corpus: self.corpus.map(Into::into),
            released: self.released.iter().map(ReleasedTable::request).collect::<Result<_>>()?,
            series: self.series.iter().map(Into::into).collect(),
            criteria: self.criteria.into(),
        })
    }

    /// Fails if the plan in the file at `path`, which is `theirs`, is not this one.
    ///
    /// # Errors
    ///
    /// [`Error::PlansDiffer`] with the first field that differs.
    pub(super) fn same_as(&self, theirs: &Self, path: &Path) -> Result<()> {
        match theirs.difference(self) {
            Some((field, found, asked)) => {
                Err(Error::PlansDiffer { path: path.to_path_buf(), field, found, asked })
            }
            None => Ok(()),
        }
    }

    /// The first field that is not as in `other`, with its value here and there.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let table = |plan: &Self| toml::Table::try_from(plan).unwrap_or_default();
        difference("", &table(self), &table(other))
    }
}

/// The first field that differs, with both values.
fn difference(within: &str, found: &toml::Table, asked: &toml::Table) -> Option<(String, String, String)> {
    let mut keys: Vec<_> = found.keys().chain(asked.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let name = format!("{within}{key}");
        match (found.get(key), asked.get(key)) {
            (Some(toml::Value::Table(found)), Some(toml::Value::Table(asked))) => {
                if let Some(difference) = difference(&format!("{name}."), found, asked) {
                    return Some(difference);
                }
            }
            (found, asked) if found != asked => {
                let say = |value: Option<&toml::Value>| {
                    value.map_or_else(|| "not given".to_owned(), ToString::to_string)
                };
                return Some((name, say(found), say(asked)));
            }
            _ => {}
        }
    }
    None
}

fn broken(path: &Path, what: &str, found: &str, expected: &str) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        what: what.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Criteria, SeriesRequest};
    use crate::gpu::{DeviceChoice, Tuning};
    use crate::kernels::KvFormat;

    #[test]
    fn a_plan_reads_back() {
        let plan = PlanFile {
            target: Some("/m/target \"x\"".into()),
            unlearned: vec!["/m/a".into(), "/m/b".into()],
            data: Some("/d".into()),
            limit: Some(4),
            corpus: Some(CorpusName::News),
            fail_on: vec![OutcomeName::Resurrected],
            device: DeviceTable::new(
                Some(&DeviceChoice::Backend("vulkan".to_owned(), 1)),
                Tuning::Off,
                Some((96 << 20) + 1),
                KvFormat::F32,
                true,
            ),
            series: vec!["size=/m/a@1,/m/b@2.5".parse::<SeriesRequest>().unwrap().into()],
            ..PlanFile::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        std::fs::write(&path, plan.to_text().unwrap()).unwrap();
        let read = PlanFile::read(&path).unwrap();
        assert_eq!(read, plan);
        assert!(read.same_as(&plan, &path).is_ok());
        assert_eq!(read.device.choice(), Some(DeviceChoice::Backend("vulkan".to_owned(), 1)));
        assert_eq!(read.device.vram().unwrap(), Some((96 << 20) + 1));
        assert_eq!(read.request().unwrap().series[0].steps[1], ("/m/b".into(), 2.5));
    }

    #[test]
    fn what_differs_is_named() {
        let one = PlanFile::default();
        let criteria = Criteria { seed: 7, ..Criteria::default() }.into();
        let other = PlanFile { criteria, ..PlanFile::default() };
        let error = other.same_as(&one, Path::new("x/plan.toml")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("criteria.seed is 0 there and 7 here"), "{error}");
        let limited = PlanFile { limit: Some(3), ..PlanFile::default() };
        let error = limited.same_as(&one, Path::new("x/plan.toml")).unwrap_err().to_string();
        assert!(error.contains("limit is not given there and 3 here"), "{error}");
    }
}
