//! What an audit is made of, checked before any heavy work.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::released::{self, Released, ReleasedRequest};
use super::series::{Series, SeriesRequest, resolve};
use super::verdict::Criteria;
use crate::error::{Error, Result};
use crate::metrics::membership::Corpus;
use crate::quant::{Precision, Rounding, Scheme, Share};

/// What a checkpoint is in an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learned everything.
    Target,
    /// Was made to forget.
    Unlearned,
    /// Never saw the forget set.
    Retrain,
}

impl Role {
    /// The name in flags and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Unlearned => "unlearned",
            Self::Retrain => "retrain",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One checkpoint of an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What reports call it: its directory's name, made unique.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its directory.
    pub path: PathBuf,
}

/// What the user asks for, unchecked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The checkpoint that learned everything.
    pub target: PathBuf,
    /// The checkpoints that were made to forget; at least one.
    pub unlearned: Vec<PathBuf>,
    /// The checkpoint that never saw the forget set.
    pub retrain: Option<PathBuf>,
    /// The data directory, in MUSE's layout.
    pub data: PathBuf,
    /// Precisions in the order of the report.
    pub precisions: Vec<Precision>,
    /// Most examples of each question set.
    pub limit: Option<usize>,
    /// Whether the head is quantized too.
    pub quantize_head: bool,
    /// A directory whose tokenizer serves all checkpoints.
    pub tokenizer: Option<PathBuf>,
    /// The corpus whose published AUC is PrivLeak's reference.
    pub corpus: Option<Corpus>,
    /// Unlearned checkpoints that are steps of a series; those that are not in [`Self::unlearned`] are added to it.
    pub series: Vec<SeriesRequest>,
    /// Quantized files of unlearned checkpoints, each an arm of its model.
    pub released: Vec<ReleasedRequest>,
    /// Shares of the update that kept rounding is to keep, each in an arm of its own beside every 4-bit precision.
    pub doses: Vec<Share>,
    /// Whether the smallest of them that forgets as the model at full precision does is looked for.
    pub choose_dose: bool,
    /// Whether the report is to be without the questions' texts and the answers.
    pub no_samples: bool,
    /// How figures are judged.
    pub criteria: Criteria,
}

/// A [`Request`] that makes sense.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Target, unlearned, retrain; names are unique.
    pub models: Vec<Model>,
    /// Full precision first, no precision twice. Roundings other than the nearest come after it, and are for unlearned
    /// models only ([`Self::arms`]).
    pub precisions: Vec<Precision>,
    /// Quantized files, those of a model in one scheme numbered.
    pub released: Vec<Released>,
    /// Whether the smallest dose that forgets as the model at full precision does is looked for.
    pub choose_dose: bool,
    /// Whether the report is without the questions' texts and the answers.
    pub no_samples: bool,
    /// The data directory.
    pub data: PathBuf,
    /// Most examples of each question set.
    pub limit: Option<usize>,
    /// Whether the head is quantized too.
    pub quantize_head: bool,
    /// A directory whose tokenizer serves all checkpoints.
    pub tokenizer: Option<PathBuf>,
    /// The corpus whose published AUC is PrivLeak's reference.
    pub corpus: Option<Corpus>,
    /// Unlearned models that are steps of a series.
    pub series: Vec<Series>,
    /// How figures are judged.
    pub criteria: Criteria,
    /// What was changed or is odd about the request, one sentence each.
    pub notices: Vec<String>,
}

