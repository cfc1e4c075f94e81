//! What `undertext codes` found, as its record and as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::maps::{Map, Wanted};
use super::schema::{Device, Program, VERSION};
use super::style::{Meaning, Style, printable};
use super::table::{percent, rounded};
use crate::audit;
use crate::quant::Change;

/// From this survival on, nothing is expected to come back.
const KEPT: f64 = 0.9;

/// What is expected back below a survival, the least first. The limits lie half way between the survivals (0.05, 0.2,
/// 0.45, 0.65) at which models lost as much in the experiments that the demo's family came from.
const EXPECTED: [(f64, &str); 4] = [
    (0.125, "expect the forgotten knowledge back"),
    (0.325, "expect about four fifths of the forgotten knowledge back"),
    (0.55, "expect about half of the forgotten knowledge back"),
    (KEPT, "expect about a fifth of the forgotten knowledge back"),
];

/// What `undertext codes --json` prints.
///
/// A share is of all weights unless it says otherwise, 1 is all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Codes {
    /// [`VERSION`].
    pub schema_version: u32,
    /// The program that made it.
    pub undertext: Program,
    /// What was asked.
    pub plan: Plan,
    /// By the scheme's name.
    pub schemes: BTreeMap<String, SchemeCodes>,
    /// The weights that no scheme applies to.
    pub as_stored: AsStored,
    /// What the quantized matrices were compared on.
    pub device: Device,
    /// Weights of them that the host compared: all without an adapter, else those whose figures f32 products do not hold.
    pub host_weights: u64,
    /// Bytes read from both checkpoints.
    pub disk_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The target's directory.
    pub target: String,
    /// The unlearned checkpoint's directory.
    pub unlearned: String,
    /// In the order they were asked for.
    pub schemes: Vec<String>,
    /// Whether the head counts as a quantized matrix.
    pub quantize_head: bool,
}

/// One scheme.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemeCodes {
    /// The figures.
    #[serde(flatten)]
    pub map: Map<Figures>,
    /// What the total's survival says, in words.
    pub reading: String,
}

/// What an update from `t` to `u` does to one or more matrices; `Q` is the value that a code stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many weights there are.
    pub weights: u64,
    /// Share with `u != t`.
    pub changed: Option<f64>,
    /// Share whose code stayed.
    pub code_equal: Option<f64>,
    /// Share whose code changed.
    pub code_changed: Option<f64>,
    /// Share whose group's scale or zero point changed.
    pub scale_changed: Option<f64>,
    /// Share with `Q(u) != Q(t)`.
    pub value_changed: Option<f64>,
    /// Share of the changed weights with `Q(u) == Q(t)`.
    pub absorbed: Option<f64>,
    /// Share with `Q(t) == 0`.
    pub zero_codes_target: Option<f64>,
    /// Share with `Q(u) == 0`.
    pub zero_codes_unlearned: Option<f64>,
    /// Share of `<u - t, u - t>` that stands on weights with `Q(t) == 0`.
    pub movement_from_zero: Option<f64>,
    /// `|u - t|` over the distance between two codes (the width of the weight's bin in FP4 and NF4).
    pub delta_over_step: DeltaOverStep,
    /// Share of codes that should change by `delta_over_step`: its mean with every ratio capped at 1. Compare with
    /// `code_changed`.
    pub flips_predicted: Option<f64>,
    /// `<Q(u) - Q(t), u - t> / <u - t, u - t>`.
    pub survival: Option<f64>,
    /// `|Q(u) - Q(t)| / |u - t|`.
    pub norm_ratio: Option<f64>,
    /// Why a figure is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Over all weights, the unchanged included. Quantiles are within 1 %.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaOverStep {
    /// Mean.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 90 % of the weights are not above it.
    pub p90: Option<f64>,
    /// 99 % of the weights are not above it.
    pub p99: Option<f64>,
    /// Greatest.
    pub max: Option<f64>,
}

/// Embeddings, norms, biases, and the head unless it is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AsStored {
    /// How many weights there are.
    pub weights: u64,
    /// Share of them with `u != t`.
    pub changed: Option<f64>,
    /// Their share of `<u - t, u - t>` over the whole model. It survives every scheme and is not part of any survival.
    pub share_of_update: Option<f64>,
    /// Why a figure is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<&audit::Codes> for Codes {
    fn from(codes: &audit::Codes) -> Self {
        let plan = &codes.plan;
        let schemes = plan.schemes.iter().enumerate();
        Self {
            schema_version: VERSION,
            undertext: Program::this(),
            plan: Plan {
                target: plan.target.display().to_string(),
                unlearned: plan.unlearned.display().to_string(),
                schemes: plan.schemes.iter().map(ToString::to_string).collect(),
                quantize_head: plan.quantize_head,
            },
            schemes: schemes.map(|(index, name)| (name.to_string(), scheme_codes(codes, index))).collect(),
            as_stored: as_stored(codes),
            device: (&codes.device).into(),
            host_weights: codes.host_weights,
            disk_bytes: codes.disk_bytes,
            seconds: codes.seconds,
        }
    }
}

