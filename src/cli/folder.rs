//! A run's folder.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan.toml` | the whole plan |
//! | `report.json`, `report.html` | the record of what was measured so far, and its page; replaced in one step |
//! | `run.log` | what stderr said, with times |
//! | `observations/`, `comparisons/`, `inputs.json` | the [store](crate::audit::Store) |
//! | `sessions.json` | what each session cost |
//! | `kernels.json` | the kernels that were chosen on the device; one that is there before the run decides |
//! | `repaired/` | checkpoints that `--calibrate` made for the run |
//! | `survival.json` | of a shard: how much of updates survives, for the report of all shards |
//! | `.lock` | locked while a process writes to the folder |

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::output::{Output, notice};
use super::plan_file::PlanFile;
use super::{interrupt, log};
use crate::audit::Inputs;
use crate::checkpoint::files::replace;
use crate::error::{Error, Result};
use crate::report::{Localization, Report, report_html, schema};

/// Where dated folders go.
const RUNS: &str = "undertext-runs";

pub(super) const PLAN: &str = "plan.toml";
pub(super) const REPORT: &str = "report.json";
pub(super) const KERNELS: &str = "kernels.json";
pub(super) const REPAIRED: &str = "repaired";
const PAGE: &str = "report.html";
const LOCK: &str = ".lock";
const SESSIONS: &str = "sessions.json";

/// Where a run is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Out {
    /// Nowhere.
    None,
    /// To a new folder that is named by the time and by what is audited.
    Dated,
    /// To this folder: a new or empty one, or that of the same plan, which goes on.
    Folder(PathBuf),
    /// To this folder, whose plan it is.
    Resumed(PathBuf),
}

/// What one session cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session {
    began: String,
    counters: schema::Counters,
    gpu_seconds: BTreeMap<String, f64>,
    gpu_timed_dispatches: u64,
}

/// A folder that this process alone writes to.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    began: String,
    /// Sessions before this one, as far as known.
    before: Vec<Session>,
    /// What `undertext localize --into` has added to the report.
    localizations: Vec<Localization>,
    /// Unlocked when it is closed, however the process ends.
    _lock: File,
}

impl Folder {
    /// Opens the folder of a run and says where it is; none if nothing is to be written. `name` is part of a dated folder's.
    ///
    /// # Errors
    ///
    /// If the folder holds something else, or another plan's run, or cannot be written, or is in use.
    pub(super) fn open(out: &Out, plan: &PlanFile, name: &str) -> Result<Option<Self>> {
        // Before anything is made: not every plan can be written.
        let text = if *out == Out::None { String::new() } else { plan.to_text()? };
        let path = match out {
            Out::None => return Ok(None),
            Out::Dated => dated(name)?,
            Out::Folder(path) | Out::Resumed(path) => path.clone(),
        };
        fs::create_dir_all(&path).map_err(Error::write(&path))?;
        refuse_others(&path)?;
        let lock = lock(&path)?;
        let file = path.join(PLAN);
        let resumed = file.exists();
        if resumed {
            plan.same_as(&PlanFile::read(&file)?, &file)?;
        } else {
            replace(&file, text.as_bytes())?;
        }
        log::open(&path.join("run.log"))?;
        let before = sessions(&path.join(SESSIONS));
        notice(&format!("{} {}", if resumed { "going on in" } else { "writing to" }, path.display()));
        interrupt::resume_from(Some(path.clone()));
        let localizations = localizations(&path.join(REPORT));
        Ok(Some(Self { path, began: log::now(), before, localizations, _lock: lock }))
    }

    /// A file of the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves out what was localized with other weights than the run has now.
    pub(super) fn check_localizations(&mut self) -> Result<()> {
        let Some(inputs) = Inputs::of_run(&self.path)? else { return Ok(()) };
        self.localizations.retain(|found| {
            let changed = found.weights.iter().find(|(name, weights)| inputs.weights(name) != Some(weights));
            if let Some((name, _)) = changed {
                let of = found.model.as_deref().unwrap_or_default();
                notice(&format!(
                    "the weights of {name} have changed: what was localized in {of} at {} is left out",
                    found.precision
                ));
            }
            changed.is_none()
        });
        Ok(())
    }

    /// Adds to a report of this session what the sessions before it cost, and what was localized.
    pub(super) fn add_sessions(&self, report: &mut Report) {
        report.localizations.clone_from(&self.localizations);
        for session in &self.before {
            report.counters.add(&session.counters);
            for (kernel, seconds) in &session.gpu_seconds {
                *report.gpu_seconds.entry(kernel.clone()).or_default() += seconds;
            }
            report.gpu_timed_dispatches += session.gpu_timed_dispatches;
        }
    }

