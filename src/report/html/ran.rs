//! What was asked and what really ran.

use super::table::{Cell, Table, fixed};
use super::{Section, distinct};
use crate::report::memory::grouped;
use crate::report::schema::{Memory, Report};

/// The few things that say what page this is.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let named = |role: &str| {
        let names = report.arms.iter().filter(|arm| arm.role == role).map(|arm| arm.name.as_str());
        let names = distinct(names);
        if names.is_empty() { "none measured".to_owned() } else { names.join(", ") }
    };
    let precisions = distinct(report.arms.iter().map(|arm| arm.precision.as_str()));
    let limit = report.plan.limit.map_or_else(String::new, |n| format!(" (first {n} of each set)"));
    vec![
        ("Target", named("target")),
        ("Unlearned", named("unlearned")),
        ("Retrained", named("retrain")),
        (
            "Precisions",
            if precisions.is_empty() { "none measured".to_owned() } else { precisions.join(", ") },
        ),
        ("Questions", format!("{}{limit}", report.plan.data)),
        ("Device", format!("{} ({})", report.device.name, report.device.backend)),
        ("Program", program(report)),
    ]
}

fn program(report: &Report) -> String {
    let program = &report.undertext;
    let commit = match (&program.commit, &program.reason) {
        (Some(commit), _) => format!("commit {}", commit.chars().take(12).collect::<String>()),
        (None, Some(reason)) => reason.clone(),
        (None, None) => "commit not known".to_owned(),
    };
    let dirty = if program.dirty == Some(true) { ", with local changes" } else { "" };
    format!("undertext {} ({commit}{dirty})", program.version)
}

/// Everything about the run itself.
pub(super) fn provenance(report: &Report) -> Section {
    let mut section = Section::new("provenance", "What really ran");
    section.tables.push(run(report));
    if report.arms.is_empty() {
        section.notes.push("No arm was measured.".to_owned());
    } else {
        section.tables.push(checkpoints(report));
    }
    if report.kernels.is_empty() {
        section.notes.push("No kernels are recorded: the CPU pass has none to choose from.".to_owned());
    } else {
        let mut table = Table::new("Kernels that were chosen, by problem", 2, ["problem", "kernel"]).folded();
        report.kernels.iter().for_each(|(problem, kernel)| table.add([problem.as_str(), kernel.as_str()]));
        section.tables.push(table);
    }
    if report.gpu_seconds.is_empty() {
        section
            .notes
            .push("There are no times by kernel: the device has no clock that can be read.".to_owned());
    } else {
        section.tables.push(times(report));
    }
    if report.memory.is_empty() {
        section.notes.push("There is no memory plan: the CPU pass makes none.".to_owned());
    }
    section.tables.extend(report.memory.iter().enumerate().map(|(index, memory)| layout(index, memory)));
    section.tables.push(counters(report));
    section
}

