//! `undertext export`.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::demo;
use super::folder::{PLAN, REPORT};
use super::output::{JsonArgs, Output, notice, write};
use super::plan_file::PlanFile;
use super::report::read;
use crate::audit::{Audit, Plan, Store, StoredAnswers};
use crate::error::{Error, Result};
use crate::report::export::{Export, ExportFile, Format};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A run's folder, or what `undertext audit --json=FILE` wrote
    #[arg(value_name = "DIR|REPORT.JSON")]
    record: PathBuf,

    /// What to write
    #[arg(long, value_name = "FORMAT", value_enum)]
    format: FormatName,

    /// The file (csv, muse-csv) [default: stdout], or the folder for a folder of each arm (open-unlearning, lm-eval)
    /// [default: exports/FORMAT beside the record]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,

    /// Only what the record itself holds: no MUSE_EVAL.json, no samples
    #[arg(long)]
    summary_only: bool,

    #[command(flatten)]
    json: JsonArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Exported<'a> {
    format: &'a str,
    /// The file or the folder; none if the text is here.
    out: Option<&'a Path>,
    /// Within the folder.
    files: Vec<&'a Path>,
    text: Option<&'a str>,
}

/// [`Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    /// MUSE_EVAL.json and MUSE_SUMMARY.json of each arm
    OpenUnlearning,
    /// results_*.json and samples_*.jsonl of each arm
    LmEval,
    /// MUSE's table: name,verbmem_f,privleak,knowmem_f,knowmem_r
    MuseCsv,
    /// Every figure on a row of its own, with its interval
    Csv,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::OpenUnlearning => Self::OpenUnlearning,
            FormatName::LmEval => Self::LmEval,
            FormatName::MuseCsv => Self::MuseCsv,
            FormatName::Csv => Self::Csv,
        }
    }
}

/// Writes a record in another tool's format and says where.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let format = Format::from(args.format);
    let output = Output::new(args.json.clone());
    let folder = args.record.is_dir().then_some(args.record.as_path());
    let path = folder.map_or_else(|| args.record.clone(), |folder| folder.join(REPORT));
    let report = read(&path)?;
    let wanted = !format.is_one_file() && !args.summary_only;
    let answers = match folder {
        Some(folder) if wanted && folder.join(PLAN).exists() => Some(stored_answers(folder)?),
        _ => None,
    };
    if wanted && answers.is_none() && format == Format::LmEval {
        notice("a record alone has no answers: results without samples (name the run's folder for both)");
    }
    let written = modified(&path)?;
    let export = Export {
        report: &report,
        path: &path,
        written,
        answers: answers.as_ref(),
        summary_only: args.summary_only,
    };
    let files = export.files(format)?;
    if format.is_one_file() {
        let text = files.into_iter().map(|file| file.text).collect::<String>();
        let out = args.out.as_deref();
        out.map_or(Ok(()), |out| write(out, &text))?;
        let (name, here) = (format.name(), out.is_none().then_some(text.as_str()));
        let exported = Exported { format: name, out, files: Vec::new(), text: here };
        return output.emit(&exported, |_| here.unwrap_or_default().to_owned());
    }
    let beside = path.parent().unwrap_or(Path::new("")).join("exports").join(format.name());
    let out = args.out.clone().unwrap_or(beside);
    for ExportFile { path, text } in &files {
        let path = out.join(path);
        let folder = path.parent().unwrap_or(&out);
        std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
        write(&path, text)?;
    }
    let files = files.iter().map(|file| file.path.as_path()).collect();
    let exported = Exported { format: format.name(), out: Some(&out), files, text: None };
    output.emit(&exported, |_| format!("{}\n", out.display()))
}

/// What the arms of the run in `folder` answered: its plan says what was asked, its store what came back.
fn stored_answers(folder: &Path) -> Result<StoredAnswers> {
    let file = PlanFile::read(&folder.join(PLAN))?;
    // Unpacked as long as it is read.
    let family = if file.demo { Some(demo::Family::unpack()?) } else { None };
    let request = file.request()?;
    let request = match &family {
        Some(family) => family.request(request),
        None => request,
    };
    let audit = Audit::open(Plan::new(request)?)?;
    audit.stored_answers(&Store::read(folder, &audit)?)
}

/// When the file was last written, in seconds since 1970 (UTC).
fn modified(path: &Path) -> Result<f64> {
    let time = std::fs::metadata(path).and_then(|data| data.modified()).map_err(Error::read(path))?;
    Ok(time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()))
}
