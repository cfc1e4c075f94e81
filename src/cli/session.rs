//! One session of a run: from a plan to a report, which is written down as it comes.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{MemoryArgs, ReportedArgs, TuneArgs};
use super::arms::Arms;
use super::device::Device;
use super::folder::{Folder, KERNELS, Out};
use super::judge::{JudgeArgs, OutcomeName, check};
use super::output::{Output, notice, print, say, write};
use super::plan_file::PlanFile;
use super::plan_tables::DeviceTable;
use super::progress::{Amount, Progress};
use super::repair::RepairArgs;
use super::{demo, interrupt, log, shard};
use crate::audit::{ArmInfo, Audit, Findings, Inputs, Plan, Shard, Store, Survival, Watch, measure_survival};
use crate::engine::{Needs, Options};
use crate::error::{Error, Result};
use crate::quant::Share;
use crate::report::{Report, Style, counters_text, report_html, report_text};

/// What `audit` and `demo` take alike.
#[derive(Clone, Debug, Args)]
pub(super) struct SessionArgs {
    /// Ask only the K-th of N parts of the audit, for one of several machines; `undertext merge` makes the report of all
    #[arg(long, value_name = "K/N", requires = "out")]
    shard: Option<Shard>,

    #[command(flatten)]
    repair: RepairArgs,

    #[command(flatten)]
    judge: JudgeArgs,

    #[command(flatten)]
    tune: TuneArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    reported: ReportedArgs,
}

impl SessionArgs {
    /// These flags' part of a plan.
    pub(super) fn plan_file(&self) -> PlanFile {
        let MemoryArgs { vram, kv, naive, .. } = self.memory;
        let (dose, choose_dose) = self.repair.doses();
        let device = self.reported.common.device.as_ref();
        let device = DeviceTable::new(device, self.tune.tuning(), vram, kv, naive);
        PlanFile { shard: self.shard, dose, choose_dose, device, ..self.judge.plan_file() }
    }

    /// The shares that rounding on a text is to keep, each in a file of its own; ascending.
    pub(super) fn calibrated_shares(&self) -> Vec<Share> {
        self.repair.calibrated_shares()
    }

    /// The plan for the shard that is asked for, if one is.
    pub(super) fn of_shard(&self, plan: PlanFile) -> PlanFile {
        PlanFile { shard: self.shard.or(plan.shard), ..plan }
    }

    /// What they ask besides.
    pub(super) fn asked(&self, out: Out) -> Asked {
        let ReportedArgs { common, html } = self.reported.clone();
        Asked { out, output: Output::new(common.json), html, explain: self.memory.explain }
    }
}

/// What is asked of a session, besides the plan.
#[derive(Debug)]
pub(super) struct Asked {
    /// The run's folder.
    pub(super) out: Out,
    /// Where the result goes.
    pub(super) output: Output,
    /// Where the page goes too.
    pub(super) html: Option<PathBuf>,
    /// Whether to say how memory is used.
    pub(super) explain: bool,
}

/// Runs a plan, or what is left of it, and hands its report over.
pub(super) fn run(file: &PlanFile, asked: &Asked) -> Result<()> {
    asked.output.differs_from(asked.html.as_deref())?;
    file.shard.map_or(Ok(()), |shard| shard::check(shard, asked))?;
    let keeps = asked.out != Out::None;
    logged(keeps, || with_plan(file, |plan, relabel, title| execute(file, plan, asked, relabel, title)))
}

/// Keeps a log of what is said meanwhile, once there is a folder for it; if it `keeps` one.
pub(super) fn logged(keeps: bool, run: impl FnOnce() -> Result<()>) -> Result<()> {
    if keeps {
        log::begin();
    }
    let result = run();
    if let Err(error) = &result {
        log::keep(&format!("error: {error}"));
    }
    log::end();
    result
}

/// Hands over the plan of a file, with what may change how the report calls things and what stands above its tables.
pub(super) fn with_plan(
    file: &PlanFile,
    run: impl FnOnce(Plan, &dyn Fn(&mut Report), &str) -> Result<()>,
) -> Result<()> {
    if file.demo {
        let family = demo::Family::unpack()?;
        let plan = Plan::new(family.request(file.request()?))?;
        run(plan, &demo::relabel, demo::TITLE)
    } else {
        run(Plan::new(file.request()?)?, &|_| {}, "")
    }
}

