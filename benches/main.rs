//! All benches in one binary: every timed case of every kernel, whole passes of a model, and rounding that keeps an
//! update.
//!
//! `cargo bench` reports throughput, and after each group a table that sets it beside what the device was measured to
//! do at most. `cargo bench -- --save-baseline NAME` and `--baseline NAME` compare, `cargo bench -- FILTER` selects.
//! `UNDERTEXT_DEVICE` chooses the device as `--device` does, `UNDERTEXT_BENCH_MODEL=DIR` takes a checkpoint in place of
//! a synthetic one. The tests check the same cases; `cargo test --bench main` runs everything once.

#![allow(clippy::expect_used, clippy::print_stderr, reason = "a bench, not a part of the program")]

mod kernels;
mod model;
mod roofline;
mod rounding;

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use undertext::gpu::{DeviceChoice, Gpu, Tuning};

use crate::roofline::Roofline;

fn all(criterion: &mut Criterion) {
    let choice: DeviceChoice =
        std::env::var("UNDERTEXT_DEVICE").unwrap_or_default().parse().unwrap_or_default();
    // Without a folder: what is fastest is found anew, so that nothing outside decides.
    let gpu = Gpu::open(&choice).expect("benches need an adapter").with_tuning(Tuning::Remembered, None);
    let roofline = Roofline::of(&gpu);
    kernels::bench(criterion, &gpu, &roofline);
    model::bench(criterion, &Arc::new(gpu), &roofline);
    rounding::bench(criterion);
}

criterion_group!(benches, all);
criterion_main!(benches);
