//! `undertext merge`.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;

use super::folder::{Folder, Out, PLAN, REPORT, hold, same};
use super::judge::check;
use super::output::{JsonArgs, Output, notice, write};
use super::plan_file::PlanFile;
use super::report::read;
use super::session::{logged, text, with_plan};
use super::shard;
use crate::audit::{ArmInfo, Audit, Findings, OpenArms, Plan, Shard, Store, Survival, Watch};
use crate::engine::Options;
use crate::error::{Error, Result};
use crate::gpu::DeviceInfo;
use crate::model::Lockstep;
use crate::report::{Report, report_html};

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The run folders of all shards, in any order
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,

    /// A folder for the whole run: a new one, or that of a merge of the same audit
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    json: JsonArgs,

    /// Write the report as an HTML page there too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A shard's folder.
struct Piece {
    folder: PathBuf,
    shard: Shard,
    plan: PlanFile,
    /// Runs do not begin there meanwhile.
    _lock: Option<File>,
}

/// Joins what the shards stored and makes the report of all.
pub(super) fn run(args: &MergeArgs) -> Result<()> {
    let output = Output::new(args.json.clone());
    output.differs_from(args.html.as_deref())?;
    let pieces = open(&args.folders)?;
    if pieces.iter().any(|piece| same(&piece.folder, &args.out)) {
        let expected = "another folder than a shard's".to_owned();
        return Err(Error::Flag { flag: "--out", found: args.out.display().to_string(), expected });
    }
    let Some(first) = pieces.first() else { unreachable!("at least one folder is required") };
    let plan = PlanFile { shard: None, ..first.plan.clone() };
    logged(true, || {
        with_plan(&plan, |audited, relabel, title| {
            let whole = Whole { pieces: &pieces, file: &plan, relabel };
            let report = whole.report(&args.out, audited)?;
            output.save(|| &report)?;
            args.html.as_deref().map_or(Ok(()), |path| write(path, &report_html(&report)))?;
            output.emit(&report, |style| text(&report, title, style))?;
            check(&plan.fail_on, &report)
        })
    })
}

/// Reads the plans, and checks that they are those of all shards of one audit.
fn open(folders: &[PathBuf]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::with_capacity(folders.len());
    for folder in folders {
        let path = folder.join(PLAN);
        if !path.exists() {
            let remedy = "name folders of `undertext audit --shard K/N --out DIR`".to_owned();
            return Err(Error::Missing { path, what: "the plan of a run", remedy });
        }
        let plan = PlanFile::read(&path)?;
        let lock = hold(folder)?;
        let Some(shard) = plan.shard else {
            let expected = "K/N: a whole run has nothing to be merged with";
            return Err(malformed(&path, "shard", "none".to_owned(), expected.to_owned()));
        };
        pieces.push(Piece { folder: folder.clone(), shard, plan, _lock: lock });
    }
    let Some(first) = pieces.first() else { return Ok(pieces) };
    let (of, beside) = (first.shard.of(), first.folder.join(PLAN));
    let mut seen: BTreeMap<u32, &Path> = BTreeMap::new();
    for Piece { folder, shard, plan, .. } in &pieces {
        let path = folder.join(PLAN);
        if shard.of() != of {
            let expected = format!("one of {of} as in {}", beside.display());
            return Err(malformed(&path, "shard", shard.to_string(), expected));
        }
        let plan = PlanFile { shard: first.plan.shard, ..plan.clone() };
        if let Some((field, found, expected)) = plan.difference(&first.plan) {
            let expected = format!("{expected} as in {}", beside.display());
            return Err(malformed(&path, &field, found, expected));
        }
        if let Some(other) = seen.insert(shard.number(), folder) {
            let found = format!("{} and {}", other.display(), folder.display());
            let expected = format!("both are shard {shard}; name each shard once");
            return Err(Error::Flag { flag: "DIR", found, expected });
        }
    }
    let missing = first.shard.all().filter(|shard| !seen.contains_key(&shard.number()));
    let missing: Vec<_> = missing.map(|shard| shard.to_string()).collect();
    if !missing.is_empty() {
        let found = format!("{} of {of} shards", seen.len());
        let named = missing.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > 8 { ", ..." } else { "" };
        let expected = format!("without {named}{more}; name the folders of all");
        return Err(Error::Flag { flag: "DIR", found, expected });
    }
    // Whatever the order of the folders, the same report.
    pieces.sort_by_key(|piece| piece.shard.number());
    Ok(pieces)
}

/// A whole audit, of its shards.
struct Whole<'a> {
    /// All, by number.
    pieces: &'a [Piece],
    /// The audit's plan.
    file: &'a PlanFile,
    /// As [`with_plan`] gives it.
    relabel: &'a dyn Fn(&mut Report),
}