impl Plan {
    /// Checks the request. Reads nothing.
    ///
    /// Full precision is what recovery is measured from: it is added if it was not asked for, and comes first.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] if there is no unlearned checkpoint, one is given twice, the limit is 0, or a series or a
    /// criterion makes no sense.
    pub fn new(request: Request) -> Result<Self> {
        let Request {
            target,
            mut unlearned,
            retrain,
            data,
            precisions,
            limit,
            quantize_head,
            tokenizer,
            corpus,
            series,
            released,
            doses,
            choose_dose,
            no_samples,
            criteria,
        } = request;
        criteria.check()?;
        if limit == Some(0) {
            return Err(flag("--limit", "0", "at least one example of each question set"));
        }
        let mut notices = Vec::new();
        let mut seen = HashSet::new();
        for path in &unlearned {
            if !seen.insert(identity(path)) {
                let found = path.display().to_string();
                return Err(flag("--unlearned", &found, "each checkpoint once"));
            }
        }
        for (path, _) in series.iter().flat_map(|series| &series.steps) {
            if seen.insert(identity(path)) {
                unlearned.push(path.clone());
            }
        }
        if unlearned.is_empty() {
            return Err(flag("--unlearned", "no directory", "at least one checkpoint directory"));
        }
        // The target comes before them.
        let place = |path: &Path| unlearned.iter().position(|other| identity(other) == identity(path));
        let series = resolve(series, |path| place(path).map_or(Self::TARGET, |place| place + 1))?;
        for (role, path) in [(Role::Target, Some(&target)), (Role::Retrain, retrain.as_ref())] {
            if let Some(path) = path.filter(|path| seen.contains(&identity(path))) {
                notices.push(format!("{} is given as --unlearned and as --{role}", path.display()));
            }
        }

        let paths = [(Role::Target, target)]
            .into_iter()
            .chain(unlearned.into_iter().map(|path| (Role::Unlearned, path)))
            .chain(retrain.map(|path| (Role::Retrain, path)));
        let (roles, paths): (Vec<_>, Vec<_>) = paths.unzip();
        let names = unique_names(&paths);
        let models = roles.into_iter().zip(paths).zip(names);
        let models: Vec<_> = models.map(|((role, path), name)| Model { name, role, path }).collect();
        let forgetful =
            models.iter().enumerate().filter(|(_, model): &(_, &Model)| model.role == Role::Unlearned);
        let forgetful: Vec<_> = forgetful.map(|(index, _)| index).collect();
        let released = released::resolve(released, &models, &forgetful)?;
        let mut precisions = full_first(&precisions, &mut notices);
        precisions.extend(released.iter().map(Released::precision));
        let precisions = with_doses(&precisions, &doses, &mut notices)?;
        Ok(Self {
            models,
            precisions,
            released,
            choose_dose: choose_dose && !doses.is_empty(),
            no_samples,
            data,
            limit,
            quantize_head,
            tokenizer,
            corpus,
            series,
            criteria,
            notices,
        })
    }

    /// Index of the target in [`Self::models`].
    pub const TARGET: usize = 0;

    /// Model and precision of every arm, by model, then by precision. Models that have no update to keep are not run in
    /// roundings that would keep one.
    pub fn arms(&self) -> impl Iterator<Item = (usize, Precision)> + '_ {
        let has = |model: usize, precision: Precision| match precision {
            Precision::Released(..) => self.released_as(model, precision).is_some(),
            _ => self.precision_of(model, precision) == precision,
        };
        (0..self.models.len()).flat_map(move |model| {
            let precisions = self.precisions.iter().copied();
            precisions
                .filter(move |&precision| has(model, precision))
                .map(move |precision| (model, precision))
        })
    }

    /// At what a model is run where others are at `precision`.
    #[must_use]
    pub fn precision_of(&self, model: usize, precision: Precision) -> Precision {
        match self.models[model].role {
            Role::Unlearned => precision,
            Role::Target | Role::Retrain => precision.plain(),
        }
    }

    /// Index in [`Self::released`] of the file that is run as a model at a precision.
    #[must_use]
    pub fn released_as(&self, model: usize, precision: Precision) -> Option<usize> {
        self.released.iter().position(|file| file.model == model && file.precision() == precision)
    }

    /// The directory of what is run as a model at a precision.
    #[must_use]
    pub fn path_of(&self, model: usize, precision: Precision) -> &Path {
        match self.released_as(model, precision) {
            Some(file) => &self.released[file].path,
            None => &self.models[model].path,
        }
    }

    /// The share of its update that a model's values at a precision were chosen to keep, if they were.
    #[must_use]
    pub fn share_of(&self, model: usize, precision: Precision) -> Option<Share> {
        match precision.rounding() {
            Rounding::Kept(share) => Some(share),
            _ => self.released[self.released_as(model, precision)?].keep,
        }
    }

    /// Every unlearned model in every 4-bit scheme that it is run in: what may need repair.
    pub fn repairable(&self) -> impl Iterator<Item = (usize, Scheme)> + '_ {
        // Nearest rounding is among them wherever another is ([`with_doses`]).
        let nearest = self.precisions.iter().copied().filter(|precision| *precision == precision.plain());
        let schemes = nearest.filter_map(four_bits);
        self.unlearned().flat_map(move |model| schemes.clone().map(move |scheme| (model, scheme)))
    }

    /// Index of the retrained model in [`Self::models`], if there is one.
    #[must_use]
    pub fn retrain(&self) -> Option<usize> {
        self.models.iter().position(|model| model.role == Role::Retrain)
    }

    /// Indices of the unlearned models in [`Self::models`].
    pub fn unlearned(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.models.len()).filter(|&index| self.models[index].role == Role::Unlearned)
    }
}

fn flag(flag: &'static str, found: &str, expected: &str) -> Error {
    Error::Flag { flag, found: found.to_owned(), expected: expected.to_owned() }
}