/// `relabel` may change what the report calls things, `title` stands above its tables.
fn execute(
    file: &PlanFile,
    plan: Plan,
    asked: &Asked,
    relabel: &dyn Fn(&mut Report),
    title: &str,
) -> Result<()> {
    let (kv, naive) = (file.device.kv()?, file.device.naive());
    let memory = MemoryArgs { vram: file.device.vram()?, kv, explain: asked.explain, naive };
    plan.notices.iter().for_each(|text| notice(text));
    let audit = Audit::open(plan)?.stopped_by(interrupt::listen());
    let device = Device::open(file.device.choice().as_ref(), file.device.tuning(), memory.vram.is_some())?;
    let mut folder = Folder::open(&asked.out, file, &name(audit.plan()))?;
    let mut store =
        folder.as_ref().map(|folder| open_store(folder, &audit, &device, kv.name())).transpose()?;
    folder.as_mut().map_or(Ok(()), Folder::check_localizations)?;
    let open = |needs: Needs| {
        Arms::new(&device, audit.sources(), audit.names(), audit.plan().quantize_head, needs, &memory)
    };
    let portions = file.shard.map(|shard| audit.share(shard, file.compares()));
    let arms: Vec<_> = match &portions {
        None => vec![open(audit.needs(file.compares()))],
        // All shards must do the same: what one lacks memory for is no matter of choice.
        Some(portions) => portions.iter().map(|portion| open(audit.needs_of(portion)).together()).collect(),
    };
    if let Some(store) = &store {
        let (found, all) = match &portions {
            None => store.found(),
            Some(portions) => audit.found(portions, store),
        };
        if found > 0 {
            notice(&format!("{found} of {all} answers are there already"));
        }
    }
    ::log::debug!(
        arms = audit.names().len(), parts = arms.len();
        "plan: {} arms ({})",
        audit.names().len(),
        audit.names().join(", ")
    );
    let record = Record { asked, folder: folder.as_ref(), device: &device, arms: &arms, relabel };
    // Now, and not after hours, is the time to find out that the report's file cannot be written.
    record.begin(&audit.nothing_yet())?;
    let mut watch = Watching { record: &record, progress: Progress::new("answers") };
    let options = Options { one_at_a_time: naive, ..Options::default() };
    let (mut findings, mut result) = match &portions {
        None => audit.run(&mut &arms[0], options, &mut watch, store.as_mut()),
        Some(portions) => shard::ask(&audit, portions, &arms, options, &mut watch, store.as_mut()),
    };
    watch.progress.finish();
    if let Some(differing @ 1..) = store.as_ref().map(Store::differing) {
        notice(&format!("{differing} answers that were asked again came out otherwise than before"));
    }
    // Everything is written down.
    interrupt::at_once();
    if result.is_ok() && interrupt::check().is_err() {
        result = Err(interrupt::interrupted());
        findings.stopped = Some("interrupted".to_owned());
    }
    let updates: Vec<_> = match file.shard {
        None => audit.plan().unlearned().collect(),
        Some(shard) => shard.updates(audit.plan()).collect(),
    };
    if result.is_ok() && file.survival {
        let (found, bytes) = survival(audit.plan(), &updates);
        findings.codes_disk_bytes = bytes;
        match (file.shard, &folder, &store) {
            (Some(_), Some(folder), Some(store)) => {
                result = shard::save_survival(folder.path(), audit.plan(), store.inputs(), &found);
            }
            _ => findings.survival = found,
        }
    }
    if let (Ok(()), Some(shard)) = (&result, file.shard) {
        findings.stopped = Some(format!("this is shard {shard}; `undertext merge` makes the report of all"));
    }
    let told = match (&result, file.shard, &portions) {
        (Ok(()), Some(shard), Some(portions)) => Told::Shard(shard::done(shard, portions, &asked.out)),
        _ => Told::Report { title, fail_on: &file.fail_on },
    };
    hand_over(&record, &findings, result, &told)
}

/// What is said at the end.
enum Told<'a> {
    /// That a shard is done.
    Shard(String),
    /// The report, and whether its verdicts are failures.
    Report { title: &'a str, fail_on: &'a [OutcomeName] },
}

/// Writes the report, and says what it says.
fn hand_over(record: &Record<'_>, findings: &Findings, result: Result<()>, told: &Told<'_>) -> Result<()> {
    let saved = record.save(findings);
    match (&result, record.folder) {
        (Err(Error::Interrupted { .. }), _) => return Err(interrupt::interrupted()),
        (Err(_), Some(folder)) => {
            let path = folder.path().display();
            notice(&format!("`undertext audit --resume {path}` asks again what is missing"));
        }
        _ => {}
    }
    // Of two errors the first one counts.
    let report = match (&result, saved) {
        (Err(_), Err(_)) => return result,
        (_, saved) => saved?,
    };
    if record.asked.explain {
        say(&counters_text(&report.counters, &report.gpu_seconds));
    }
    match told {
        Told::Shard(text) => print(text),
        Told::Report { .. } if findings.arms.is_empty() => result,
        Told::Report { title, fail_on } => {
            record.asked.output.emit(&report, |style| text(&report, title, style))?;
            result?;
            check(fail_on, &report)
        }
    }
}