fn scheme_codes(codes: &audit::Codes, scheme: usize) -> SchemeCodes {
    let sum =
        |wanted: &Wanted<'_>| Figures::from(&codes.sum(scheme, |tensor| wanted(tensor.layer, tensor.module)));
    let places: Vec<_> = codes.tensors.iter().map(|tensor| (tensor.layer, tensor.module)).collect();
    let map = Map::new(&places, &sum);
    SchemeCodes { reading: reading(codes.plan.schemes[scheme].name(), &map.total), map }
}

fn as_stored(codes: &audit::Codes) -> AsStored {
    let stored = codes.as_stored;
    let quantized = if codes.plan.schemes.is_empty() { 0.0 } else { codes.sum(0, |_| true).update };
    let all = stored.update + quantized;
    AsStored {
        weights: stored.weights,
        changed: (stored.weights > 0).then(|| stored.changed as f64 / stored.weights as f64),
        share_of_update: (all > 0.0).then(|| stored.update / all),
        reason: (all == 0.0).then(|| NO_UPDATE.to_owned()),
    }
}

const NO_UPDATE: &str = "no weight changed";

impl From<&Change> for Figures {
    fn from(change: &Change) -> Self {
        let steps = &change.steps;
        let figures = Self {
            weights: change.weights,
            changed: change.share(change.changed),
            code_equal: change.share(change.weights - change.code_changed),
            code_changed: change.share(change.code_changed),
            scale_changed: change.share(change.scale_changed),
            value_changed: change.share(change.value_changed),
            absorbed: change.absorbed_share(),
            zero_codes_target: change.share(change.zero_target),
            zero_codes_unlearned: change.share(change.zero_unlearned),
            movement_from_zero: change.movement_from_zero(),
            delta_over_step: DeltaOverStep {
                mean: steps.mean(),
                p50: steps.quantile(0.5),
                p90: steps.quantile(0.9),
                p99: steps.quantile(0.99),
                max: steps.max(),
            },
            flips_predicted: steps.predicted_flips(),
            survival: change.survival(),
            norm_ratio: change.norm_ratio(),
            reason: None,
        };
        let reason = match (change.changed, figures.survival) {
            (0, _) => Some(NO_UPDATE),
            (_, None) => Some("a quantized value is beyond f32"),
            _ => None,
        };
        Self { reason: reason.map(str::to_owned), ..figures }
    }
}

/// What a scheme's survival means, by the experiments that tied it to recovery.
fn reading(scheme: &str, total: &Figures) -> String {
    let Some(survival) = total.survival else {
        let reason = total.reason.as_deref().unwrap_or_default();
        return format!("{scheme}: {reason}, so nothing is said about what survives");
    };
    let expected = EXPECTED.iter().find(|(below, _)| survival < *below);
    let expected = expected.map_or("expect nothing to come back", |(_, words)| words);
    format!("{} of the update survives {scheme}: {expected}", percent(Some(survival)))
}

/// The figures as tables, with their reading.
#[must_use]
pub fn codes_text(codes: &Codes, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_codes(&mut text, codes, style);
    text
}

