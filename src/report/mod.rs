//! The result and its forms: one schema, printed as a table or as JSON.

pub mod codes;
pub mod compare;
mod memory;
pub mod schema;
mod table;

pub use codes::codes_text;
pub use compare::{Comparisons, compare_text};
pub use memory::{counters_text, memory_text};
pub use schema::Report;
pub use table::{Style, devices_text, report_text};

use std::collections::BTreeMap;

use crate::audit::{ArmResult, Findings, Metric, Recovered};
use crate::gpu::DeviceInfo;
use crate::metrics::Measured;
use crate::model::Counters;

impl Report {
    /// The record of what was measured so far, without the kernels that a GPU chose and their times.
    #[must_use]
    pub fn new(findings: &Findings, device: &DeviceInfo) -> Self {
        let plan = &findings.plan;
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
            arms: findings.arms.iter().map(|arm| schema_arm(findings, arm)).collect(),
            recovery: findings
                .recovery()
                .iter()
                .map(|recovered| schema_recovery(findings, recovered))
                .collect(),
            kernels: BTreeMap::new(),
            memory: Vec::new(),
            gpu_seconds: BTreeMap::new(),
            gpu_timed_dispatches: 0,
            counters: findings.counters.clone().into(),
        }
    }
}

fn schema_arm(findings: &Findings, arm: &ArmResult) -> schema::Arm {
    let model = findings.model(arm);
    let metric = |metric: &Metric| schema::Metric {
        value: metric.value.value(),
        reason: metric.value.reason().map(str::to_owned),
        n: metric.n,
        ci95: None,
    };
    let mut against = findings.priv_leak(arm).into_iter().map(|leak| schema::Against {
        value: leak.value.value(),
        reference_auc: leak.reference_auc.value(),
        reference: leak.reference.name().to_owned(),
        reason: leak.value.reason().map(str::to_owned),
    });
    let main = against.next();
    schema::Arm {
        name: model.name.clone(),
        role: model.role.name().to_owned(),
        precision: arm.precision.name().to_owned(),
        scheme: arm.scheme.name().to_owned(),
        path: model.path.display().to_string(),
        metrics: schema::Metrics {
            verbmem_forget: metric(&arm.verbmem_forget),
            knowmem_forget: metric(&arm.knowmem_forget),
            knowmem_retain: metric(&arm.knowmem_retain),
            privleak: schema::PrivLeak {
                value: main.as_ref().and_then(|main| main.value),
                auc: arm.auc.value.value(),
                reference_auc: main.as_ref().and_then(|main| main.reference_auc),
                reference: main.as_ref().map_or_else(String::new, |main| main.reference.clone()),
                reason: main.and_then(|main| main.reason),
                n: arm.auc.n,
                others: against.collect(),
            },
        },
    }
}

fn schema_recovery(findings: &Findings, recovered: &Recovered) -> schema::Recovery {
    let ratios = &recovered.ratios;
    let named = [
        ("of_gap_to_target", &ratios.of_gap_to_target),
        ("of_gap_to_target_same_precision", &ratios.of_gap_to_target_same_precision),
        ("share_of_target_same_precision", &ratios.share_of_target_same_precision),
    ];
    let reasons = named.iter().filter_map(|(name, ratio)| Some(format!("{name}: {}", ratio.reason()?)));
    let reasons: Vec<_> = reasons.collect();
    let value = |ratio: &Measured| ratio.value();
    schema::Recovery {
        unlearned: findings.plan.models[recovered.unlearned].name.clone(),
        precision: recovered.precision.name().to_owned(),
        metric: recovered.metric.to_owned(),
        of_gap_to_target: value(&ratios.of_gap_to_target),
        of_gap_to_target_same_precision: value(&ratios.of_gap_to_target_same_precision),
        share_of_target_same_precision: value(&ratios.share_of_target_same_precision),
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
            disk_bytes,
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
