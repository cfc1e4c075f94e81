//! `report.json`, and what `--json` prints.
//!
//! Later versions add fields; these names and their meanings stay. A value is a number, or `null` with a `reason`;
//! never NaN. Metrics are on MUSE's scale (x100; PrivLeak signed and unclamped), ratios are plain (1 is all of it).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::divergence::Divergence;
use super::judgement::{Control, Estimate, RankCorrelation, Series, Statistics, Survival, Verdict};
use super::localize::Localization;
use super::repair::{Chosen, Repair};
use super::samples::Sample;
use crate::engine::{Budget, Item, MemoryPlan};
use crate::model::Residence;

/// The `schema_version` of this module.
pub const VERSION: u32 = 1;

/// The record of an audit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// [`VERSION`].
    pub schema_version: u32,
    /// The program that made it.
    pub undertext: Program,
    /// What it ran on.
    pub device: Device,
    /// Whether every arm of the plan was measured; if not, the record holds the ones that were.
    pub complete: bool,
    /// Why the run ended early: an error, or that it is one shard of an audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// What was asked.
    pub plan: Plan,
    /// By checkpoint (target, unlearned, retrain), then by precision.
    pub arms: Vec<Arm>,
    /// By unlearned checkpoint, then precision, then metric.
    pub recovery: Vec<Recovery>,
    /// How intervals, tests and verdicts came about.
    #[serde(default)]
    pub statistics: Statistics,
    /// What quantization alone does to the target and to the retrained model; by model, then precision, then metric.
    #[serde(default)]
    pub controls: Vec<Control>,
    /// How far each unlearned model is from the target on the true answers, token by token: by answers, then checkpoint, then
    /// precision. Empty if arms were not held against each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergence: Vec<Divergence>,
    /// How much of each update each precision keeps; absent if the weights were not looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub survival: Vec<Survival>,
    /// Of survival with `of_gap_to_target_same_precision` over all quantized unlearned arms, by metric.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub survival_rank_correlation: Vec<RankCorrelation>,
    /// Which layers and modules bring the forgotten back, of the models that `undertext localize --into` was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub localizations: Vec<Localization>,
    /// Unlearned checkpoints in roundings that are not the nearest, beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<Repair>,
    /// What `--keep auto` chose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen_doses: Vec<Chosen>,
    /// By unlearned checkpoint, then precision.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
    /// What was asked and what every arm said, by metric, then in the order of the files; absent with `--no-samples`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Metrics against the steps of each series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Series>,
    /// Which of several equivalent kernels computed what, by class of problem; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    /// Seconds by the device's own clock, by kernel, with those that packed weights and chose kernels; extrapolated from
    /// `gpu_timed_dispatches`. Empty for the CPU pass and for adapters without a clock.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gpu_seconds: BTreeMap<String, f64>,
    /// Kernel launches that were timed.
    #[serde(default)]
    pub gpu_timed_dispatches: u64,
    /// How the arms lay in the device's memory, a group that ran in lockstep each; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// Sums over the arms; peaks are maxima.
    pub counters: Counters,
}

impl Report {
    /// The JSON Schema (draft 2020-12) of what this version writes.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
        settings.into_generator().into_root_schema_for::<Self>().to_value()
    }
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Program {
    /// Of the package.
    pub version: String,
    /// The commit it was built from.
    pub commit: Option<String>,
    /// Whether files differed from that commit.
    pub dirty: Option<bool>,
    /// Why commit or dirty is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Program {
    /// This build. Commit and dirty are what the build script found: a build from a package has no repository to ask.
    #[must_use]
    pub fn this() -> Self {
        let commit = option_env!("UNDERTEXT_COMMIT").map(str::to_owned);
        let dirty = option_env!("UNDERTEXT_DIRTY").and_then(|dirty| dirty.parse().ok());
        let unknown = commit.is_none() || dirty.is_none();
        let reason = unknown.then(|| "not built in a git repository".to_owned());
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), commit, dirty, reason }
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// Number in `undertext devices`; absent for the CPU pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Its own name.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl` or `cpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software`, `other` or `cpu`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Driver and version.
    pub driver: String,
    /// Whether shaders could use f16 arithmetic.
    pub f16: bool,
    /// Smallest and largest subgroup; zeros where there are none.
    pub subgroups: [u32; 2],
}

/// What was asked of every arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The data directory.
    pub data: String,
    /// Most examples of each question set; `null` for all.
    pub limit: Option<usize>,
    /// Whether the head was quantized too.
    pub quantize_head: bool,
    /// Prompts that had to be cut to the context.
    pub truncated_per_arm: usize,
}

/// One checkpoint at one precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Arm {
    /// The checkpoint's name.
    pub name: String,
    /// `target`, `unlearned` or `retrain`.
    pub role: String,
    /// As asked for; `fp16` is full precision, whatever the dtype.
    pub precision: String,
    /// What the matrices of the layers were stored in.
    pub scheme: String,
    /// The checkpoint's directory.
    pub path: String,
    /// What it scored.
    pub metrics: Metrics,
}