fn run(report: &Report) -> Table {
    let (device, plan, judged) = (&report.device, &report.plan, &report.statistics);
    let subgroups = match device.subgroups {
        [0, 0] => "none".to_owned(),
        [least, most] if least == most => least.to_string(),
        [least, most] => format!("{least} to {most}"),
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let full_commit = report.undertext.commit.clone();
    let index = device.index.map_or_else(|| "the CPU pass".to_owned(), |index| index.to_string());
    let limit = plan.limit.map_or_else(|| "all".to_owned(), |limit| format!("the first {limit}"));
    let mut rows = vec![
        ("program", program(report)),
        ("commit", full_commit.unwrap_or_else(|| "not known".to_owned())),
        ("record", format!("schema version {}", report.schema_version)),
        ("complete", yes(report.complete)),
        ("device", device.name.clone()),
        ("device index", index),
        ("backend and type", format!("{}, {}", device.backend, device.kind)),
        ("driver", device.driver.clone()),
        ("f16 arithmetic", yes(device.f16)),
        ("subgroups", subgroups),
        ("questions", plan.data.clone()),
        ("examples of each set", limit),
        ("head quantized too", yes(plan.quantize_head)),
        ("prompts cut for each arm", plan.truncated_per_arm.to_string()),
    ];
    if judged.resamples > 0 {
        rows.extend([
            ("resamples and seed", format!("{}, {}", judged.resamples, judged.seed)),
            ("error rate of the tests", judged.alpha.to_string()),
            ("resurrected above, held below", format!("{}, {}", judged.resurrected_above, judged.held_below)),
            (
                "collapsed below, least gap",
                format!("{}, {} points", judged.collapsed_below, judged.least_gap),
            ),
        ]);
    }
    let mut table = Table::new("The run", 2, ["what", "value"]);
    rows.into_iter().for_each(|(name, value)| table.add([name.to_owned(), value]));
    table
}

fn checkpoints(report: &Report) -> Table {
    let columns = ["model", "role", "precision", "stored as", "directory"];
    let mut table = Table::new("Checkpoints and how their matrices were stored", 5, columns).folded();
    for arm in &report.arms {
        table.add(
            [&arm.name, &arm.role, &arm.precision, &arm.scheme, &arm.path]
                .map(|text| Cell::from(text.as_str())),
        );
    }
    table
}

fn times(report: &Report) -> Table {
    let launches = grouped(report.gpu_timed_dispatches);
    let caption = format!("Seconds by the device's own clock, from {launches} timed launches");
    let mut table = Table::new(caption, 1, ["kernel", "seconds"]).folded();
    let mut kernels: Vec<_> = report.gpu_seconds.iter().collect();
    kernels.sort_by(|a, b| b.1.total_cmp(a.1));
    kernels.into_iter().for_each(|(kernel, seconds)| table.add([kernel.clone(), fixed(*seconds, 2)]));
    table
}

fn layout(index: usize, memory: &Memory) -> Table {
    let arms = match memory.arms.as_slice() {
        [one] => one.clone(),
        arms => format!("{} arms", arms.len()),
    };
    let caption = format!("Memory plan {}: {arms}, weights {}", index + 1, memory.weights);
    let mut table = Table::new(caption, 2, ["part", "how", "bytes"]).folded();
    for item in &memory.items {
        table.add([item.name.clone(), item.detail.clone(), grouped(item.bytes)]);
    }
    let rows = [
        ("at most", format!("of {} ({})", grouped(memory.budget_bytes), memory.budget), memory.peak_bytes),
        (
            "expected to be read",
            format!("{} passes over the weights", grouped(memory.predicted_passes)),
            memory.predicted_disk_bytes,
        ),
        (
            "expected to be uploaded",
            format!("{} tokens in a batch", memory.batch_tokens),
            memory.predicted_upload_bytes,
        ),
    ];
    rows.into_iter().for_each(|(name, how, bytes)| table.add([name.to_owned(), how, grouped(bytes)]));
    table.add(["arms".to_owned(), memory.arms.join(", "), memory.arms.len().to_string()]);
    table
}

fn counters(report: &Report) -> Table {
    let counters = &report.counters;
    let mut rows = vec![
        ("bytes read", grouped(counters.disk_bytes)),
        ("bytes read to compare weights", grouped(counters.codes_disk_bytes)),
        ("bytes uploaded", grouped(counters.upload_bytes)),
        ("passes over the weights", grouped(counters.weight_passes)),
        ("kernel launches", grouped(counters.dispatches)),
        ("submissions", grouped(counters.submissions)),
        ("tokens scored", grouped(counters.tokens_scored)),
        ("tokens generated", grouped(counters.tokens_generated)),
        ("most device bytes", grouped(counters.peak_device_bytes)),
        ("seconds loading", fixed(counters.seconds.load, 2)),
        ("seconds scoring", fixed(counters.seconds.score, 2)),
        ("seconds generating", fixed(counters.seconds.generate, 2)),
    ];
    let peaks = [
        ("most bytes by the driver's allocator", counters.peak_allocated_bytes),
        ("most host bytes", counters.peak_host_bytes),
    ];
    rows.extend(peaks.into_iter().filter_map(|(name, bytes)| Some((name, grouped(bytes?)))));
    let mut table = Table::new("What it took", 1, ["what", "figure"]).folded();
    rows.into_iter().for_each(|(name, value)| table.add([name.to_owned(), value]));
    table
}
