//! What `undertext compare` found, as its record and as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::schema::{Counters, Device, Memory, Program, VERSION};
use super::style::{Style, printable};
use super::table::rounded;
use crate::audit::{Comparison, ComparisonFound, SetFound};
use crate::gpu::DeviceInfo;
use crate::metrics::agreement::{self, Agreement, Uncertain};

/// What `undertext compare --json` prints.
///
/// Divergences are in nats, shares and probabilities in 0..=1; `_se` is a standard error, which takes positions as
/// independent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparisons {
    /// [`VERSION`].
    pub schema_version: u32,
    /// The program that made it.
    pub undertext: Program,
    /// What it ran on.
    pub device: Device,
    /// The arm that the others are held against.
    pub reference: String,
    /// Tokens that were scored.
    pub positions: usize,
    /// The arms against the reference on all positions, as they were given.
    pub arms: Vec<Arm>,
    /// The same on parts of them, where there are parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetArms>,
    /// How the arms lay in the device's memory; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// Which of several equivalent kernels computed what, by class of problem; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    /// What it cost. No logits are kept: `peak_device_bytes` is all there ever was on the device.
    pub counters: Counters,
}

/// A part of the positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetArms {
    /// `forget` or `retain`.
    pub name: String,
    /// Tokens that were scored.
    pub positions: usize,
    /// The arms against the reference.
    pub arms: Vec<Arm>,
}

/// One arm against the reference, p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// As given, with its precision.
    pub name: String,
    /// What the matrices of the layers were stored in.
    pub scheme: String,
    /// KL(p || arm).
    pub kl_mean: f64,
    /// Its standard error.
    pub kl_mean_se: f64,
    /// Its distribution.
    pub kl: Distribution,
    /// KL(arm || p).
    pub reverse_kl: Figure,
    /// Jensen-Shannon divergence.
    pub jensen_shannon: Figure,
    /// Total variation.
    pub total_variation: Figure,
    /// Share of positions with the same likeliest token.
    pub same_top: f64,
    /// Its standard error.
    pub same_top_se: f64,
    /// Mean share of the five likeliest tokens that are the same.
    pub top5: Figure,
    /// Mean share of the ten likeliest tokens that are the same.
    pub top10: Figure,
    /// exp of the mean negative log-probability of the given tokens.
    pub ppl: f64,
    /// Its standard error.
    pub ppl_se: f64,
    /// The reference's.
    pub reference_ppl: Figure,
    /// `ppl` over the reference's; its error knows how the two go together.
    pub ppl_ratio: Figure,
    /// Its natural logarithm.
    pub log_ppl_ratio: Figure,
    /// `ppl` less the reference's.
    pub ppl_difference: Figure,
    /// Pearson correlation of the negative log-probabilities.
    pub nll_correlation: Option<f64>,
    /// Root mean square of the change of the given token's probability.
    pub rms_dp: f64,
    /// Its standard error.
    pub rms_dp_se: f64,
    /// Distribution of that change, arm less reference.
    pub dp: Distribution,
    /// Mean entropy of the arm.
    pub entropy: f64,
    /// Mean rank of the given token under the arm, 1 for the likeliest.
    pub rank: f64,
}

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its standard error.
    pub se: f64,
}

/// A distribution over positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Mean.
    pub mean: Figure,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// By fraction, as "0.999".
    pub quantiles: BTreeMap<String, Figure>,
}

impl From<Uncertain> for Figure {
    fn from(Uncertain { value, error }: Uncertain) -> Self {
        Self { value, se: error }
    }
}

impl From<&agreement::Distribution> for Distribution {
    fn from(found: &agreement::Distribution) -> Self {
        let quantiles =
            found.quantiles.iter().map(|(fraction, quantile)| (fraction.to_string(), (*quantile).into()));
        Self { mean: found.mean.into(), min: found.min, max: found.max, quantiles: quantiles.collect() }
    }
}

impl Arm {
    fn new(name: &str, scheme: &str, agreement: &Agreement, [entropy, rank]: [f64; 2]) -> Self {
        Self {
            name: name.to_owned(),
            scheme: scheme.to_owned(),
            kl_mean: agreement.kl.mean.value,
            kl_mean_se: agreement.kl.mean.error,
            kl: (&agreement.kl).into(),
            reverse_kl: agreement.reverse_kl.into(),
            jensen_shannon: agreement.jensen_shannon.into(),
            total_variation: agreement.total_variation.into(),
            same_top: agreement.same_top.value,
            same_top_se: agreement.same_top.error,
            top5: agreement.top5.into(),
            top10: agreement.top10.into(),
            ppl: agreement.ppl.value,
            ppl_se: agreement.ppl.error,
            reference_ppl: agreement.reference_ppl.into(),
            ppl_ratio: agreement.ppl_ratio.into(),
            log_ppl_ratio: agreement.log_ppl_ratio.into(),
            ppl_difference: agreement.ppl_difference.into(),
            nll_correlation: agreement.nll_correlation,
            rms_dp: agreement.rms_dp.value,
            rms_dp_se: agreement.rms_dp.error,
            dp: (&agreement.dp).into(),
            entropy,
            rank,
        }
    }
}

