//! Quantized files as they are handed out, judged as what they claim to be: an unlearned model at a precision.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::plan::{Model, identity};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::quant::{Precision, Scheme, Share};

/// A released file as the user gives it: `npo=models/npo-int4@int4-g128`. The unlearned model may be left out if there is
/// one, the scheme if the file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasedRequest {
    /// Of which unlearned model, by the name that reports call it.
    pub of: Option<String>,
    /// Its directory.
    pub path: PathBuf,
    /// The scheme that it is quantized in.
    pub scheme: Option<Scheme>,
    /// The share of the update that it was rounded to keep, if its record says one.
    pub keep: Option<Share>,
}

impl FromStr for ReleasedRequest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (of, rest) = match text.split_once('=') {
            Some((of, rest)) => (Some(of.trim().to_owned()), rest.trim()),
            None => (None, text.trim()),
        };
        // A directory's name may hold an @ itself.
        let (path, scheme) = match rest.rsplit_once('@').map(|(path, name)| (path, name.parse())) {
            Some((path, Ok(Precision::Quantized(scheme, _)))) => (path, Some(scheme)),
            _ => (rest, None),
        };
        if path.is_empty() || of.as_ref().is_some_and(String::is_empty) {
            return Err(refuse(text, "[UNLEARNED=]DIR[@SCHEME]"));
        }
        Ok(Self { of, path: PathBuf::from(path), scheme, keep: None })
    }
}

/// A released file of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Index in [`Plan::models`](super::Plan::models) of the unlearned model that it is made of.
    pub model: usize,
    /// Its directory.
    pub path: PathBuf,
    /// The scheme that it is quantized in.
    pub scheme: Scheme,
    /// Which of the model's files in this scheme it is, from 1.
    pub number: u32,
    /// The share of the update that it was rounded to keep, if its record says one.
    pub keep: Option<Share>,
}

impl Released {
    /// What its arm is called.
    #[must_use]
    pub fn precision(&self) -> Precision {
        Precision::Released(self.scheme, self.number)
    }

    /// Opens it, and checks that it runs as the model does that it is said to be.
    pub(super) fn open(&self, model: &Checkpoint) -> Result<Arc<Checkpoint>> {
        let checkpoint = Checkpoint::open(&self.path)?;
        checkpoint.must_run_like(model, "that of the unlearned checkpoint it is made of")?;
        Ok(Arc::new(checkpoint))
    }
}

/// Finds the models that released files are of.
///
/// # Errors
///
/// [`Error::Flag`] if a name is no unlearned model's, is left out where there are several, the scheme is not known, or a
/// file is given twice.
pub(super) fn resolve(
    asked: Vec<ReleasedRequest>,
    models: &[Model],
    unlearned: &[usize],
) -> Result<Vec<Released>> {
    let mut all: Vec<Released> = Vec::new();
    for ReleasedRequest { of, path, scheme, keep } in asked {
        let names = || unlearned.iter().map(|&model| models[model].name.as_str());
        let found = path.display().to_string();
        let model = match (&of, unlearned) {
            (None, [only]) => Some(*only),
            (None, _) => None,
            (Some(name), _) => unlearned.iter().copied().find(|&model| models[model].name == *name),
        };
        let Some(model) = model else {
            let found = of.map_or_else(|| found.clone(), |name| format!("{name}={found}"));
            let names: Vec<_> = names().collect();
            return Err(refuse(&found, &format!("UNLEARNED=DIR with one of {}", names.join(", "))));
        };
        let Some(scheme) = scheme else {
            return Err(refuse(&found, "DIR@SCHEME, since the files there do not say their scheme"));
        };
        if all.iter().any(|other| other.model == model && identity(&other.path) == identity(&path)) {
            return Err(refuse(&found, &format!("each file of {} once", models[model].name)));
        }
        let before = all.iter().filter(|other| (other.model, other.scheme) == (model, scheme));
        let number = 1 + before.map(|other| other.number).max().unwrap_or(0);
        all.push(Released { model, path, scheme, number, keep });
    }
    Ok(all)
}

fn refuse(found: &str, expected: &str) -> Error {
    Error::Flag { flag: "--released", found: found.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let read = |text: &str| text.parse::<ReleasedRequest>();
        let npo = read("npo=a/b@int4").unwrap();
        let int4 = Some(Scheme::Int4 { group: 128 });
        assert_eq!((npo.of.as_deref(), npo.path, npo.scheme), (Some("npo"), "a/b".into(), int4));
        let plain = read("a@b").unwrap();
        assert_eq!((plain.of, plain.path, plain.scheme), (None, "a@b".into(), None));
        for text in ["", "=a", "npo=", "@int4"] {
            assert_eq!(read(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