/// MUSE's metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// Wording of the forget set recited; lower is better forgotten.
    pub verbmem_forget: Metric,
    /// Questions on the forget set answered; lower is better forgotten.
    pub knowmem_forget: Metric,
    /// Questions on the retain set answered; higher is better kept.
    pub knowmem_retain: Metric,
    /// Membership of the forget set betrayed; 0 is best.
    pub privleak: PrivLeak,
}

/// A mean over examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metric {
    /// The mean, x100.
    pub value: Option<f64>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Examples that it is made of.
    pub n: usize,
    /// Examples that were asked.
    #[serde(default)]
    pub n_asked: usize,
    /// 95 % confidence interval: percentile bootstrap over the examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// How well the true answers to the same prompts are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Box<Truth>>,
}

/// How well true answers are known, led along token by token: recovery shows here below the level of greedy text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Truth {
    /// Geometric mean of an answer's token probabilities (TOFU's probability).
    pub probability: Metric,
    /// Share of an answer's tokens that are the likeliest ones at their places.
    pub exact_memorization: Metric,
    /// Share of an answer from which on all tokens are the likeliest ones.
    pub extraction_strength: Metric,
}

/// `100 (auc - reference_auc) / reference_auc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrivLeak {
    /// The figure.
    pub value: Option<f64>,
    /// AUC of Min-40 %, forget against holdout: 0 is memorised, 0.5 is no difference.
    pub auc: Option<f64>,
    /// What it is compared with.
    pub reference_auc: Option<f64>,
    /// `retrain`, `corpus` or `0.5`.
    pub reference: String,
    /// Why a value is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Texts that it is made of, forget and holdout together.
    pub n: usize,
    /// Texts that were asked.
    #[serde(default)]
    pub n_asked: usize,
    /// 95 % confidence interval: percentile bootstrap over forget and holdout texts separately, the retrained reference
    /// on the same resamples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// The ROC curve whose area is `auc`, from `[0, 0]` to `[1, 1]`: for each threshold the share of the forget texts and the
    /// share of the holdout texts whose Min-40 % is not above it. Of a curve with more corners, some 100 of them. Empty without
    /// `auc`, and in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roc: Vec<[f64; 2]>,
    /// The same against further references, where more than one was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Against>,
}

/// PrivLeak against one reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Against {
    /// The figure.
    pub value: Option<f64>,
    /// What the arm's AUC is compared with.
    pub reference_auc: Option<f64>,
    /// `retrain`, `corpus` or `0.5`.
    pub reference: String,
    /// 95 % confidence interval, as the main one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// Why a value is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How much of one metric a quantized unlearned arm has back. `q` is its value, `u` the same checkpoint's at full
/// precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// The unlearned checkpoint's name.
    pub unlearned: String,
    /// The arm's precision.
    pub precision: String,
    /// `verbmem_forget` or `knowmem_forget`.
    pub metric: String,
    /// `(q - u) / (target at full precision - u)`.
    pub of_gap_to_target: Option<f64>,
    /// `(q - u) / (target at the same precision - u)`.
    pub of_gap_to_target_same_precision: Option<f64>,
    /// `q / target at the same precision`.
    pub share_of_target_same_precision: Option<f64>,
    /// 95 % confidence interval, all four arms on the same resamples. A resample whose denominator is not positive counts
    /// on both sides, so an interval that exists holds whatever its ratio might be.
    #[serde(default)]
    pub of_gap_to_target_ci95: Option<[f64; 2]>,
    /// As `of_gap_to_target_ci95`; the one that the verdict goes by.
    #[serde(default)]
    pub of_gap_to_target_same_precision_ci95: Option<[f64; 2]>,
    /// As `of_gap_to_target_ci95`.
    #[serde(default)]
    pub share_of_target_same_precision_ci95: Option<[f64; 2]>,
    /// `((q - u) - (retrain_q - retrain)) / (target at the same precision - u)`: without what quantization gives even the
    /// retrained model. Absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond_retrain: Option<Estimate>,
    /// Examples that it is made of.
    #[serde(default)]
    pub n: usize,
    /// Examples that were asked.
    #[serde(default)]
    pub n_asked: usize,
    /// Paired permutation test of q > u, one-sided.
    #[serde(default)]
    pub p_recovered: Option<f64>,
    /// `p_recovered` by Holm's correction over this table.
    #[serde(default)]
    pub p_recovered_holm: Option<f64>,
    /// Paired permutation test, one-sided, of less than `held_below` of the gap being back.
    #[serde(default)]
    pub p_held: Option<f64>,
    /// `p_held` by Holm's correction over this table.
    #[serde(default)]
    pub p_held_holm: Option<f64>,
    /// How much of the update this precision keeps; `survival` has the reason where it is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survival: Option<f64>,
    /// Why a ratio or its interval is `null`, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How arms that run in lockstep lie in the device's memory, decided before any weight is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Their names.
    pub arms: Vec<String>,
    /// `resident` or `streamed`.
    pub weights: String,
    /// Bytes that may be used.
    pub budget_bytes: u64,
    /// Who says so.
    pub budget: String,
    /// Bytes that are used at most; scoring and generation do not need theirs at the same time.
    pub peak_bytes: u64,
    /// What takes them.
    pub items: Vec<MemoryItem>,
    /// Tokens in a batch.
    pub batch_tokens: usize,
    /// Passes over the weights that are expected if every answer is as long as it may be.
    pub predicted_passes: u64,
    /// Bytes that these will read.
    pub predicted_disk_bytes: u64,
    /// Bytes that these will upload.
    pub predicted_upload_bytes: u64,
}

