//! Every timed case of every kernel that runs on the device.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use undertext::gpu::{Commands, Gpu};
use undertext::kernels::{Prepared, Work, registry};

use crate::roofline::{Load, Roofline, SAMPLES, Samples, Table, is_measuring};

/// Launches in one submission: enough to hide the cost of submitting, few enough to stay under the
/// second or two that drivers allow.
const LAUNCHES: usize = 8;

/// A case that memory bounds goes round copies of its operands, so many bytes of them: more than a last-level cache
/// holds, which would answer in memory's place.
const ROTATED_BYTES: f64 = (96 << 20) as f64;

/// Copies at most: they take a while to make.
const MOST_COPIES: f64 = 128.0;

/// Benches them, with a table for each kernel.
pub(crate) fn bench(criterion: &mut Criterion, gpu: &Gpu, roofline: &Roofline) {
    for kernel in registry().into_iter().filter(|kernel| kernel.runs_on(gpu)) {
        let cases: Vec<_> = (kernel.cases)().into_iter().filter(|case| case.timed).collect();
        if cases.is_empty() {
            continue;
        }
        let mut table = Table::new(roofline, kernel.name);
        let mut group = criterion.benchmark_group(kernel.name);
        group.sample_size(SAMPLES).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        for case in &cases {
            let load = load(case.work);
            group.throughput(match case.work {
                Work::Bytes(bytes) => Throughput::Bytes(bytes),
                // Reported as elem/s: one element is one floating-point operation.
                Work::Flops(flops) | Work::Both { flops, .. } => Throughput::Elements(flops),
            });
            let copies = copies(roofline, load);
            // Only if no filter leaves it out.
            let prepared = OnceCell::new();
            let prepare = || -> Vec<Prepared> {
                (0..copies).map(|_| (case.prepare)(gpu).expect("a checked case")).collect()
            };
            let samples = Samples::default();
            let label = case.name.split_once('/').map_or(case.name.as_str(), |(_, label)| label);
            group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
                let prepared = prepared.get_or_init(prepare);
                bencher.iter_custom(|iterations| samples.note(run(gpu, prepared, iterations), iterations));
            });
            table.add(label, load, None, &samples);
        }
        group.finish();
        table.print();
    }
}

fn load(work: Work) -> Load {
    let (flops, bytes) = match work {
        Work::Bytes(bytes) => (0, bytes),
        Work::Flops(flops) => (flops, 0),
        Work::Both { flops, bytes } => (flops, bytes),
    };
    Load { flops: flops as f64, bytes: bytes as f64 }
}

fn copies(roofline: &Roofline, load: Load) -> usize {
    if !is_measuring() || !roofline.is_memory_bound(load) {
        return 1;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to MOST_COPIES")]
    let copies = (ROTATED_BYTES / load.bytes).ceil().clamp(1.0, MOST_COPIES) as usize;
    copies
}

/// Wall time of `iterations` launches, one copy after the other.
fn run(gpu: &Gpu, prepared: &[Prepared], iterations: u64) -> Duration {
    gpu.wait("before timing").expect("nothing of ours still queued");
    let mut copies = prepared.iter().cycle();
    let start = Instant::now();
    let mut left = usize::try_from(iterations).expect("a count of launches");
    while left > 0 {
        let launches = left.min(LAUNCHES);
        let mut commands = Commands::new();
        for copy in copies.by_ref().take(launches) {
            (copy.record)(&mut commands);
        }
        commands.submit(gpu).expect("a checked case");
        left -= launches;
    }
    gpu.wait("timing").expect("a checked case");
    start.elapsed()
}
