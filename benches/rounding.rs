//! Rounding that keeps an update, on the host: some rows of a matrix as wide as SmolLM2's.

use criterion::{BenchmarkId, Criterion, Throughput};
use undertext::quant::{Draw, Moments, Scheme, keep, matched};

use crate::roofline::SAMPLES;

const SCHEME: Scheme = Scheme::Int4 { group: 32 };
const ROWS: usize = 16;
const SHARE: f32 = 0.825;

/// Times both kinds, by weights a second.
pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rounding");
    group.sample_size(SAMPLES);
    for cols in [576, 1536] {
        let uniform = |name: &str, count: usize| -> Vec<f32> {
            let draw = Draw::new(1, name);
            (0..count as u64).map(|index| 2.0 * draw.at(index) - 1.0).collect()
        };
        let target = uniform("target", ROWS * cols);
        // Far below a step: nearest rounding loses nearly all of it.
        let update = uniform("update", ROWS * cols);
        let unlearned: Vec<f32> =
            target.iter().zip(&update).map(|(old, change)| old + 0.003 * change).collect();
        let moments = moments(&uniform("inputs", 2 * cols * cols), cols);
        group.throughput(Throughput::Elements((ROWS * cols) as u64));
        group.bench_function(BenchmarkId::new("kept", cols), |bencher| {
            bencher.iter(|| keep(SCHEME, &target, &unlearned, ROWS, cols, SHARE));
        });
        group.bench_function(BenchmarkId::new("calibrated", cols), |bencher| {
            bencher.iter(|| matched(SCHEME, &target, &unlearned, [ROWS, cols], &moments, SHARE));
        });
    }
    group.finish();
}

/// Of `[2 n, n]` inputs that share a part, as activations do.
fn moments(inputs: &[f32], n: usize) -> Moments {
    let mut sums = vec![0.0; n * n];
    for row in inputs.chunks_exact(n) {
        for (i, left) in row.iter().enumerate() {
            let left = f64::from(left + row[0]);
            let sums = sums[i * n..(i + 1) * n].iter_mut();
            sums.zip(row).for_each(|(sum, right)| *sum += left * f64::from(right + row[0]));
        }
    }
    Moments::new(n, sums)
}
