//! What `undertext localize` found, as its record and as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::judgement::Estimate;
use super::schema::{Counters, Device, Memory, Program, VERSION};
use super::style::{Meaning, Style};
use super::table::{percent, percent_ci, rounded};
use crate::audit::{self, Localize, Localized, Part, Row, modules};
use crate::gpu::DeviceInfo;

/// What `undertext localize --json` prints, and `--into` adds to a run's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Localization {
    /// [`VERSION`].
    pub schema_version: u32,
    /// The program that made it.
    pub undertext: Program,
    /// What it ran on.
    pub device: Device,
    /// The target's directory.
    pub target: String,
    /// The unlearned checkpoint's directory.
    pub unlearned: String,
    /// Its name in the audit that this was added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Hashes of all bytes of the target's and its weights, by their names in that audit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, String>,
    /// What parts are quantized to.
    pub precision: String,
    /// Below this a recovery is none.
    pub held_below: f64,
    /// Answers on the forget set, which are what is resampled.
    pub n: usize,
    /// The unlearned checkpoint quantized in parts, and what these are held against.
    pub variants: Vec<Variant>,
    /// What must stay at full precision.
    pub keep: Option<Keep>,
    /// Why `keep` is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_reason: Option<String>,
    /// How the last arms lay in the device's memory; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// Which of several equivalent kernels computed what, by class of problem; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    /// What it cost.
    pub counters: Counters,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Variant {
    /// `target_full` and `target` (the target, quantized), `nothing`, `all`, or what alone is quantized: `block`, `layer`,
    /// `module`, `prefix`.
    pub kind: String,
    /// The layer, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// The kind of matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The number of layers of a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Mean log-probability of the forget set's true answers, nats a token.
    pub log_prob: f64,
    /// KL(variant || target at full precision) on them, nats a token.
    pub kl_to_target: f64,
    /// Mean probability of VerbMem's true continuations, x100.
    pub verbmem_forget_probability: Option<f64>,
    /// Mean probability of the true answers on the forget set, x100.
    pub knowmem_forget_probability: Option<f64>,
    /// Mean probability of the true answers on the retain set, x100.
    pub knowmem_retain_probability: Option<f64>,
    /// `(log_prob - that of nothing) / (that of target - that of nothing)`: 0 nothing is back, 1 all that the quantized
    /// target has. `null` if the target has no more.
    pub recovery: Option<Estimate>,
}

/// Blocks to keep at full precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Keep {
    /// Their names, as `layers.0.down_proj`.
    pub blocks: Vec<String>,
    /// Of how many.
    pub of: usize,
    /// What comes back with all others quantized.
    pub recovery: Option<Estimate>,
}

impl Localization {
    /// The record, without what the device says of itself afterwards.
    #[must_use]
    pub fn new(localize: &Localize, localized: &Localized, device: &DeviceInfo) -> Self {
        let plan = localize.plan();
        let keep = |kept: &audit::Kept| Keep {
            blocks: kept.blocks.iter().map(ToString::to_string).collect(),
            of: localize.layers() * modules().len(),
            recovery: kept.recovery.map(Into::into),
        };
        Self {
            schema_version: VERSION,
            undertext: Program::this(),
            device: device.into(),
            target: plan.target.display().to_string(),
            unlearned: plan.unlearned.display().to_string(),
            model: None,
            weights: BTreeMap::new(),
            precision: plan.precision.to_string(),
            held_below: plan.criteria.held_below,
            n: localized.rows.first().map_or(0, |row| row.log_probs.len()),
            variants: localized.rows.iter().map(Into::into).collect(),
            keep: localized.kept.as_ref().map(keep),
            keep_reason: localized.kept.is_none().then(|| keep_reason(localized, plan.criteria.held_below)),
            memory: Vec::new(),
            kernels: BTreeMap::new(),
            counters: localized.counters.clone().into(),
        }
    }

    pub(super) fn variant(&self, kind: &str, layer: Option<usize>, module: Option<&str>) -> Option<&Variant> {
        let same = |variant: &&Variant| {
            (variant.kind.as_str(), variant.layer, variant.module.as_deref()) == (kind, layer, module)
        };
        self.variants.iter().find(same)
    }
}

/// Why there are no blocks to keep.
fn keep_reason(localized: &Localized, held_below: f64) -> String {
    let all = localized.rows.iter().find(|row| row.part == Part::All).and_then(|row| row.recovery);
    let looked = localized.rows.iter().any(|row| matches!(row.part, Part::Block(_)));
    match all {
        _ if !looked => "single blocks were not looked at".to_owned(),
        None => "the quantized target has no more than the unlearned model".to_owned(),
        Some(all) if all.ci95.map_or(all.value, |[_, high]| high) < held_below => {
            format!("quantizing all of it brings less than {} back", percent(Some(held_below)))
        }
        Some(_) => format!("keeping all but one does not hold it below {}", percent(Some(held_below))),
    }
}