fn write_codes(text: &mut String, codes: &Codes, style: Style) -> std::fmt::Result {
    let asked: Vec<_> =
        codes.plan.schemes.iter().filter_map(|name| Some((name, codes.schemes.get(name)?))).collect();
    let Some((_, first)) = asked.first() else { return Ok(()) };
    let Plan { target, unlearned, .. } = &codes.plan;
    let names = format!("From {target} (t) to {unlearned} (u): {}", update(&first.map.total));
    writeln!(text, "{}\n", style.prose(&printable(&names)))?;
    let Device { name, backend, kind, .. } = &codes.device;
    if backend != "cpu" {
        writeln!(text, "Compared on {name} ({backend}, {kind})\n")?;
    }
    writeln!(text, "{}\n", totals(&asked, style))?;
    let legend = style.legend(
        "survival: <Q(u) - Q(t), u - t> / <u - t, u - t>   length: |Q(u) - Q(t)| / |u - t|\n\
         absorbed: share of the changed weights that get the target's value again\n\
         zero: share of the target's weights that quantize to 0; then the share of the squared update that stands on them\n\
         |u-t|/step: mean and 99 % quantile; capped at 1, its mean is the share of codes that should flip",
    );
    writeln!(text, "{legend}")?;
    let survival = |scheme: &SchemeCodes| scheme.map.total.survival.unwrap_or(f64::INFINITY);
    let least = asked.iter().min_by(|(_, a), (_, b)| survival(a).total_cmp(&survival(b)));
    if let Some((name, scheme)) = least.filter(|(_, scheme)| scheme.map.total.survival.is_some()) {
        let others = if asked.len() > 1 { " (of others: --schemes NAME, or --json)" } else { "" };
        let title = style.prose(&format!("Survival in {name} by layer and module{others}"));
        writeln!(text, "\n{title}\n{}", map(scheme, style))?;
    }
    writeln!(text)?;
    for (_, scheme) in &asked {
        let reading = style.prose(&format!("{}.", scheme.reading));
        writeln!(text, "{}", style.paint(kept(scheme.map.total.survival), &reading))?;
    }
    let stored = &codes.as_stored;
    if let (Some(changed), Some(share)) = (stored.changed, stored.share_of_update)
        && share > 0.0
    {
        let besides = format!(
            "Besides, {} of the weights that stay as stored (embeddings, norms, biases, head) changed; they hold {} of the \
             whole squared update, which no scheme touches.",
            percent(Some(changed)),
            percent(Some(share))
        );
        writeln!(text, "{}", style.prose(&besides))?;
    }
    if first.map.total.survival.is_some() {
        let words = "A rule of thumb from small models, made from the files alone: `undertext audit` measures what comes back.";
        writeln!(text, "{}", style.legend(words))?;
    }
    Ok(())
}

/// Whether so much of the update is enough for nothing to come back.
fn kept(survival: Option<f64>) -> Meaning {
    match survival {
        None => Meaning::Plain,
        Some(survival) if survival >= KEPT => Meaning::Good,
        // Half of it back, or more.
        Some(survival) if survival < EXPECTED[2].0 => Meaning::Bad,
        Some(_) => Meaning::Unsure,
    }
}

/// How much of the weights the update touched.
fn update(total: &Figures) -> String {
    match total.changed {
        Some(changed) if total.reason.as_deref() != Some(NO_UPDATE) => {
            format!("{} of {} quantized weights changed", percent(Some(changed)), total.weights)
        }
        _ => format!("none of {} quantized weights changed", total.weights),
    }
}

fn totals(schemes: &[(&String, &SchemeCodes)], style: Style) -> String {
    let header = [
        "scheme",
        "survival ↑",
        "length",
        "codes changed",
        "predicted",
        "scales changed",
        "values changed",
        "absorbed",
        "zero",
        "update on zero",
        "|u-t|/step",
        "99 %",
    ];
    let mut table = Grid::new(style, &header.map(str::to_owned), 1);
    for (name, scheme) in schemes {
        let total = &scheme.map.total;
        let shares = [
            total.code_changed,
            total.flips_predicted,
            total.scale_changed,
            total.value_changed,
            total.absorbed,
            total.zero_codes_target,
            total.movement_from_zero,
        ];
        let mut row = vec![(*name).clone(), hundredths(total.survival), hundredths(total.norm_ratio)];
        row.extend(shares.map(share));
        row.extend([total.delta_over_step.mean, total.delta_over_step.p99].map(thousandths));
        table.add(&row);
        table.mark(1, kept(total.survival));
    }
    table.text()
}

/// Layers down, modules across, with the sums of both.
fn map(scheme: &SchemeCodes, style: Style) -> String {
    // In the order of use, which the names do not have.
    let order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let short = order.map(|module| module.trim_end_matches("_proj").to_owned());
    let header: Vec<_> = ["layer".to_owned()].into_iter().chain(short).chain(["all".to_owned()]).collect();
    let mut table = Grid::new(style, &header, 1);
    let mut row = |name: String, modules: &BTreeMap<String, Figures>, all: Option<f64>| {
        let cells = order.map(|module| hundredths(modules.get(module).and_then(|figures| figures.survival)));
        let row: Vec<_> = [name].into_iter().chain(cells).chain([hundredths(all)]).collect();
        table.add(&row);
    };
    for layer in &scheme.map.layers {
        row(layer.layer.to_string(), &layer.modules, layer.total.survival);
    }
    if let Some(head) = &scheme.map.head {
        row("head".to_owned(), &BTreeMap::new(), head.survival);
    }
    row("all".to_owned(), &scheme.map.modules, scheme.map.total.survival);
    table.text()
}

fn hundredths(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.2}", rounded(value, 100.0)))
}

fn thousandths(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.3}", rounded(value, 1000.0)))
}

/// A share in percent with one decimal, or a dash.
fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", rounded(100.0 * value, 10.0)))
}
