//! `audit --calibrate`: checkpoints rounded on a text, made for an audit that judges them as `--released`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use super::folder::{PLAN, REPAIRED, file_name, refuse_others};
use super::output::notice;
use super::plan_file::PlanFile;
use super::quantize::{read_record, round};
use super::session::read_again;
use crate::audit::{Audit, Format, Plan, QuantizeInputs, QuantizePlan, ReleasedRequest, engine_revision};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::Linear;
use crate::quant::{Rounding, Scheme, Share};
use crate::report::quantize::Quantized;

/// Writes every unlearned model of the plan in every 4-bit scheme to `out`/repaired, once for each of `shares`, so that this
/// share of its update survives and what it does on `text` changes least; those that are there stay. A model whose update
/// survives nearest rounding gets none.
///
/// # Errors
///
/// Whatever the audit itself would be refused for, before any of it; if a checkpoint cannot be written, or one that is there
/// is another.
pub(super) fn write(
    file: &PlanFile,
    text: &Path,
    shares: &[Share],
    out: &Path,
) -> Result<Vec<ReleasedRequest>> {
    let plan = Plan::new(file.request()?)?;
    refuse_others(out)?;
    refuse_another_plan(file, out)?;
    drop(Audit::open(plan.clone())?);
    let text = absolute(text)?;
    std::fs::metadata(&text).map_err(Error::read(&text))?;
    let mut made = Vec::new();
    // What the files of a model depend on is read once, for all of them.
    let mut inputs = HashMap::new();
    for (index, scheme) in plan.repairable() {
        let (model, target) = (&plan.models[index], &plan.models[Plan::TARGET]);
        let format = format(&model.path, scheme)?;
        for &share in shares {
            let path = out.join(REPAIRED).join(file_name(&format!("{}-{scheme}-{share}", model.name)));
            let asked = QuantizePlan {
                model: model.path.clone(),
                target: Some(target.path.clone()),
                scheme,
                rounding: Rounding::Kept(share),
                calibrate: Some(text.clone()),
                format,
            };
            if path.exists() {
                check(&path, &asked, share, inputs.entry(index))?;
            } else if !make(asked, &path, &format!("{} in {scheme}", model.name))? {
                // Nor would there be at another share.
                break;
            }
            made.push(ReleasedRequest {
                of: Some(model.name.clone()),
                path: absolute(&path)?,
                scheme: Some(scheme),
                keep: Some(share),
            });
        }
    }
    Ok(made)
}

/// Refuses the folder of another plan as the run itself would, before the work. `file` does not know yet what is made for it.
fn refuse_another_plan(file: &PlanFile, out: &Path) -> Result<()> {
    let path = out.join(PLAN);
    if !path.exists() {
        return Ok(());
    }
    let mut theirs = PlanFile::read(&path)?;
    let made = absolute(&out.join(REPAIRED))?;
    theirs.released.retain_mut(|released| !released.checkpoint().starts_with(&made));
    file.same_as(&theirs, &path)
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

/// Refuses a directory that holds another file than is asked for. `known` is what those of this model depend on now.
fn check(
    path: &Path,
    asked: &QuantizePlan,
    share: Share,
    known: Entry<'_, usize, QuantizeInputs>,
) -> Result<()> {
    let refuse = |found: String, expected: String| Error::Malformed {
        path: path.to_path_buf(),
        what: "the repaired checkpoint".to_owned(),
        found,
        expected: format!("{expected}; remove the directory to have it made again"),
    };
    let record: Option<Quantized> = read_record(path)?;
    let Some(Quantized { scheme, keep, inputs: Some(inputs), .. }) = record else {
        return Err(refuse(
            "nothing of what it was made of".to_owned(),
            "a file of an earlier run".to_owned(),
        ));
    };
    let keep = keep.map_or_else(|| "null".to_owned(), |keep| keep.to_string());
    for (field, found, expected) in
        [("scheme", scheme, asked.scheme.name().to_owned()), ("keep", keep, share.to_string())]
    {
        if found != expected {
            return Err(refuse(format!("{field} = {found}"), format!("{field} = {expected}")));
        }
    }
    if inputs.engine != engine_revision() {
        return Err(refuse(
            "a file that another build of the program made".to_owned(),
            "one of this build".to_owned(),
        ));
    }
    let now = match known {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(read_again(|watch| QuantizeInputs::of(asked, watch))?),
    };
    let (model, target) = (Some(&asked.model), asked.target.as_ref());
    let one_target = match (&inputs.target, &now.target) {
        (Some(then), Some(now)) => then.is(now),
        (then, now) => then == now,
    };
    for (input, same) in [
        (model, inputs.model.is(&now.model) && inputs.tokenizer == now.tokenizer),
        (target, one_target),
        (asked.calibrate.as_ref(), inputs.calibrate == now.calibrate),
    ] {
        if let (Some(input), false) = (input, same) {
            let input = input.display();
            return Err(refuse(
                format!("a file made before {input} was changed"),
                "one made of what it is now".to_owned(),
            ));
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::read(path))
}
