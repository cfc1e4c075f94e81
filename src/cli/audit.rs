//! `undertext audit`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::args::{MemoryArgs, ReportedArgs, TuneArgs};
use super::arms::Arms;
use super::device::Device;
use super::judge::JudgeArgs;
use super::output::{Output, notice, say, write};
use super::progress::Progress;
use crate::audit::{
    ArmInfo, Audit, Findings, Plan, Request, SeriesRequest, Survival, Watch, measure_survival,
};
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::metrics::membership::Corpus;
use crate::quant::Precision;
use crate::report::{Report, Style, counters_text, report_html, report_text};

/// Weights that one step of the progress stands for.
const STEP: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// The checkpoint that learned everything
    #[arg(long, value_name = "DIR")]
    target: PathBuf,

    /// Checkpoints that were made to forget
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "series")]
    unlearned: Vec<PathBuf>,

    /// Unlearned checkpoints as steps of a series, such as how much was forgotten at once (MUSE's scalability) or how often
    /// (sustainability): gives every metric against these values. May be repeated
    #[arg(long, value_name = "NAME=DIR@VALUE,...")]
    series: Vec<SeriesRequest>,

    /// A checkpoint that never saw the forget set: PrivLeak's reference
    #[arg(long, value_name = "DIR")]
    retrain: Option<PathBuf>,

    /// The questions, in MUSE's layout
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Precisions to compare
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "fp16,int8,int4-g128")]
    precision: Vec<Precision>,

    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Quantize the output head too (by default it stays as stored, like embeddings and norms)
    #[arg(long)]
    quantize_head: bool,

    /// A directory whose tokenizer.json serves all checkpoints
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,

    /// Compare PrivLeak with the published AUC of this MUSE corpus' retrained model
    #[arg(long, value_enum)]
    corpus: Option<CorpusName>,

    #[command(flatten)]
    judge: JudgeArgs,

    #[command(flatten)]
    tune: TuneArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    reported: ReportedArgs,
}

/// A corpus of MUSE.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CorpusName {
    News,
    Books,
}

impl From<CorpusName> for Corpus {
    fn from(name: CorpusName) -> Self {
        match name {
            CorpusName::News => Self::News,
            CorpusName::Books => Self::Books,
        }
    }
}

/// Runs the audit that the flags describe.
pub(super) fn run(args: AuditArgs) -> Result<()> {
    let plan = Plan::new(Request {
        target: args.target,
        unlearned: args.unlearned,
        retrain: args.retrain,
        data: args.data,
        precisions: args.precision,
        limit: args.limit,
        quantize_head: args.quantize_head,
        tokenizer: args.tokenizer,
        corpus: args.corpus.map(Into::into),
        series: args.series,
        criteria: args.judge.criteria(),
    })?;
    execute(plan, &args.judge, &args.reported, args.tune, &args.memory, &|_| {}, "")
}

/// Runs a plan and hands its report over; `relabel` may change what the report calls things, `title` stands above its
/// tables.
pub(super) fn execute(
    plan: Plan,
    judge: &JudgeArgs,
    reported: &ReportedArgs,
    tune: TuneArgs,
    memory: &MemoryArgs,
    relabel: &dyn Fn(&mut Report),
    title: &str,
) -> Result<()> {
    let ReportedArgs { common, html } = reported;
    let output = Output::new(common.json.clone());
    output.differs_from(html.as_deref())?;
    plan.notices.iter().for_each(|text| notice(text));
    let audit = Audit::open(plan)?;
    let device = Device::open(common.device.as_ref(), tune.tuning(), memory.vram.is_some())?;
    // One arm at a time, there is nothing to hold it against.
    let needs = audit.needs(!judge.no_divergence && !memory.naive);
    let arms = Arms::new(&device, audit.sources(), audit.names(), audit.plan().quantize_head, needs, memory);
    let record = Record { output: &output, html: html.as_deref(), device: &device, arms: &arms, relabel };
    // Now, and not after hours, is the time to find out that the report's file cannot be written.
    record.save(&audit.nothing_yet())?;
    let mut watch = Watching { record: &record, progress: Progress::new("answers") };
    let options = Options { one_at_a_time: memory.naive, ..Options::default() };
    let (mut findings, result) = audit.run(&mut &arms, options, &mut watch, None);
    watch.progress.finish();
    if result.is_ok() && !judge.no_survival {
        (findings.survival, findings.codes_disk_bytes) = survival(audit.plan());
    }
    if memory.explain {
        let report = record.report(&findings);
        say(&counters_text(&report.counters, &report.gpu_seconds));
    }
    if result.is_ok() || !findings.arms.is_empty() {
        let report = record.report(&findings);
        record.page(&report)?;
        output.emit(&report, |style| text(&report, title, style))?;
        result?;
        return judge.check(&report);
    }
    record.save(&findings)?;
    result
}