impl Comparisons {
    /// The record, without what the device says of itself afterwards.
    #[must_use]
    pub fn new(comparison: &Comparison, compared: &ComparisonFound, device: &DeviceInfo) -> Self {
        let names = comparison.names();
        let arms = |set: &SetFound| -> Vec<Arm> {
            let each = names.iter().zip(comparison.schemes()).zip(&set.own).skip(1).zip(&set.arms);
            each.filter_map(|(((name, scheme), own), agreement)| {
                Some(Arm::new(name, scheme.name(), agreement.as_ref()?, *own))
            })
            .collect()
        };
        let sets = compared.sets.iter().skip(1).map(|set| SetArms {
            name: set.name.to_owned(),
            positions: set.arms.first().and_then(Option::as_ref).map_or(0, |agreement| agreement.positions),
            arms: arms(set),
        });
        Self {
            schema_version: VERSION,
            undertext: Program::this(),
            device: device.into(),
            reference: names.first().cloned().unwrap_or_default(),
            positions: compared.positions,
            arms: compared.sets.first().map_or_else(Vec::new, arms),
            sets: sets.collect(),
            memory: Vec::new(),
            kernels: BTreeMap::new(),
            counters: compared.counters.clone().into(),
        }
    }
}

/// The record for people: a column an arm.
#[must_use]
pub fn compare_text(comparisons: &Comparisons, style: Style) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut text, comparisons, style);
    text
}

fn write_text(text: &mut String, comparisons: &Comparisons, style: Style) -> std::fmt::Result {
    let Comparisons { reference, positions, arms, sets, .. } = comparisons;
    let against = format!("Against {reference}, {positions} tokens; ± is a standard error");
    writeln!(text, "{}\n", style.prose(&printable(&against)))?;
    writeln!(text, "{}", figures(arms, style, true))?;
    for SetArms { name, positions, arms } in sets {
        writeln!(text, "\nOn the {name} set, {positions} tokens\n\n{}", figures(arms, style, false))?;
    }
    Ok(())
}

/// All figures, or those that say the most.
fn figures(arms: &[Arm], style: Style, all: bool) -> String {
    let mut header = vec![String::new()];
    header.extend(arms.iter().map(|arm| arm.name.clone()));
    let mut table = Grid::new(style, &header, 1);
    let most =
        ["PPL", "PPL / PPL of the reference", "KL mean, nats", "   99 %", "   median", "RMS dp", "same top"];
    let mut row = |name: &str, value: &dyn Fn(&Arm) -> String| {
        if !all && !most.contains(&name) {
            return;
        }
        let mut row = vec![name.to_owned()];
        row.extend(arms.iter().map(value));
        table.add(&row);
    };
    let plain = |value: f64, se: f64| format!("{value:.4} ± {se:.4}");
    let nats = |value: f64, se: f64| format!("{value:.6} ± {se:.6}");
    let percent =
        |value: f64, se: f64| format!("{:.3} ± {:.3} %", rounded(100.0 * value, 1000.0), 100.0 * se);
    row("PPL", &|arm| plain(arm.ppl, arm.ppl_se));
    row("PPL of the reference", &|arm| plain(arm.reference_ppl.value, arm.reference_ppl.se));
    row("PPL / PPL of the reference", &|arm| plain(arm.ppl_ratio.value, arm.ppl_ratio.se));
    row("ln(PPL / PPL of the reference)", &|arm| nats(arm.log_ppl_ratio.value, arm.log_ppl_ratio.se));
    row("PPL - PPL of the reference", &|arm| plain(arm.ppl_difference.value, arm.ppl_difference.se));
    row("correlation of the two ln p", &|arm| {
        arm.nll_correlation.map_or_else(|| "-".to_owned(), |value| format!("{:.2} %", 100.0 * value))
    });
    row("KL mean, nats", &|arm| nats(arm.kl_mean, arm.kl_mean_se));
    row("   maximum", &|arm| format!("{:.6}", arm.kl.max));
    for fraction in ["0.999", "0.99", "0.95", "0.9", "0.5", "0.1", "0.05", "0.01", "0.001"] {
        row(&label(fraction), &|arm| figure(&arm.kl, fraction, &nats));
    }
    row("KL(arm || reference) mean", &|arm| nats(arm.reverse_kl.value, arm.reverse_kl.se));
    row("Jensen-Shannon mean", &|arm| nats(arm.jensen_shannon.value, arm.jensen_shannon.se));
    row("total variation mean", &|arm| plain(arm.total_variation.value, arm.total_variation.se));
    row("dp mean", &|arm| percent(arm.dp.mean.value, arm.dp.mean.se));
    row("   maximum", &|arm| format!("{:.3} %", 100.0 * arm.dp.max));
    for fraction in ["0.999", "0.99", "0.95", "0.9", "0.75", "0.5", "0.25", "0.1", "0.05", "0.01", "0.001"] {
        if all {
            row(&label(fraction), &|arm| figure(&arm.dp, fraction, &percent));
        }
    }
    row("   minimum", &|arm| format!("{:.3} %", 100.0 * arm.dp.min));
    row("RMS dp", &|arm| percent(arm.rms_dp, arm.rms_dp_se));
    row("same top", &|arm| percent(arm.same_top, arm.same_top_se));
    row("same among the top 5", &|arm| percent(arm.top5.value, arm.top5.se));
    row("same among the top 10", &|arm| percent(arm.top10.value, arm.top10.se));
    row("mean entropy, nats", &|arm| format!("{:.4}", arm.entropy));
    row("mean rank of the token", &|arm| format!("{:.2}", arm.rank));
    table.text()
}

fn label(fraction: &str) -> String {
    let percent = fraction.parse::<f64>().map_or(0.0, |fraction| rounded(100.0 * fraction, 10.0));
    if percent == 50.0 { "   median".to_owned() } else { format!("   {percent} %") }
}

fn figure(distribution: &Distribution, fraction: &str, form: &dyn Fn(f64, f64) -> String) -> String {
    distribution
        .quantiles
        .get(fraction)
        .map_or_else(|| "-".to_owned(), |figure| form(figure.value, figure.se))
}