/// Drops repetitions and brings full precision to the front.
fn full_first(asked: &[Precision], notices: &mut Vec<String>) -> Vec<Precision> {
    let mut precisions = vec![Precision::Full];
    for &precision in asked {
        if precision != Precision::Full && precisions.contains(&precision) {
            notices.push(format!("--precision names {precision} more than once; it is run once"));
        } else if precision != Precision::Full {
            precisions.push(precision);
        }
    }
    if !asked.contains(&Precision::Full) {
        notices.push("fp16 is added to --precision: recovery is measured from full precision".to_owned());
    }
    precisions
}

/// The scheme of a 4-bit precision, in whatever rounding.
fn four_bits(precision: Precision) -> Option<Scheme> {
    precision.plain().quantizing().filter(|scheme| scheme.bits() == 4)
}

/// Puts nearest rounding before all else of its scheme (other models are run at that), and kept rounding at every dose after
/// every 4-bit scheme's, released files' too.
fn with_doses(asked: &[Precision], doses: &[Share], notices: &mut Vec<String>) -> Result<Vec<Precision>> {
    let mut precisions = Vec::with_capacity(asked.len());
    for &precision in asked {
        let plain = precision.plain();
        if !asked.contains(&plain) && !precisions.contains(&plain) {
            notices.push(format!("{plain} is added to --precision, to hold {precision} against"));
        }
        precisions.extend([plain, precision]);
        if let (Some(scheme), Rounding::Nearest) = (four_bits(precision), precision.rounding()) {
            precisions.extend(doses.iter().map(|share| Precision::Quantized(scheme, Rounding::Kept(*share))));
        }
    }
    let mut seen = HashSet::new();
    precisions.retain(|precision| seen.insert(*precision));
    if !doses.is_empty() && !asked.iter().any(|precision| four_bits(*precision).is_some()) {
        let names: Vec<_> = asked.iter().map(ToString::to_string).collect();
        return Err(flag("--precision", &names.join(","), "a 4-bit precision for --repair and --dose"));
    }
    Ok(precisions)
}

/// The directory behind `path` if it exists, so that two spellings of one directory are equal.
pub(super) fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Names the directories by their last component, with as many components before it as make them differ; a directory
/// that is given twice is numbered.
pub(super) fn unique_names(paths: &[PathBuf]) -> Vec<String> {
    // The user's own spelling is kept (a link's name says more than what it points to) unless it has no name.
    let parts = |path: &PathBuf| -> Vec<String> {
        let named = if path.file_name().is_some() { path.clone() } else { identity(path) };
        let parts = named.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        parts.filter(|part| part != "/").collect()
    };
    let parts: Vec<_> = paths.iter().map(parts).collect();
    let last = |parts: &[String], depth: usize| parts[parts.len().saturating_sub(depth)..].join("/");
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(paths.len());
    for (index, own) in parts.iter().enumerate() {
        let differs = |&depth: &usize| {
            let mut others = parts.iter().enumerate().filter(|(other, _)| *other != index);
            others.all(|(_, other)| last(other, depth) != last(own, depth))
        };
        let plain = last(own, (1..=own.len()).find(differs).unwrap_or(1));
        let mut unique = plain.clone();
        let mut number = 2;
        while !taken.insert(unique.clone()) {
            unique = format!("{plain} ({number})");
            number += 1;
        }
        names.push(unique);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        unique_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn names_are_the_directories_made_unique() {
        assert_eq!(names(&["a/target", "b/npo/", "c/ga"]), ["target", "npo", "ga"]);
        assert_eq!(names(&["run1/final", "run2/final", "x"]), ["run1/final", "run2/final", "x"]);
        assert_eq!(names(&["m", "m"]), ["m", "m (2)"]);
        assert_eq!(names(&["m", "a/m"]), ["m", "a/m"]);
    }

    #[test]
    fn full_precision_is_added_and_first() {
        let int8 = Precision::nearest(Scheme::Int8);
        let mut notices = Vec::new();
        assert_eq!(full_first(&[int8, Precision::Full], &mut notices), [Precision::Full, int8]);
        assert!(notices.is_empty());
        assert_eq!(full_first(&[int8, int8], &mut notices), [Precision::Full, int8]);
        assert_eq!(notices.len(), 2, "{notices:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let request = Request { target: "t".into(), unlearned: vec!["u".into()], ..Request::default() };
        assert!(Plan::new(request.clone()).is_ok());
        let none = Request { unlearned: vec![], ..request.clone() };
        let twice = Request { unlearned: vec!["u".into(), "u".into()], ..request.clone() };
        let zero = Request { limit: Some(0), ..request };
        for request in [none, twice, zero] {
            assert_eq!(Plan::new(request).unwrap_err().exit_code(), 2);
        }
    }
}