impl From<&Row> for Variant {
    fn from(row: &Row) -> Self {
        let (layer, module, layers) = match &row.part {
            Part::Block(block) => (Some(block.layer), Some(block.module().to_owned()), None),
            Part::Layer(layer) => (Some(*layer), None, None),
            Part::Module(module) => (None, Some((*module).to_owned()), None),
            Part::Prefix(layers) => (None, None, Some(*layers)),
            _ => (None, None, None),
        };
        let [verbmem, knowmem, retain] = row.probabilities;
        Self {
            kind: row.part.kind().to_owned(),
            layer,
            module,
            layers,
            log_prob: row.log_prob,
            kl_to_target: row.kl_to_target,
            verbmem_forget_probability: verbmem,
            knowmem_forget_probability: knowmem,
            knowmem_retain_probability: retain,
            recovery: row.recovery.map(Into::into),
        }
    }
}

/// The record for people.
#[must_use]
pub fn localize_text(record: &Localization, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut text, record, style);
    text
}

fn write_text(text: &mut String, record: &Localization, style: Style) -> std::fmt::Result {
    writeln!(text, "{} answers on the forget set, token by token\n{}", record.n, whole(record, style))?;
    let title = format!(
        "Recovered if nothing but this is quantized to {}, of what the quantized target has more (log p)",
        record.precision
    );
    writeln!(text, "\n{}\n{}", style.prose(&title), map(record, style))?;
    let prefixes: Vec<_> = record.variants.iter().filter(|variant| variant.kind == "prefix").collect();
    if !prefixes.is_empty() {
        let part = |variant: &&Variant| {
            format!(
                "{} {}",
                variant.layers.unwrap_or_default(),
                percent(variant.recovery.map(|found| found.value))
            )
        };
        let all = record.variant("all", None, None).and_then(|all| all.recovery);
        let parts: Vec<_> = prefixes.iter().map(part).collect();
        let all = percent(all.map(|all| all.value));
        let words = format!("The first layers alone: {}, all {all}", parts.join(", "));
        writeln!(text, "\n{}", style.prose(&words))?;
    }
    if let Some(Keep { blocks, of, recovery }) = &record.keep {
        let back = share(recovery.as_ref());
        writeln!(text, "\nKeep these {} of {of} blocks in fp16 and {back} comes back", blocks.len())?;
        let mut by_layer: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (layer, module) in blocks.iter().filter_map(|block| block.rsplit_once('.')) {
            let number = layer.rsplit('.').next().and_then(|number| number.parse().ok());
            by_layer.entry(number.unwrap_or_default()).or_default().push(module);
        }
        for (layer, modules) in by_layer {
            writeln!(text, " layers.{layer}  {}", modules.join(" "))?;
        }
    } else if let Some(reason) = &record.keep_reason {
        writeln!(text, "\nNo blocks to keep: {reason}.")?;
    }
    Ok(())
}

/// What parts are held against.
fn whole(record: &Localization, style: Style) -> String {
    let header = ["", "log p", "KL to target", "VerbMem p ↓", "KnowMem p ↓", "retain p ↑", "recovered ↓"]
        .map(str::to_owned);
    let mut table = Grid::new(style, &header, 1);
    for (kind, name) in [
        ("target_full", "target fp16"),
        ("target", "target quantized"),
        ("nothing", "unlearned fp16"),
        ("all", "unlearned quantized"),
    ] {
        let Some(variant) = record.variant(kind, None, None) else { continue };
        let number = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", rounded(value, 10.0)))
        };
        let row = [
            name.to_owned(),
            format!("{:.3}", rounded(variant.log_prob, 1000.0)),
            format!("{:.3}", rounded(variant.kl_to_target, 1000.0)),
            number(variant.verbmem_forget_probability),
            number(variant.knowmem_forget_probability),
            number(variant.knowmem_retain_probability),
            share(variant.recovery.as_ref()),
        ];
        table.add(&row);
        if matches!(kind, "nothing" | "all") {
            table.mark(6, held(record, variant.recovery.as_ref()));
        }
    }
    table.text()
}

/// Whether nothing comes back, by the interval.
fn held(record: &Localization, recovery: Option<&Estimate>) -> Meaning {
    match recovery.map(|found| found.ci95.unwrap_or([found.value; 2])) {
        Some([_, high]) if high < record.held_below => Meaning::Good,
        Some([low, _]) if low > record.held_below => Meaning::Bad,
        Some(_) => Meaning::Unsure,
        None => Meaning::Plain,
    }
}

/// A layer a row, a module a column, with whole layers and whole modules at the edges.
fn map(record: &Localization, style: Style) -> String {
    let mut header = vec!["layer".to_owned()];
    header.extend(modules().map(|module| module.trim_end_matches("_proj").to_owned()));
    header.push("all".to_owned());
    let mut table = Grid::new(style, &header, 1);
    let layers = record.variants.iter().filter_map(|variant| variant.layer).max().map_or(0, |last| last + 1);
    let cell = |variant: Option<&Variant>| {
        percent(variant.and_then(|variant| variant.recovery).map(|found| found.value))
    };
    for layer in 0..layers {
        let mut row = vec![layer.to_string()];
        row.extend(modules().map(|module| cell(record.variant("block", Some(layer), Some(module)))));
        row.push(cell(record.variant("layer", Some(layer), None)));
        table.add(&row);
    }
    let mut row = vec!["all".to_owned()];
    row.extend(modules().map(|module| cell(record.variant("module", None, Some(module)))));
    row.push(cell(record.variant("all", None, None)));
    table.add(&row);
    table.text()
}

fn share(share: Option<&Estimate>) -> String {
    percent_ci(share.map(|share| share.value), share.and_then(|share| share.ci95))
}
