//! Quantized files as they are handed out, judged as what they claim to be: an unlearned model at a precision.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::codes::CodesPlan;
use super::codes::pair::Pair;
use super::plan::Model;
use super::rounded::{BLOCK, Tallies, Tally};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::quant::{Precision, Scheme, decode, encode};

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
        Ok(Self { of, path: PathBuf::from(path), scheme })
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
}

impl Released {
    /// What its arm is called.
    #[must_use]
    pub fn precision(&self) -> Precision {
        Precision::Released(self.scheme)
    }

    /// Opens it, and checks that it has the architecture of the model that it is said to be.
    pub(super) fn open(&self, model: &Checkpoint) -> Result<Arc<Checkpoint>> {
        let checkpoint = Checkpoint::open(&self.path)?;
        let sizes = |checkpoint: &Checkpoint| {
            let config = checkpoint.config();
            [
                ("the number of layers", config.layers),
                ("the width", config.hidden_size),
                ("the feed-forward width", config.intermediate_size),
                ("the number of heads", config.heads),
                ("the number of key and value heads", config.kv_heads),
                ("the vocabulary", config.vocab_size),
            ]
        };
        let mut both = sizes(&checkpoint).into_iter().zip(sizes(model));
        if let Some(((what, found), (_, expected))) = both.find(|(ours, theirs)| ours != theirs) {
            return Err(Error::CheckpointsDiffer {
                path: self.path.clone(),
                target: model.path().to_path_buf(),
                what: what.to_owned(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        Ok(Arc::new(checkpoint))
    }
}

/// Finds the models that released files are of.
///
/// # Errors
///
/// [`Error::Flag`] if a name is no unlearned model's, is left out where there are several, the scheme is not known, or a
/// model has two files of one scheme.
pub(super) fn resolve(
    asked: Vec<ReleasedRequest>,
    models: &[Model],
    unlearned: &[usize],
) -> Result<Vec<Released>> {
    let mut all: Vec<Released> = Vec::new();
    for ReleasedRequest { of, path, scheme } in asked {
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
        if all.iter().any(|other| (other.model, other.scheme) == (model, scheme)) {
            let name = &models[model].name;
            return Err(refuse(&found, &format!("one file of {name} in {scheme}")));
        }
        all.push(Released { model, path, scheme });
    }
    Ok(all)
}

fn refuse(found: &str, expected: &str) -> Error {
    Error::Flag { flag: "--released", found: found.to_owned(), expected: expected.to_owned() }
}

/// Streams target, unlearned model and released file; gives what the file keeps of the update, as one precision's tallies. What
/// is counted as moved is every weight that is not at the nearest code's value.
pub(super) fn survival(
    pair: &CodesPlan,
    released: &Path,
    scheme: Scheme,
    watch: &mut dyn FnMut(u64, u64),
) -> Result<Tallies> {
    let pair = Pair::open(pair)?;
    let released = Checkpoint::open(released)?;
    let blocks: Vec<_> = pair.blocks(BLOCK).into_iter().filter(|block| block.matrix.is_some()).collect();
    let total = blocks.iter().map(|block| block.weights()).sum();
    let places: Vec<_> = pair.places().collect();
    let (mut tallies, mut done) = (vec![Tally::default(); places.len()], 0);
    for block in &blocks {
        let Some(tally) = block.matrix.map(|matrix| &mut tallies[matrix]) else { continue };
        let [rows, cols] = block.shape();
        let [old, new] = pair.read(block)?.each_ref().map(Tensor::to_f32);
        let to = block.read(&released)?.to_f32();
        let [from, nearest] = [&old, &new].map(|weights| decode(&encode(scheme, weights, rows, cols)));
        tally.weights += new.len() as u64;
        tally.moved += to.iter().zip(&nearest).filter(|(to, nearest)| to != nearest).count() as u64;
        tally.add(&old, &new, &from, &to);
        done += block.weights();
        watch(done, total);
    }
    let bytes = pair.disk_bytes() + released.tensors().bytes_read();
    Ok(Tallies { places, tallies: vec![tallies], bytes })
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
