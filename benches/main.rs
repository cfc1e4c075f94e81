//! All benches in one binary: every timed case of every kernel.
//!
//! `cargo bench` reports throughput; `cargo bench -- --save-baseline NAME` and `--baseline NAME` compare.
//! `UNDERTEXT_DEVICE` chooses the device as `--device` does. The same cases are checked by the tests.

#![allow(clippy::expect_used, clippy::print_stderr, reason = "a bench, not a part of the program")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use undertext::gpu::{Commands, DeviceChoice, Gpu};
use undertext::kernels::{Work, registry};

/// Launches in one submission: enough to hide the cost of submitting, few enough to stay under the
/// second or two that drivers allow.
const LAUNCHES: u64 = 8;

fn kernels(criterion: &mut Criterion) {
    let choice: DeviceChoice =
        std::env::var("UNDERTEXT_DEVICE").unwrap_or_default().parse().unwrap_or_default();
    let gpu = Gpu::open(&choice).expect("benches need an adapter");
    eprintln!("{} ({}), {}", gpu.info().name, gpu.info().backend, gpu.info().driver);
    for kernel in registry() {
        let cases = (kernel.cases)();
        if !cases.iter().any(|case| case.timed) {
            continue;
        }
        let mut group = criterion.benchmark_group(kernel.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        for case in cases.iter().filter(|case| case.timed) {
            group.throughput(match case.work {
                Work::Bytes(bytes) => Throughput::Bytes(bytes),
                // Reported as elem/s: one element is one floating-point operation.
                Work::Flops(flops) => Throughput::Elements(flops),
            });
            let prepared = (case.prepare)(&gpu).expect("a checked case");
            let label = case.name.split_once('/').map_or(case.name.as_str(), |(_, label)| label);
            group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
                bencher.iter_custom(|iterations| {
                    gpu.wait("before timing").expect("nothing of ours still queued");
                    let start = Instant::now();
                    let mut left = iterations;
                    while left > 0 {
                        let mut commands = Commands::new();
                        for _ in 0..left.min(LAUNCHES) {
                            (prepared.record)(&mut commands);
                        }
                        commands.submit(&gpu).expect("a checked case");
                        left -= left.min(LAUNCHES);
                    }
                    gpu.wait("timing").expect("a checked case");
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(all, kernels);
criterion_main!(all);