/// What a dated folder is named by.
fn name(plan: &Plan) -> String {
    let mut names = plan.unlearned().map(|model| plan.models[model].name.as_str());
    let first = names.next().unwrap_or_default();
    match names.count() {
        0 => first.to_owned(),
        more => format!("{first}+{more}"),
    }
}

/// Opens the store of a folder and says what is there.
fn open_store(folder: &Folder, audit: &Audit, device: &Device, kv: &str) -> Result<Store> {
    device.keep_choices(&folder.file(KERNELS));
    let inputs = read_again(|watch| Inputs::of(audit, &device.identity(), kv, watch))?;
    let store = Store::open(folder.path(), audit, &inputs)?;
    store.notices().iter().for_each(|text| notice(text));
    Ok(store)
}

/// Reads checkpoints whole, to know them again, showing how far it is; Ctrl-C ends it.
pub(super) fn read_again<T>(
    read: impl FnOnce(&mut dyn FnMut(&str, u64, u64) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let mut progress = Amount::bytes();
    let found = read(&mut |name, done, total| {
        progress.show(&format!("reading {name}, to know it again"), done, total);
        interrupt::check()
    });
    progress.finish();
    found
}

/// Compares the weights of these unlearned checkpoints with the target's, showing how far it is.
fn survival(plan: &Plan, unlearned: &[usize]) -> (Vec<Survival>, u64) {
    let mut progress = Amount::weights("comparing");
    let found = measure_survival(plan, unlearned, &mut |name, done, total| {
        progress.show(&format!("weights of {name}"), done, total);
    });
    progress.finish();
    found
}

/// The report's tables.
pub(super) fn text(report: &Report, title: &str, style: Style) -> String {
    let device = &report.device;
    let device = format!("Device: {} ({}, {})", device.name, device.backend, device.kind);
    // Where lines must fit anyway, they are as long as the terminal is wide.
    let title = match style.width {
        Some(_) if !title.is_empty() => style.prose(&title.trim_end().replace('\n', " ")) + "\n\n",
        _ => title.to_owned(),
    };
    format!("{title}{}\n\n{}", style.prose(&device), report_text(report, style))
}

/// Makes reports of findings.
struct Record<'a> {
    asked: &'a Asked,
    folder: Option<&'a Folder>,
    device: &'a Device,
    /// One for each part of the audit that is asked.
    arms: &'a [Arms<'a>],
    relabel: &'a dyn Fn(&mut Report),
}

impl Record<'_> {
    fn report(&self, findings: &Findings) -> Result<Report> {
        let mut report = Report::new(findings, &self.device.info());
        report.kernels = self.device.kernels();
        (report.gpu_seconds, report.gpu_timed_dispatches) = self.device.seconds();
        report.memory = self.arms.iter().flat_map(Arms::record).collect();
        (self.relabel)(&mut report);
        if let Some(folder) = self.folder {
            folder.save_session(&report)?;
            folder.add_sessions(&mut report);
        }
        Ok(report)
    }

    /// Writes the files that are asked for, as far as there is nothing better there.
    fn begin(&self, findings: &Findings) -> Result<()> {
        let report = self.report(findings)?;
        if let Some(folder) = self.folder.filter(|folder| !folder.has_report()) {
            folder.save(&report)?;
        }
        self.save_others(&report)
    }

    /// Writes all files.
    fn save(&self, findings: &Findings) -> Result<Report> {
        let report = self.report(findings)?;
        if let Some(folder) = self.folder {
            folder.save(&report)?;
        }
        self.save_others(&report)?;
        Ok(report)
    }

    /// Writes what is asked for by name.
    fn save_others(&self, report: &Report) -> Result<()> {
        self.asked.output.save(|| report)?;
        self.asked.html.as_deref().map_or(Ok(()), |path: &Path| write(path, &report_html(report)))
    }
}

/// Shows how far the run is and keeps the report's file up to date, so that even a run that is killed leaves what it
/// measured.
pub(super) struct Watching<'a> {
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
        self.record.save(findings).map(drop)
    }
}