/// Compares the weights of every unlearned checkpoint with the target's, showing how far it is.
fn survival(plan: &Plan) -> (Vec<Survival>, u64) {
    let mut progress = Progress::new("million weights");
    let mut current = String::new();
    let found = measure_survival(plan, &mut |name, done, total| {
        let [done, total] =
            [done, total].map(|weights| usize::try_from(weights / STEP).unwrap_or(usize::MAX));
        if current != name {
            name.clone_into(&mut current);
            progress.part(&format!("weights of {name}"), 0, total);
        }
        progress.done(done);
    });
    progress.finish();
    found
}

fn text(report: &Report, title: &str, style: Style) -> String {
    let device = &report.device;
    format!(
        "{title}Device: {} ({}, {})\n\n{}",
        device.name,
        device.backend,
        device.kind,
        report_text(report, style)
    )
}

/// Makes reports of findings.
struct Record<'a> {
    output: &'a Output,
    html: Option<&'a Path>,
    device: &'a Device,
    arms: &'a Arms<'a>,
    relabel: &'a dyn Fn(&mut Report),
}

impl Record<'_> {
    fn report(&self, findings: &Findings) -> Report {
        let mut report = Report::new(findings, &self.device.info());
        report.kernels = self.device.kernels();
        (report.gpu_seconds, report.gpu_timed_dispatches) = self.device.seconds();
        report.memory = self.arms.record();
        (self.relabel)(&mut report);
        report
    }

    fn save(&self, findings: &Findings) -> Result<()> {
        if self.html.is_none() {
            return self.output.save(|| self.report(findings));
        }
        let report = self.report(findings);
        self.output.save(|| &report)?;
        self.page(&report)
    }

    /// Writes the page, if one is asked for.
    fn page(&self, report: &Report) -> Result<()> {
        self.html.map_or(Ok(()), |path| write(path, &report_html(report)))
    }
}

/// Shows how far the run is and keeps the report's file up to date, so that even a run that is killed leaves what it
/// measured.
struct Watching<'a> {
    record: &'a Record<'a>,
    progress: Progress,
}

impl Watch for Watching<'_> {
    fn arms(&mut self, arms: &[ArmInfo<'_>], first: usize, total: usize, tasks: usize) {
        let name = |arm: &ArmInfo<'_>| format!("{} {}", arm.model.name, arm.precision);
        let label = match arms {
            [] => String::new(),
            [arm] => format!("[{}/{total}] {}", first + 1, name(arm)),
            [one, .., last] => {
                format!("[{}-{}/{total}] {} to {}", first + 1, first + arms.len(), name(one), name(last))
            }
        };
        self.progress.part(&label, first * tasks, total * tasks);
    }

    fn answered(&mut self, done: usize) {
        self.progress.done(done);
    }

    fn smaller(&mut self, error: &Error) {
        notice(&format!("{error}; trying again with batches of half the size"));
    }

    fn measured(&mut self, findings: &Findings) -> Result<()> {
        self.progress.part_done();
        self.record.save(findings)
    }
}
