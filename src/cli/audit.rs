//! `undertext audit`.

use super::args::{AuditArgs, Common, TuneArgs};
use super::device::Device;
use super::output::{Output, notice};
use super::progress::Progress;
use crate::audit::{ArmInfo, Audit, Findings, Plan, Request, Watch};
use crate::error::Result;
use crate::report::{Report, Style, report_text};

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
    })?;
    execute(plan, &args.common, args.tune, &|_| {}, "")
}

/// Runs a plan and hands its report over; `relabel` may change what the report calls things, `title` stands above its
/// tables.
pub(super) fn execute(
    plan: Plan,
    common: &Common,
    tune: TuneArgs,
    relabel: &dyn Fn(&mut Report),
    title: &str,
) -> Result<()> {
    let output = Output::new(common.json.clone());
    plan.notices.iter().for_each(|text| notice(text));
    let audit = Audit::open(plan)?;
    let device = Device::open(common.device.as_ref(), tune.tuning())?;
    let mut open = |checkpoint: &_, precision, needs| device.load(checkpoint, precision, needs);
    let record = Record { output: &output, device: &device, relabel };
    // Now, and not after hours, is the time to find out that the report's file cannot be written.
    record.save(&audit.nothing_yet())?;
    let mut watch = Watching { record: &record, progress: Progress::new("tasks") };
    let (findings, result) = audit.run(&mut open, &mut watch);
    watch.progress.finish();
    if result.is_ok() || !findings.arms.is_empty() {
        let report = record.report(&findings);
        output.emit(&report, |style| text(&report, title, style))?;
    } else {
        record.save(&findings)?;
    }
    result
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
    device: &'a Device,
    relabel: &'a dyn Fn(&mut Report),
}

impl Record<'_> {
    fn report(&self, findings: &Findings) -> Report {
        let mut report = Report::new(findings, &self.device.info());
        report.kernels = self.device.kernels();
        (report.gpu_seconds, report.gpu_timed_dispatches) = self.device.seconds();
        (self.relabel)(&mut report);
        report
    }

    fn save(&self, findings: &Findings) -> Result<()> {
        self.output.save(&self.report(findings))
    }
}

/// Shows how far the run is and keeps the report's file up to date, so that even a run that is killed leaves what it
/// measured.
struct Watching<'a> {
    record: &'a Record<'a>,
    progress: Progress,
}

impl Watch for Watching<'_> {
    fn arm(&mut self, arm: ArmInfo<'_>) {
        self.progress.arm(&format!("{} {}", arm.model.name, arm.precision), arm.index, arm.total, arm.tasks);
    }

    fn task(&mut self, done: usize) {
        self.progress.task(done);
    }

    fn measured(&mut self, findings: &Findings) -> Result<()> {
        self.progress.arm_done();
        self.record.save(findings)
    }
}
