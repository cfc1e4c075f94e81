//! The result and its forms: one schema, printed as tables, as JSON or as one HTML page.

pub mod codes;
pub mod compare;
pub mod devices;
pub mod divergence;
pub mod export;
mod grid;
mod html;
pub mod judgement;
mod judgement_text;
pub mod localize;
pub mod maps;
mod memory;
pub mod quantize;
pub mod repair;
pub mod samples;
pub mod schema;
mod style;
mod table;

pub use codes::codes_text;
pub use compare::{Comparisons, compare_text};
pub use devices::{Devices, devices_text};
pub use html::report_html;
pub use localize::{Localization, localize_text};
pub use memory::{counters_text, memory_text};
pub use quantize::quantize_text;
pub use schema::Report;
pub use style::{Meaning, Style, printable};
pub use table::report_text;

use std::collections::BTreeMap;

use crate::audit::{
    ArmIntervals, ArmResult, Auc, Evidence, Findings, Interval, Metric, Recovered, Statistics, four_way,
};
use crate::gpu::DeviceInfo;
use crate::metrics::Measured;
use crate::metrics::membership::roc;
use crate::model::Counters;

impl Report {
    /// The record of what was measured so far, without the kernels that a GPU chose and their times.
    #[must_use]
    pub fn new(findings: &Findings, device: &DeviceInfo) -> Self {
        let plan = &findings.plan;
        let statistics = Statistics::of(findings);
        let four_way = four_way(findings);
        let arms = findings.arms.iter().zip(&statistics.arms);
        let recovery = statistics.recovery.iter();
        let mut counters = schema::Counters::from(findings.counters.clone());
        counters.codes_disk_bytes = findings.codes_disk_bytes;
        Self {
            schema_version: schema::VERSION,
            undertext: schema::Program::this(),
            device: device.into(),
            complete: findings.is_complete(),
            stopped: findings.stopped.clone(),
            plan: schema::Plan {
                data: plan.data.display().to_string(),
                limit: plan.limit,
                quantize_head: plan.quantize_head,
                truncated_per_arm: findings.truncated,
            },
            arms: arms.map(|(arm, intervals)| schema_arm(findings, arm, intervals)).collect(),
            recovery: recovery.map(|(row, evidence)| schema_recovery(findings, row, evidence)).collect(),
            statistics: (&plan.criteria).into(),
            controls: judgement::controls(findings, &statistics),
            divergence: divergence::rows(findings, &four_way),
            survival: judgement::survival(findings),
            survival_rank_correlation: judgement::correlations(findings, &statistics, &four_way),
            localizations: Vec::new(),
            repairs: repair::repairs(findings, &statistics),
            chosen_doses: repair::chosen(findings, &statistics),
            verdicts: judgement::judged(findings, &statistics),
            samples: samples::samples(findings),
            series: judgement::series(findings, &statistics),
            kernels: BTreeMap::new(),
            memory: Vec::new(),
            gpu_seconds: BTreeMap::new(),
            gpu_timed_dispatches: 0,
            counters,
        }
    }
}

fn schema_arm(findings: &Findings, arm: &ArmResult, intervals: &ArmIntervals) -> schema::Arm {
    let model = findings.model(arm);
    let plain = |metric: &Metric, ci95: Interval| schema::Metric {
        value: metric.value.value(),
        reason: metric.value.reason().map(str::to_owned),
        n: metric.n(),
        n_asked: metric.asked,
        ci95,
        truth: None,
    };
    let metric = |set: usize, metric: &Metric, ci95: Interval| {
        let (truths, [probability, exact, strength]) = (&arm.truths[set], intervals.truths[set]);
        let truth = schema::Truth {
            probability: plain(&truths.probability, probability),
            exact_memorization: plain(&truths.exact_memorization, exact),
            extraction_strength: plain(&truths.extraction_strength, strength),
        };
        schema::Metric { truth: Some(Box::new(truth)), ..plain(metric, ci95) }
    };
    let [verbmem_forget, knowmem_forget, knowmem_retain] = intervals.means;
    let leaks = findings.priv_leak(arm).into_iter().zip(&intervals.priv_leak);
    let mut against = leaks.map(|(leak, &ci95)| schema::Against {
        value: leak.value.value(),
        reference_auc: leak.reference_auc.value(),
        reference: leak.reference.name().to_owned(),
        ci95,
        reason: leak.value.reason().map(str::to_owned),
    });
    let main = against.next();
    schema::Arm {
        name: model.name.clone(),
        role: model.role.name().to_owned(),
        precision: arm.precision.to_string(),
        scheme: arm.scheme.name().to_owned(),
        path: findings.plan.path_of(arm.model, arm.precision).display().to_string(),
        metrics: schema::Metrics {
            verbmem_forget: metric(0, &arm.verbmem_forget, verbmem_forget),
            knowmem_forget: metric(1, &arm.knowmem_forget, knowmem_forget),
            knowmem_retain: metric(2, &arm.knowmem_retain, knowmem_retain),
            privleak: schema::PrivLeak {
                value: main.as_ref().and_then(|main| main.value),
                auc: arm.auc.value.value(),
                reference_auc: main.as_ref().and_then(|main| main.reference_auc),
                reference: main.as_ref().map_or_else(String::new, |main| main.reference.clone()),
                ci95: main.as_ref().and_then(|main| main.ci95),
                reason: main.and_then(|main| main.reason),
                n: arm.auc.n(),
                n_asked: arm.auc.asked,
                roc: curve(&arm.auc),
                others: against.collect(),
            },
        },
    }
}

