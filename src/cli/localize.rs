//! `undertext localize`.

use super::args::{LocalizeArgs, MemoryArgs};
use super::arms::Arms;
use super::device::Device;
use super::output::{Output, say};
use super::progress::Progress;
use crate::audit::{Criteria, Localize, LocalizePlan, OpenArms, OpenSources};
use crate::engine::Needs;
use crate::error::Result;
use crate::model::{Lockstep, Source};
use crate::report::{Localization, counters_text, localize_text, schema};

/// Takes the unlearned checkpoint apart.
pub(super) fn run(args: LocalizeArgs) -> Result<()> {
    let output = Output::new(args.common.json.clone());
    let mut by = Vec::new();
    for way in args.by {
        if !by.contains(&way) {
            by.push(way);
        }
    }
    let localize = Localize::open(LocalizePlan {
        target: args.target,
        unlearned: args.unlearned,
        data: args.data,
        precision: args.precision,
        limit: args.limit,
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
    let device = Device::open(args.common.device.as_ref(), args.tune.tuning(), args.memory.vram.is_some())?;
    let mut open = Opening {
        device: &device,
        memory: &args.memory,
        progress: Progress::new("answers"),
        asked: 0,
        laid_out: Vec::new(),
    };
    let localized = localize.run(&mut open);
    open.progress.finish();
    let mut record = Localization::new(&localize, &localized?, &device.info());
    record.memory = open.laid_out;
    record.kernels = device.kernels();
    if args.memory.explain {
        let (seconds, _) = device.seconds();
        say(&counters_text(&record.counters, &seconds));
    }
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