    /// Writes down what this session has cost so far; `report` is without [the others](Self::add_sessions).
    pub(super) fn save_session(&self, report: &Report) -> Result<()> {
        let session = Session {
            began: self.began.clone(),
            counters: report.counters.clone(),
            gpu_seconds: report.gpu_seconds.clone(),
            gpu_timed_dispatches: report.gpu_timed_dispatches,
        };
        let all: Vec<_> = self.before.iter().chain([&session]).collect();
        replace(&self.file(SESSIONS), Output::to_json(&all)?.as_bytes())
    }

    /// Counts the sessions of the runs in these folders as those before this one.
    pub(super) fn follow(&mut self, folders: &[PathBuf]) {
        self.before = folders.iter().flat_map(|folder| sessions(&folder.join(SESSIONS))).collect();
    }

    /// Whether an earlier session left a report.
    pub(super) fn has_report(&self) -> bool {
        self.file(REPORT).exists()
    }

    /// Replaces the report and its page.
    pub(super) fn save(&self, report: &Report) -> Result<()> {
        save(&self.path, report)
    }
}

/// Replaces the report of a folder, and its page.
pub(super) fn save(folder: &Path, report: &Report) -> Result<()> {
    replace(&folder.join(REPORT), Output::to_json(report)?.as_bytes())?;
    replace(&folder.join(PAGE), report_html(report).as_bytes())
}

/// Makes a folder that was not there.
fn dated(name: &str) -> Result<PathBuf> {
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S");
    let name = file_name(name);
    let runs = Path::new(RUNS);
    fs::create_dir_all(runs).map_err(Error::write(runs))?;
    let mut number = 1;
    loop {
        let more = if number == 1 { String::new() } else { format!("-{number}") };
        let path = runs.join(format!("{time}_{name}{more}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => return made.map(|()| path.clone()).map_err(Error::write(&path)),
        }
    }
}

/// A report's name for something, as a file's.
pub(super) fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '_' }).collect()
}

/// Refuses a folder with files that are none of a run's. One that is not there is no run's either, but may become it.
pub(super) fn refuse_others(path: &Path) -> Result<()> {
    if path.join(PLAN).exists() || !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(Error::read(path))? {
        let name = entry.map_err(Error::read(path))?.file_name();
        // What a run leaves that is killed before it has written its plan, kernels that it is to compute with, and
        // checkpoints that were made for it.
        if ![LOCK, ".plan.toml.tmp", KERNELS, REPAIRED].iter().any(|ours| name == *ours) {
            return Err(Error::Malformed {
                path: path.to_path_buf(),
                what: "the run's folder".to_owned(),
                found: format!("{} and no {PLAN}", name.display()),
                expected: "a new or empty folder, or that of a run".to_owned(),
            });
        }
    }
    Ok(())
}

pub(super) fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(Error::write(&file))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => {
            notice(&cannot_be_locked(path, &error));
        }
        Ok(()) => {}
    }
    Ok(lock)
}

fn cannot_be_locked(path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be locked ({error}); do not start another run there", path.display())
}

/// What was localized into an earlier report. One that cannot be read has nothing that could be kept.
fn localizations(path: &Path) -> Vec<Localization> {
    let Ok(bytes) = fs::read(path) else { return Vec::new() };
    let found = serde_json::from_slice::<serde_json::Value>(&bytes)
        .and_then(|mut report| serde_json::from_value(report["localizations"].take()))
        .map(Option::<Vec<Localization>>::unwrap_or_default);
    found.unwrap_or_else(|error| {
        notice(&format!("{}: {error}; what was localized before is not kept", path.display()));
        Vec::new()
    })
}

/// Whether two paths lead to one directory.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Keeps runs from beginning in a folder as long as the file lives; none if there is no lock to hold.
///
/// # Errors
///
/// [`Error::Locked`] if one is under way.
pub(super) fn hold(path: &Path) -> Result<Option<File>> {
    // Only opened to be read: others' folders may be read-only.
    let lock = match File::open(path.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                notice(&cannot_be_locked(path, &error));
            }
            return Ok(None);
        }
    };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => {
            notice(&cannot_be_locked(path, &error));
            Ok(None)
        }
        Ok(()) => Ok(Some(lock)),
    }
}

/// What earlier sessions cost; a file that cannot be read only costs these counts.
fn sessions(path: &Path) -> Vec<Session> {
    let Ok(bytes) = fs::read(path) else { return Vec::new() };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        notice(&format!("{}: {error}; the counters are those of this session alone", path.display()));
        Vec::new()
    })
}
