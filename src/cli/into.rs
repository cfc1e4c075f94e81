//! `undertext localize --into`: a finding goes into the report of the run that it belongs to.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::demo::Family;
use super::folder::{PLAN, REPORT, lock, same, save};
use super::output::notice;
use super::plan_file::PlanFile;
use super::report::read;
use super::session::read_again;
use crate::audit::{Inputs, LocalizePlan, Model, Plan, Role};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::report::{Localization, Report};

/// A run with its report, kept from others as long as this lives.
#[derive(Debug)]
pub(super) struct RunReport {
    folder: PathBuf,
    plan: Plan,
    report: Report,
    /// What the run was made with.
    inputs: Inputs,
    /// The models, if they are those built into the program.
    _family: Option<Family>,
    _lock: File,
}

impl RunReport {
    /// Opens the folder of a run that has a report.
    ///
    /// # Errors
    ///
    /// If it is none, or in use.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        let file = PlanFile::read(&folder.join(PLAN))?;
        if let Some(shard) = file.shard {
            return Err(Error::Flag {
                flag: "--into",
                found: folder.display().to_string(),
                expected: format!(
                    "the folder of a whole run; this is shard {shard}, whose record has no figures"
                ),
            });
        }
        let lock = lock(&folder)?;
        let report = read(&folder.join(REPORT))?;
        let inputs = Inputs::of_run(&folder)?.ok_or_else(|| Error::Missing {
            path: folder.join(REPORT),
            what: "what the run was made with",
            remedy: "run the audit first".to_owned(),
        })?;
        let family = file.demo.then(Family::unpack).transpose()?;
        let request = file.request()?;
        let request = match &family {
            Some(family) => family.request(request),
            None => request,
        };
        Ok(Self { plan: Plan::new(request)?, folder, report, inputs, _family: family, _lock: lock })
    }

    /// The run's target, or `asked` if that is the same directory.
    pub(super) fn target(&self, asked: Option<PathBuf>) -> Result<PathBuf> {
        self.own("the target", &self.plan.models[Plan::TARGET].path, asked)
    }

    /// The run's questions, likewise.
    pub(super) fn data(&self, asked: Option<PathBuf>) -> Result<PathBuf> {
        self.own("the questions", &self.plan.data, asked)
    }

    /// The run's unlearned model with this name or directory; the only one if none is asked for.
    pub(super) fn unlearned(&self, asked: Option<PathBuf>) -> Result<PathBuf> {
        let models = || self.plan.unlearned().map(|model| &self.plan.models[model]);
        let names = || models().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let Some(asked) = asked else {
            let mut all = models();
            return match (all.next(), all.next()) {
                (Some(one), None) => Ok(one.path.clone()),
                _ => Err(Error::Flag {
                    flag: "--unlearned",
                    found: "none".to_owned(),
                    expected: format!("say which model of the run: {}", names()),
                }),
            };
        };
        let named = models().find(|model| Path::new(&model.name) == asked);
        let found = named.or_else(|| models().find(|model| same(&model.path, &asked)));
        found.map(|model| model.path.clone()).ok_or_else(|| Error::Flag {
            flag: "--into",
            found: self.folder.display().to_string(),
            expected: format!("a run with the unlearned model {}; this one has {}", asked.display(), names()),
        })
    }

    /// As many examples as the run had, unless told.
    pub(super) fn limit(&self, asked: Option<usize>) -> Option<usize> {
        asked.or(self.plan.limit)
    }

    fn own(&self, what: &str, own: &Path, asked: Option<PathBuf>) -> Result<PathBuf> {
        match asked {
            Some(asked) if !same(own, &asked) => Err(Error::Flag {
                flag: "--into",
                found: self.folder.display().to_string(),
                expected: format!("a run with {what} {}; this one has {}", asked.display(), own.display()),
            }),
            _ => Ok(own.to_owned()),
        }
    }

    /// The hashes of the weights that are localized in, by model. Fails if a checkpoint has others than when the run asked it.
    pub(super) fn check(&self, plan: &LocalizePlan) -> Result<BTreeMap<String, String>> {
        let mut weights = BTreeMap::new();
        for path in [&plan.target, &plan.unlearned] {
            let Some(model) = self.model(path) else { unreachable!("{} is of the run", path.display()) };
            let checkpoint = Checkpoint::open(path)?;
            let now = read_again(|watch| {
                checkpoint.tensors().content_hash(&mut |done, total| watch(&model.name, done, total))
            })?;
            if self.inputs.weights(&model.name) != Some(now.as_str()) {
                return Err(Error::Malformed {
                    path: path.clone(),
                    what: format!("the weights of {}", model.name),
                    found: "others".to_owned(),
                    expected: format!(
                        "those that {} was made with; `undertext audit --resume` first",
                        self.folder.display()
                    ),
                });
            }
            weights.insert(model.name.clone(), now);
        }
        Ok(weights)
    }

    fn model(&self, path: &Path) -> Option<&Model> {
        self.plan.models.iter().find(|model| model.path == path && model.role != Role::Retrain)
    }

    /// Puts the finding, with what [`check`](Self::check) gave, in the place of an earlier one on the same model and precision, and makes the page anew.
    pub(super) fn add(
        mut self,
        plan: &LocalizePlan,
        weights: BTreeMap<String, String>,
        record: &mut Localization,
    ) -> Result<()> {
        let model = self.model(&plan.unlearned).map(|model| model.name.clone());
        record.weights = weights;
        // As the report names them, which for the built-in family is not where they are.
        for (path, own) in [(&plan.target, &mut record.target), (&plan.unlearned, &mut record.unlearned)] {
            let name = self.model(path).map(|model| model.name.as_str());
            if let Some(arm) = self.report.arms.iter().find(|arm| Some(arm.name.as_str()) == name) {
                own.clone_from(&arm.path);
            }
        }
        record.model = model;
        let all = &mut self.report.localizations;
        let place =
            all.iter().position(|other| other.model == record.model && other.precision == record.precision);
        match place {
            Some(place) => all[place] = record.clone(),
            None => all.push(record.clone()),
        }
        save(&self.folder, &self.report)?;
        notice(&format!("added to {}", self.folder.join(REPORT).display()));
        Ok(())
    }
}