/// A part of the device's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryItem {
    /// What it is.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// How it comes about.
    pub detail: String,
}

impl Memory {
    /// The record of a plan for the arms of these names.
    #[must_use]
    pub fn new(plan: &MemoryPlan, names: &[String], budget: &Budget) -> Self {
        let item = |item: &Item| MemoryItem {
            name: item.name.to_owned(),
            bytes: item.bytes,
            detail: item.detail.clone(),
        };
        let weights = match plan.layout.residence {
            Residence::Resident => "resident",
            Residence::Streamed { .. } => "streamed",
        };
        Self {
            arms: names.to_vec(),
            weights: weights.to_owned(),
            budget_bytes: budget.bytes,
            budget: budget.source.clone(),
            peak_bytes: plan.peak,
            items: plan.items.iter().map(item).collect(),
            batch_tokens: plan.layout.tokens,
            predicted_passes: plan.predicted.passes,
            predicted_disk_bytes: plan.predicted.disk_bytes,
            predicted_upload_bytes: plan.predicted.upload_bytes,
        }
    }
}

/// What was done. All of this, and nothing else but `gpu_seconds` and `gpu_timed_dispatches`, differs between a run that
/// was stopped and resumed and one that was not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Sessions that it took: 1, and one more each time the run was resumed. All that follows adds up over them; of one that
    /// was killed, what was done after its last finished group of arms is not known.
    #[serde(default = "one")]
    pub sessions: u64,
    /// Bytes read from checkpoints to run them.
    pub disk_bytes: u64,
    /// Bytes read from checkpoints, once more, to compare their weights for `survival`.
    #[serde(default)]
    pub codes_disk_bytes: u64,
    /// Bytes uploaded to the device.
    pub upload_bytes: u64,
    /// Times that all weights were run through.
    pub weight_passes: u64,
    /// Kernel launches.
    pub dispatches: u64,
    /// Command buffers handed to the device.
    pub submissions: u64,
    /// Tokens whose log-probability was computed.
    pub tokens_scored: u64,
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Most device memory held at one time, by the program's own accounting.
    pub peak_device_bytes: u64,
    /// The same by the driver's allocator, staging included, where it was watched (`--vram`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_allocated_bytes: Option<u64>,
    /// Most memory that the process held on the host, a software adapter's device memory included, where the system
    /// tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_host_bytes: Option<u64>,
    /// Where the time went.
    pub seconds: Seconds,
}

fn one() -> u64 {
    1
}

impl Counters {
    /// Adds another session's; peaks are maxima.
    pub fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.disk_bytes += other.disk_bytes;
        self.codes_disk_bytes += other.codes_disk_bytes;
        self.upload_bytes += other.upload_bytes;
        self.weight_passes += other.weight_passes;
        self.dispatches += other.dispatches;
        self.submissions += other.submissions;
        self.tokens_scored += other.tokens_scored;
        self.tokens_generated += other.tokens_generated;
        self.peak_device_bytes = self.peak_device_bytes.max(other.peak_device_bytes);
        self.peak_allocated_bytes = self.peak_allocated_bytes.max(other.peak_allocated_bytes);
        self.peak_host_bytes = self.peak_host_bytes.max(other.peak_host_bytes);
        self.seconds.load += other.seconds.load;
        self.seconds.score += other.seconds.score;
        self.seconds.generate += other.seconds.generate;
    }
}

/// Wall seconds by kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Seconds {
    /// Reading, uploading and packing weights.
    pub load: f64,
    /// Device work of scoring, with the head.
    pub score: f64,
    /// Device work of generation, with the head.
    pub generate: f64,
}

/// What `undertext generate --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generated {
    /// The prompt as token ids.
    pub prompt_ids: Vec<u32>,
    /// The new token ids, with the end-of-sequence token if one came.
    pub token_ids: Vec<u32>,
    /// The new tokens as text.
    pub text: String,
    /// What it ran on.
    pub device: Device,
    /// As asked for.
    pub precision: String,
    /// What the matrices of the layers were stored in.
    pub scheme: String,
    /// Which of several equivalent kernels computed what, by class of problem; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    /// Seconds by the device's own clock, by kernel, with those that packed weights and chose kernels; extrapolated from
    /// `gpu_timed_dispatches`. Empty for the CPU pass and for adapters without a clock.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gpu_seconds: BTreeMap<String, f64>,
    /// Kernel launches that were timed.
    #[serde(default)]
    pub gpu_timed_dispatches: u64,
    /// How the model lay in the device's memory; empty for the CPU pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// What it cost.
    pub counters: Counters,
}
