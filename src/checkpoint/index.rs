//! Which files of a checkpoint hold its weights.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::config::refuse_adapter;
use super::files::{malformed, read_object};
use crate::error::{Error, Result};

/// Longest index that is read. That of a 405B model has a few hundred kilobytes.
const LIMIT_BYTES: u64 = 64 << 20;

/// The weight files of a checkpoint.
pub(super) enum Files {
    /// `model.safetensors`.
    Single(PathBuf),
    /// The shards that the index names.
    Sharded {
        /// The index.
        index: PathBuf,
        /// The shards, sorted by name.
        files: Vec<PathBuf>,
        /// Tensor to index in `files`.
        places: HashMap<String, usize>,
    },
}

/// Finds the weight files of a checkpoint directory, as transformers does: one file before an index.
pub(super) fn files(checkpoint: &Path) -> Result<Files> {
    let single = checkpoint.join("model.safetensors");
    if single.exists() {
        return Ok(Files::Single(single));
    }
    let index = checkpoint.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(refuse_other_formats(checkpoint));
    }
    let map = read_object(&index, "index", "", LIMIT_BYTES)?;
    let Some(Value::Object(weights)) = map.get("weight_map") else {
        return Err(malformed(
            &index,
            "weight_map",
            "none",
            "an object of tensor names and files".to_owned(),
        ));
    };

    let mut names = Vec::new();
    for (tensor, file) in weights {
        let what = || format!("weight_map of {tensor}");
        let Value::String(file) = file else {
            return Err(malformed(&index, &what(), &file.to_string(), "the name of a file".to_owned()));
        };
        // A checkpoint is somebody else's data: it does not get to read elsewhere on this machine.
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || file.is_empty() || file.contains('\\') {
            return Err(malformed(&index, &what(), file, "a file inside the checkpoint".to_owned()));
        }
        names.push((tensor, file));
    }
    let mut files: Vec<_> = names.iter().map(|(_, file)| *file).collect();
    files.sort_unstable();
    files.dedup();
    let places = names.iter().map(|(tensor, file)| {
        let place = files.binary_search(file).unwrap_or(0);
        ((*tensor).clone(), place)
    });
    let places = places.collect();
    let files = files.into_iter().map(|file| checkpoint.join(file)).collect();
    Ok(Files::Sharded { index, files, places })
}

/// Says what is there in place of weights that can be read.
fn refuse_other_formats(checkpoint: &Path) -> Error {
    if let Err(error) = refuse_adapter(checkpoint) {
        return error;
    }
    let entries = match std::fs::read_dir(checkpoint) {
        Ok(entries) => entries,
        Err(source) => return Error::Read { path: checkpoint.to_path_buf(), source },
    };
    let mut names: Vec<_> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort_unstable();
    let with = |ending: &[&str]| {
        names.iter().find(|name| ending.iter().any(|ending| name.ends_with(ending))).cloned()
    };
    if let Some(found) = with(&[".safetensors"]) {
        return Error::Missing {
            path: checkpoint.join("model.safetensors.index.json"),
            what: "the index of the weight files",
            remedy: format!("there is {found}, but neither model.safetensors nor an index that names it"),
        };
    }
    if let Some(found) = with(&[".bin", ".bin.index.json", ".pth", ".pt", ".gguf", ".npz", ".h5", ".msgpack"])
    {
        return Error::Unsupported {
            path: checkpoint.to_path_buf(),
            what: "weight file",
            found,
            supported: "safetensors (convert with transformers' save_pretrained)".to_owned(),
        };
    }
    Error::Missing {
        path: checkpoint.join("model.safetensors"),
        what: "the weight file",
        remedy: "a checkpoint holds model.safetensors, or shards and model.safetensors.index.json".to_owned(),
    }
}
