//! Sets what was measured beside what the device can do at most.

use std::cell::RefCell;
use std::time::Duration;

use undertext::gpu::Gpu;
use undertext::kernels::peak::{self, Peaks};

/// Samples of a bench: the last so many calls of its routine, after those that warm up.
pub(crate) const SAMPLES: usize = 10;

/// Whether this is `cargo bench`; otherwise every bench runs once, to see that it does.
pub(crate) fn is_measuring() -> bool {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    has("--bench") && !has("--test")
}

/// Work of one iteration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Floating-point operations.
    pub(crate) flops: f64,
    /// Bytes that must move to or from memory.
    pub(crate) bytes: f64,
}

/// The measured limits of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roofline {
    peaks: Peaks,
}

impl Roofline {
    /// Measures the device and prints its limits.
    pub(crate) fn of(gpu: &Gpu) -> Self {
        let peaks = peak::measure(gpu).expect("a working device");
        let info = gpu.info();
        eprintln!("{} ({}), {}", info.name, info.backend, info.driver);
        eprintln!(
            "measured limits: {:.1} GFLOP/s of f32 fused multiply-add, {:.1} GB/s read, {:.1} GB/s copy",
            peaks.flops / 1e9,
            peaks.read / 1e9,
            peaks.copy / 1e9,
        );
        Self { peaks }
    }

    /// Whether memory bounds a load, not arithmetic.
    pub(crate) fn is_memory_bound(&self, load: Load) -> bool {
        self.peaks.seconds(0.0, load.bytes) > self.peaks.seconds(load.flops, 0.0)
    }
}

/// What the benches of a group took, for the table after it.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    roofline: &'a Roofline,
    title: &'a str,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    label: String,
    load: Load,
    /// What an iteration yields, and its unit: tokens, say.
    yields: Option<(f64, &'static str)>,
    seconds: f64,
}

/// Seconds an iteration, call by call.
#[derive(Debug, Default)]
pub(crate) struct Samples(RefCell<Vec<f64>>);

impl Samples {
    /// Notes one call, and gives the time back for criterion.
    pub(crate) fn note(&self, elapsed: Duration, iterations: u64) -> Duration {
        self.0.borrow_mut().push(elapsed.as_secs_f64() / iterations as f64);
        elapsed
    }

    /// The median of the last calls; `None` if a filter left the bench out.
    fn median(&self) -> Option<f64> {
        let samples = self.0.borrow();
        let mut last = samples[samples.len().saturating_sub(SAMPLES)..].to_vec();
        last.sort_by(f64::total_cmp);
        last.get(last.len() / 2).copied()
    }
}

impl<'a> Table<'a> {
    /// An empty one.
    pub(crate) fn new(roofline: &'a Roofline, title: &'a str) -> Self {
        Self { roofline, title, rows: Vec::new() }
    }

    /// Adds a bench that has run.
    pub(crate) fn add(
        &mut self,
        label: &str,
        load: Load,
        yields: Option<(f64, &'static str)>,
        samples: &Samples,
    ) {
        if let Some(seconds) = samples.median() {
            self.rows.push(Row { label: label.to_owned(), load, yields, seconds });
        }
    }

    /// Prints it to stderr; nothing where each bench ran only once.
    pub(crate) fn print(self) {
        if !is_measuring() || self.rows.is_empty() {
            return;
        }
        let Peaks { flops, .. } = self.roofline.peaks;
        let width = self.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
        eprintln!("\n{}: median of {SAMPLES} samples, beside the measured limits", self.title);
        eprintln!(
            "  {:width$}  {:>10}  {:>14}  {:>9}  {:>6}  {:>8}  bound by",
            "", "time", "GFLOP/s", "GB/s", "of fma", "of roof",
        );
        for Row { label, load, yields, seconds } in &self.rows {
            let roof = self.roofline.peaks.seconds(load.flops, load.bytes) / seconds;
            let bound = if self.roofline.is_memory_bound(*load) { "memory" } else { "fma" };
            let yields =
                yields.map_or(String::new(), |(count, unit)| format!(", {:.1} {unit}", count / seconds));
            eprintln!(
                "  {label:width$}  {:>7.3} ms  {:>14.2}  {:>9.2}  {:>4.1} %  {:>6.1} %  {bound}{yields}",
                seconds * 1e3,
                load.flops / seconds / 1e9,
                load.bytes / seconds / 1e9,
                100.0 * load.flops / seconds / flops,
                100.0 * roof,
            );
        }
        eprintln!();
    }
}
