//! `audit --calibrate`: checkpoints rounded on a text, made for an audit that judges them as `--released`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::folder::{REPAIRED, file_name, refuse_others};
use super::output::notice;
use super::plan_file::PlanFile;
use super::quantize::{RECORD, round};
use super::released::record;
use crate::audit::{Audit, Format, Plan, QuantizePlan, ReleasedRequest};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::Linear;
use crate::quant::{Rounding, Scheme, Share};
use crate::report::quantize::Quantized;

/// Writes every unlearned model of the plan in every 4-bit scheme to `out`/repaired, so that `share` of its update survives
/// and what it does on `text` changes least; those that are there stay. A model whose update survives nearest rounding
/// gets none.
///
/// # Errors
///
/// Whatever the audit itself would be refused for, before any of it; if a checkpoint cannot be written, or one that is there
/// is another.
pub(super) fn write(file: &PlanFile, text: &Path, share: Share, out: &Path) -> Result<Vec<ReleasedRequest>> {
    let plan = Plan::new(file.request()?)?;
    refuse_others(out)?;
    drop(Audit::open(plan.clone())?);
    let text = absolute(text)?;
    changed(&text)?;
    let mut made = Vec::new();
    for (index, scheme) in plan.repairable() {
        let (model, target) = (&plan.models[index], &plan.models[Plan::TARGET]);
        let path = out.join(REPAIRED).join(file_name(&format!("{}-{scheme}", model.name)));
        let asked = QuantizePlan {
            model: model.path.clone(),
            target: Some(target.path.clone()),
            scheme,
            rounding: Rounding::Kept(share),
            calibrate: Some(text.clone()),
            format: format(&model.path, scheme)?,
        };
        let what = format!("{} in {scheme}", model.name);
        let there = if path.exists() {
            check(&path, &asked, share)?;
            true
        } else {
            make(asked, &path, &what)?
        };
        if there {
            made.push(ReleasedRequest {
                of: Some(model.name.clone()),
                path: absolute(&path)?,
                scheme: Some(scheme),
            });
        }
    }
    Ok(made)
}

/// Makes one, unless there is nothing to repair; says which.
fn make(asked: QuantizePlan, path: &Path, what: &str) -> Result<bool> {
    let (record, draft) = round(asked, path)?;
    if record.nothing_to_repair {
        notice(&format!("{what}: nothing needs repair, nearest rounding keeps the update"));
        return Ok(false);
    }
    draft.publish()?;
    let survival = record.total.survival.map_or_else(String::new, |share| format!(" (survival {share:.2})"));
    notice(&format!("{what}: written to {}{survival}", path.display()));
    Ok(true)
}

/// Codes and scales, if all matrices can be written so.
fn format(model: &Path, scheme: Scheme) -> Result<Format> {
    let checkpoint = Checkpoint::open(model)?;
    let config = checkpoint.config();
    let cols = Linear::ALL.map(|linear| linear.shape(config)[1]);
    Ok(Format::smallest(scheme, &cols))
}

/// Refuses a directory that is not what is asked for, or older than what it would be made of.
fn check(path: &Path, asked: &QuantizePlan, share: Share) -> Result<()> {
    let refuse = |found: String, expected: String| Error::Malformed {
        path: path.to_path_buf(),
        what: "the repaired checkpoint".to_owned(),
        found,
        expected: format!("{expected}; remove the directory to have it made again"),
    };
    let record: Option<Quantized> = record(path)?;
    let record = record.ok_or_else(|| refuse(format!("no {RECORD}"), "that of an earlier run".to_owned()))?;
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let fields = [
        ("model", Some(record.model), Some(asked.model.display().to_string())),
        ("target", record.target, shown(&asked.target)),
        ("scheme", Some(record.scheme), Some(asked.scheme.name().to_owned())),
        ("keep", record.keep.map(|keep| keep.to_string()), Some(share.to_string())),
        ("calibrate", record.calibrate, shown(&asked.calibrate)),
    ];
    for (field, found, expected) in fields {
        if found != expected {
            let say = |value: Option<String>| format!("{field} = {}", value.as_deref().unwrap_or("null"));
            return Err(refuse(say(found), say(expected)));
        }
    }
    let mut sources: Vec<PathBuf> = asked.calibrate.iter().cloned().collect();
    for directory in [Some(&asked.model), asked.target.as_ref()].into_iter().flatten() {
        for entry in fs::read_dir(directory).map_err(Error::read(directory))? {
            let file = entry.map_err(Error::read(directory))?.path();
            sources
                .extend(Some(file).filter(|file| file.extension().is_some_and(|end| end == "safetensors")));
        }
    }
    let made = changed(&path.join(RECORD))?;
    for source in sources {
        if changed(&source)? > made {
            let found = format!("one made before {} changed", source.display());
            return Err(refuse(found, "one made after that".to_owned()));
        }
    }
    Ok(())
}

fn changed(path: &Path) -> Result<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(Error::read(path))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::read(path))
}
