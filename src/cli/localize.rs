//! `undertext localize`.

use std::path::PathBuf;

use clap::Args;

use super::args::{MemoryArgs, RunArgs};
use super::arms::Arms;
use super::device::Device;
use super::into::RunReport;
use super::output::{Output, say};
use super::progress::Progress;
use crate::audit::{By, Criteria, Localize, LocalizePlan, OpenArms, OpenSources};
use crate::engine::Needs;
use crate::error::Result;
use crate::model::{Lockstep, Source};
use crate::quant::Precision;
use crate::report::{Localization, counters_text, localize_text, schema};

#[derive(Debug, Args)]
pub(super) struct LocalizeArgs {
    /// The checkpoint that learned everything
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    target: Option<PathBuf>,

    /// The checkpoint that was made to forget
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    unlearned: Option<PathBuf>,

    /// The questions, in MUSE's layout
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    data: Option<PathBuf>,

    /// A run's folder: what is found goes into its report and page, too. Target, questions and their number are the run's
    /// unless given, --unlearned may be the name of one of its models, and is not needed if there is only one
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,

    /// What parts are quantized to
    #[arg(long, value_name = "PRECISION", default_value = "int4-g128")]
    precision: Precision,

    /// How the model is taken apart: block (a matrix of a layer), layer, module (a kind of matrix), prefix (the first layers)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "block,layer,module,prefix")]
    by: Vec<By>,

    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// A recovery whose 95 % interval lies below this is none
    #[arg(long, value_name = "SHARE", default_value_t = Criteria::default().held_below)]
    held_below: f64,

    /// Resamples behind every interval
    #[arg(long, value_name = "N", default_value_t = Criteria::default().resamples)]
    resamples: usize,

    /// Seed of the resamples
    #[arg(long, value_name = "N", default_value_t = Criteria::default().seed)]
    seed: u64,

    #[command(flatten)]
    run: RunArgs,
}

/// Takes the unlearned checkpoint apart.
pub(super) fn run(args: LocalizeArgs) -> Result<()> {
    let output = Output::new(args.run.common.json.clone());
    let mut by = Vec::new();
    for way in args.by {
        if !by.contains(&way) {
            by.push(way);
        }
    }
    let into = args.into.map(RunReport::open).transpose()?;
    let (target, unlearned, data, limit) = match &into {
        Some(into) => (
            into.target(args.target)?,
            into.unlearned(args.unlearned)?,
            into.data(args.data)?,
            into.limit(args.limit),
        ),
        // Without a run they are there: the parser asks for them.
        None => (
            args.target.unwrap_or_default(),
            args.unlearned.unwrap_or_default(),
            args.data.unwrap_or_default(),
            args.limit,
        ),
    };
    let localize = Localize::open(LocalizePlan {
        target,
        unlearned,
        data,
        precision: args.precision,
        limit,
        by,
        criteria: Criteria {
            held_below: args.held_below,
            // Not used here.
            resurrected_above: 1.0,
            resamples: args.resamples,
            seed: args.seed,
            ..Criteria::default()
        },
    })?;
    let into = into.map(|into| into.check(localize.plan()).map(|weights| (into, weights))).transpose()?;
    let device = args.run.open_device()?;
    let mut open = Opening {
        device: &device,
        memory: &args.run.memory,
        progress: Progress::new("answers"),
        asked: 0,
        laid_out: Vec::new(),
    };
    let localized = localize.run(&mut open);
    open.progress.finish();
    let mut record = Localization::new(&localize, &localized?, &device.info());
    record.memory = open.laid_out;
    record.kernels = device.kernels();
    if args.run.memory.explain {
        let (seconds, _) = device.seconds();
        say(&counters_text(&record.counters, &seconds));
    }
    into.map_or(Ok(()), |(into, weights)| into.add(localize.plan(), weights, &mut record))?;
    output.emit(&record, |style| localize_text(&record, style))
}

/// Opens group after group, and shows how far each is.
struct Opening<'a> {
    device: &'a Device,
    memory: &'a MemoryArgs,
    progress: Progress,
    /// Groups so far.
    asked: usize,
    laid_out: Vec<schema::Memory>,
}

impl OpenSources for Opening<'_> {
    fn open(&mut self, sources: Vec<Source>, names: Vec<String>, needs: Needs) -> Result<Box<dyn Lockstep>> {
        let count = sources.len();
        let arms = Arms::new(self.device, sources, names, false, needs, self.memory).together();
        let mut open = &arms;
        open.part(0..count, 0)?;
        let opened = open.open(0..count)?;
        self.laid_out = arms.record();
        self.asked += 1;
        self.progress.part(&format!("group {}: {count} variants", self.asked), 0, count * answers(&needs));
        Ok(opened)
    }

    fn answered(&mut self, done: usize, total: usize) {
        self.progress.done(done);
        if done == total {
            self.progress.part_done();
        }
    }
}

/// Answers of each arm.
fn answers(needs: &Needs) -> usize {
    needs.score.tasks + needs.generate.tasks
}