/// Points of a curve in the record.
const CURVE_POINTS: usize = 101;

/// The curve whose area is the AUC, evenly thinned if it has many corners.
fn curve(auc: &Auc) -> Vec<[f64; 2]> {
    let points = if auc.value.value().is_some() { roc(&auc.forget, &auc.holdout) } else { Vec::new() };
    if points.len() <= CURVE_POINTS {
        return points;
    }
    let last = points.len() - 1;
    (0..CURVE_POINTS).map(|step| points[step * last / (CURVE_POINTS - 1)]).collect()
}

fn schema_recovery(findings: &Findings, recovered: &Recovered, evidence: &Evidence) -> schema::Recovery {
    let ratios = &recovered.ratios;
    let named = [
        ("of_gap_to_target", &ratios.of_gap_to_target, evidence.of_gap_to_target),
        (
            "of_gap_to_target_same_precision",
            &ratios.of_gap_to_target_same_precision,
            evidence.of_gap_to_target_same_precision,
        ),
        (
            "share_of_target_same_precision",
            &ratios.share_of_target_same_precision,
            evidence.share_of_target_same_precision,
        ),
    ];
    let reasons = named.iter().filter_map(|(name, ratio, ci95)| match (ratio.reason(), ci95) {
        (Some(reason), _) => Some(format!("{name}: {reason}")),
        (None, None) => Some(format!("{name}_ci95: too few examples to be sure that it can be divided by")),
        (None, Some(_)) => None,
    });
    let reasons: Vec<_> = reasons.collect();
    let value = |ratio: &Measured| ratio.value();
    let survival = findings.survival(recovered.unlearned, recovered.precision);
    schema::Recovery {
        unlearned: findings.plan.models[recovered.unlearned].name.clone(),
        precision: recovered.precision.to_string(),
        metric: recovered.metric.to_owned(),
        of_gap_to_target: value(&ratios.of_gap_to_target),
        of_gap_to_target_same_precision: value(&ratios.of_gap_to_target_same_precision),
        share_of_target_same_precision: value(&ratios.share_of_target_same_precision),
        of_gap_to_target_ci95: evidence.of_gap_to_target,
        of_gap_to_target_same_precision_ci95: evidence.of_gap_to_target_same_precision,
        share_of_target_same_precision_ci95: evidence.share_of_target_same_precision,
        beyond_retrain: evidence.beyond_retrain.map(Into::into),
        n: evidence.n,
        n_asked: evidence.asked,
        p_recovered: evidence.p_recovered,
        p_recovered_holm: evidence.p_recovered_holm,
        p_held: evidence.p_held,
        p_held_holm: evidence.p_held_holm,
        survival: survival.and_then(|survival| survival.value.value()),
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
    }
}

/// What the process held at most so far, by Linux' own accounting.
fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kilobytes)
}

impl From<Counters> for schema::Counters {
    fn from(counters: Counters) -> Self {
        let Counters {
            disk_bytes,
            upload_bytes,
            weight_passes,
            dispatches,
            submissions,
            tokens_scored,
            tokens_generated,
            peak_device_bytes,
            peak_allocated_bytes,
            seconds,
        } = counters;
        let seconds =
            schema::Seconds { load: seconds.load, score: seconds.score, generate: seconds.generate };
        Self {
            sessions: 1,
            disk_bytes,
            codes_disk_bytes: 0,
            upload_bytes,
            weight_passes,
            dispatches,
            submissions,
            tokens_scored,
            tokens_generated,
            peak_device_bytes,
            peak_allocated_bytes: (peak_allocated_bytes > 0).then_some(peak_allocated_bytes),
            peak_host_bytes: peak_host_bytes(),
            seconds,
        }
    }
}

impl From<&DeviceInfo> for schema::Device {
    fn from(info: &DeviceInfo) -> Self {
        Self {
            index: info.index,
            name: info.name.clone(),
            backend: info.backend.clone(),
            kind: info.kind.clone(),
            driver: info.driver.clone(),
            f16: info.f16,
            subgroups: info.subgroups,
        }
    }
}