impl Whole<'_> {
    /// Joins what is stored in the folder `out`, and makes the report there.
    fn report(&self, out: &Path, plan: Plan) -> Result<Report> {
        let audit = Audit::open(plan)?;
        let (mut stores, survival) = self.stores(&audit)?;
        let records: Vec<_> =
            self.pieces.iter().map(|piece| read(&piece.folder.join(REPORT))).collect::<Result<_>>()?;
        let kernels = self.kernels(&records)?;
        let Some(mut folder) = Folder::open(&Out::Folder(out.to_path_buf()), self.file, "")? else {
            unreachable!("there is a folder to open")
        };
        let Some(inputs) = stores.first().map(|store| store.inputs().clone()) else {
            unreachable!("there is a shard")
        };
        let mut store = Store::open(folder.path(), &audit, &inputs)?;
        folder.check_localizations()?;
        stores.iter_mut().try_for_each(|other| store.join(other))?;

        let mut arms = Stored { compared: self.file.compares() };
        let (mut findings, result) = audit.run(&mut arms, Options::default(), &mut Silent, Some(&mut store));
        result?;
        findings.survival = survival;
        // Replaced by what the shards ran on.
        let mut report = Report::new(&findings, &DeviceInfo::cpu());
        if let Some(record) = records.first() {
            report.device = record.device.clone();
        }
        report.kernels = kernels;
        for layout in records.into_iter().flat_map(|record| record.memory) {
            if !report.memory.contains(&layout) {
                report.memory.push(layout);
            }
        }
        (self.relabel)(&mut report);
        let folders: Vec<_> = self.pieces.iter().map(|piece| piece.folder.clone()).collect();
        folder.follow(&folders);
        folder.save_session(&report)?;
        folder.add_sessions(&mut report);
        folder.save(&report)?;
        Ok(report)
    }

    /// Every shard's answers, which depend on the same and are all there, and what survives of updates.
    fn stores(&self, audit: &Audit) -> Result<(Vec<Store>, Vec<Survival>)> {
        let (mut stores, mut survival): (Vec<Store>, Vec<Survival>) = (Vec::new(), Vec::new());
        for Piece { folder, shard, .. } in self.pieces {
            let store = Store::read(folder, audit)?;
            store.notices().iter().for_each(|text| notice(text));
            if let Some(first) = stores.first() {
                store.agrees(folder, first, &self.pieces[0].folder)?;
            }
            let remedy = format!(
                "all of shard {shard}: `undertext audit --resume {}` asks the rest",
                folder.display()
            );
            let (found, all) = audit.found(&audit.share(*shard, self.file.compares()), &store);
            if found < all {
                return Err(malformed(folder, "answers", format!("{found} of {all}"), remedy));
            }
            if self.file.survival {
                match shard::survival(folder, *shard, audit.plan(), store.inputs())? {
                    Some(found) => survival.extend(found),
                    None => return Err(malformed(folder, "survival of updates", "none".to_owned(), remedy)),
                }
            }
            stores.push(store);
        }
        // As one run looks at them.
        survival.sort_by_key(|survival| survival.unlearned);
        Ok((stores, survival))
    }

    /// The kernels of all shards, if they computed with the same.
    fn kernels(&self, records: &[Report]) -> Result<BTreeMap<String, String>> {
        let mut all: BTreeMap<String, (String, &Path)> = BTreeMap::new();
        for (Piece { folder, .. }, record) in self.pieces.iter().zip(records) {
            for (class, kernel) in &record.kernels {
                let (known, first) = all.entry(class.clone()).or_insert_with(|| (kernel.clone(), folder));
                if known != kernel {
                    let expected = format!(
                        "{known} as in {}: other kernels may change last bits; give all shards one kernels.json, or --no-tune",
                        first.display()
                    );
                    let what = format!("kernels: {class}");
                    return Err(malformed(&folder.join(REPORT), &what, kernel.clone(), expected));
                }
            }
        }
        Ok(all.into_iter().map(|(class, (kernel, _))| (class, kernel)).collect())
    }
}

fn malformed(path: &Path, what: &str, found: String, expected: String) -> Error {
    Error::Malformed { path: path.to_path_buf(), what: what.to_owned(), found, expected }
}

/// Arms that have answered everything.
struct Stored {
    compared: bool,
}

impl OpenArms for Stored {
    fn part(&mut self, arms: Range<usize>, _: u32) -> Result<Vec<Range<usize>>> {
        Ok(vec![arms])
    }

    fn open(&mut self, _: Range<usize>) -> Result<Box<dyn Lockstep>> {
        unreachable!("all answers are stored")
    }

    fn compares(&self) -> bool {
        self.compared
    }
}

/// Whoever watches this is not kept waiting.
struct Silent;

impl Watch for Silent {
    fn arms(&mut self, _: &[ArmInfo<'_>], _: usize, _: usize, _: usize) {}

    fn answered(&mut self, _: usize) {}

    fn smaller(&mut self, _: &Error) {}

    fn measured(&mut self, _: &Findings) -> Result<()> {
        Ok(())
    }
}
