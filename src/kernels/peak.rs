//! What a device can do at most, measured: multiply and add, read, copy.
//!
//! Benches set a kernel's speed against these: a data sheet's numbers are those of another clock and another driver,
//! and no shader reaches them.

use std::sync::Arc;
use std::time::Instant;

use super::case::{ULP, noise, rounding, unwritten};
use super::link::{file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: usize = 64;

/// Chains of a lane, and steps of a round; `peak_fma.wgsl` has the same numbers.
const CHAINS: usize = 12;
const STEPS: usize = 16;

/// Quads that a lane reads or copies.
const PER_LANE: usize = 32;
const RUN_BYTES: usize = 16 * PER_LANE * WG;

/// Lanes that fill any device.
const LANES: usize = 1 << 17;

/// What is read: more than a last-level cache holds.
const TRAFFIC_BYTES: u64 = 128 << 20;

/// A timed launch of multiplications takes at least so long, in seconds.
const LAUNCH: f64 = 0.02;

/// Rounds double no further: 2.6e13 operations.
const MOST_ROUNDS: usize = 1 << 19;

/// Timed launches; the best counts.
const RUNS: usize = 5;

/// The factor of the chains: they converge.
const FACTOR: f32 = 0.5;

params!(FmaParams { rounds: u32, m: f32 });
params!(TrafficParams { runs: u32 });

pub(super) const FMA: Kernel = Kernel {
    name: "peak_fma",
    sources: || vec![fma_source()],
    params: FmaParams::layout,
    cases: || vec![fma_case(1, 1), fma_case(3, 40)],
};
pub(super) const READ: Kernel = Kernel {
    name: "peak_read",
    sources: || Pattern::ALL.map(read_source).to_vec(),
    params: TrafficParams::layout,
    cases: || Pattern::ALL.map(|pattern| traffic_case(pattern, false, 3)).into(),
};
pub(super) const COPY: Kernel = Kernel {
    name: "peak_copy",
    sources: || Pattern::ALL.map(copy_source).to_vec(),
    params: TrafficParams::layout,
    cases: || Pattern::ALL.map(|pattern| traffic_case(pattern, true, 3)).into(),
};

fn fma_source() -> Source {
    let mut source = plain("peak_fma".to_owned(), file!("peak_fma.wgsl")).with_index();
    source.overrides.push(("WG", WG as f64));
    source
}

/// In what order a workgroup's lanes go through its run.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// Neighbouring lanes take neighbouring quads: what GPUs want.
    Quads,
    /// A lane takes four quads at a time, 64 bytes.
    Lines,
    /// A lane takes a stretch of its own: what suits a lane that is a part of a CPU's vector.
    Stretches,
}

impl Pattern {
    const ALL: [Self; 3] = [Self::Quads, Self::Lines, Self::Stretches];

    fn name(self) -> &'static str {
        match self {
            Self::Quads => "quads",
            Self::Lines => "lines",
            Self::Stretches => "stretches",
        }
    }

    /// LANE, QUAD and STEP of the shaders.
    fn strides(self) -> [usize; 3] {
        match self {
            Self::Quads => [1, WG, 4 * WG],
            Self::Lines => [4, 1, 4 * WG],
            Self::Stretches => [PER_LANE, 1, 4],
        }
    }

    /// The i-th quad of a lane, in the run.
    fn quad(self, lane: usize, i: usize) -> usize {
        let [lane_stride, quad_stride, step] = self.strides();
        lane * lane_stride + i / 4 * step + i % 4 * quad_stride
    }
}

fn read_source(pattern: Pattern) -> Source {
    traffic(plain(format!("peak_read/{}", pattern.name()), file!("peak_read.wgsl")), pattern)
}

fn copy_source(pattern: Pattern) -> Source {
    traffic(plain(format!("peak_copy/{}", pattern.name()), file!("peak_copy.wgsl")), pattern)
}

fn traffic(source: Source, pattern: Pattern) -> Source {
    let mut source = source.with_index();
    source.overrides.extend([("WG", WG as f64), ("PER_LANE", PER_LANE as f64)]);
    let strides = ["LANE", "QUAD", "STEP"].into_iter().zip(pattern.strides());
    source.overrides.extend(strides.map(|(name, stride)| (name, stride as f64)));
    source
}

/// What a device can do at most, through WGSL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Operations of fused multiply-adds in f32 in a second, two each.
    pub flops: f64,
    /// Bytes read from storage buffers in a second.
    pub read: f64,
    /// Bytes read and written in a second by a copy: twice the bytes of the buffer.
    pub copy: f64,
}

impl Peaks {
    /// Least seconds for `flops` operations on `bytes` of traffic: the roofline (Williams et al. 2009), with the
    /// better of both bandwidths.
    #[must_use]
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.read.max(self.copy))
    }
}

/// Measures the device, in about a second. Nothing else should run on it.
///
/// # Errors
///
/// If a shader does not compile, or the device fails or has no room for two buffers of 128 MiB (smaller ones where
/// it cannot bind that).
pub fn measure(gpu: &Gpu) -> Result<Peaks> {
    let flops = fma_peak(gpu)?;
    let runs = usize::try_from(TRAFFIC_BYTES.min(gpu.max_binding_bytes())).unwrap_or(RUN_BYTES) / RUN_BYTES;
    let bytes = (runs * RUN_BYTES) as u64;
    let (x, y) = (gpu.alloc("a measurement's x", bytes)?, gpu.alloc("a measurement's y", bytes)?);
    // Memory that was never written may be one page of zeros many times.
    let copy = gpu.pipeline(&copy_source(Pattern::Quads))?;
    for (from, to) in [(&x, &y), (&y, &x)] {
        seconds(gpu, |commands| record_traffic(commands, &copy, from, to, runs))?;
    }
    let best = |source: fn(Pattern) -> Source| -> Result<f64> {
        let mut best = f64::INFINITY;
        for pattern in Pattern::ALL {
            let pipeline = gpu.pipeline(&source(pattern))?;
            for _ in 0..RUNS {
                best = best.min(seconds(gpu, |commands| record_traffic(commands, &pipeline, &x, &y, runs))?);
            }
        }
        Ok(best)
    };
    Ok(Peaks {
        flops,
        read: bytes as f64 / best(read_source)?,
        copy: 2.0 * bytes as f64 / best(copy_source)?,
    })
}

fn fma_peak(gpu: &Gpu) -> Result<f64> {
    let pipeline = gpu.pipeline(&fma_source())?;
    let y = gpu.alloc("a measurement's y", 16 * LANES as u64)?;
    let mut rounds = 1;
    let mut took = 0.0;
    // The first launch may compile; so the last number of rounds is timed once more.
    while took < LAUNCH && rounds < MOST_ROUNDS {
        rounds *= 2;
        took = seconds(gpu, |commands| record_fma(commands, &pipeline, &y, LANES, rounds))?;
    }
    let mut best = took;
    for _ in 0..RUNS {
        best = best.min(seconds(gpu, |commands| record_fma(commands, &pipeline, &y, LANES, rounds))?);
    }
    Ok(fma_work(LANES, rounds) as f64 / best)
}

/// Seconds of what `record` launches, by the device's clock where it has one.
fn seconds(gpu: &Gpu, record: impl Fn(&mut Commands)) -> Result<f64> {
    let mut commands = Commands::new();
    record(&mut commands);
    let start = Instant::now();
    let nanoseconds = commands.time(gpu)?;
    let wall = start.elapsed().as_secs_f64();
    Ok(nanoseconds.map_or(wall, |nanoseconds| nanoseconds as f64 * 1e-9))
}

fn fma_work(lanes: usize, rounds: usize) -> u64 {
    (2 * lanes * CHAINS * STEPS * rounds) as u64
}

fn record_fma(commands: &mut Commands, pipeline: &Arc<Pipeline>, y: &Buffer, lanes: usize, rounds: usize) {
    let params = FmaParams { rounds: small(rounds), m: FACTOR };
    commands.dispatch(pipeline, &params, &[("y", y)], Grid::flat(lanes / WG), fma_work(lanes, rounds));
}

fn record_traffic(commands: &mut Commands, pipeline: &Arc<Pipeline>, x: &Buffer, y: &Buffer, runs: usize) {
    let params = TrafficParams { runs: small(runs) };
    commands.dispatch(
        pipeline,
        &params,
        &[("x", x), ("y", y)],
        Grid::flat(runs),
        moving(2 * runs * RUN_BYTES),
    );
}

fn fma_case(groups: usize, rounds: usize) -> Case {
    let lanes = groups * WG;
    Case {
        name: format!("peak_fma/ lanes={lanes} rounds={rounds}"),
        work: Work::Flops(fma_work(lanes, rounds)),
        timed: false,
        prepare: Box::new(move |gpu| {
            let pipeline = gpu.pipeline(&fma_source())?;
            let y = unwritten(gpu, "y", 4 * lanes)?;
            let want = move || (0..4 * lanes).map(|word| fma_reference(word / 4, word % 4, rounds)).collect();
            let outputs = vec![Output { name: "y", buffer: y.clone(), want: Box::new(want) }];
            let record = move |commands: &mut Commands| record_fma(commands, &pipeline, &y, lanes, rounds);
            Ok(Prepared { record: Box::new(record), outputs })
        }),
    }
}

/// The f64 twin of the multiplications.
///
/// A step rounds twice at most, a value no larger than twice the fixed point or the start; all errors before are
/// halved by it, so that they add up to twice one step's. Then three values are added.
fn fma_reference(lane: usize, component: usize, rounds: usize) -> Want {
    let c = 1.0 + (lane % 64) as f64;
    let sum: f64 = (0..3)
        .map(|chain| (0..STEPS * rounds).fold((chain + component) as f64, |a, _| a * f64::from(FACTOR) + c))
        .sum();
    let largest = (2.0 * c).max(5.0);
    Want::Near { value: sum, bound: 3.0 * largest * (2.0 * 2.0 * ULP) + rounding(2) * sum.abs() }
}

fn traffic_case(pattern: Pattern, copies: bool, runs: usize) -> Case {
    let bytes = runs * RUN_BYTES;
    let kernel = if copies { "peak_copy" } else { "peak_read" };
    Case {
        name: format!("{kernel}/{} bytes={bytes}", pattern.name()),
        work: Work::Bytes(if copies { 2 * bytes } else { bytes } as u64),
        timed: false,
        prepare: Box::new(move |gpu| prepare_traffic(gpu, pattern, copies, runs)),
    }
}

fn prepare_traffic(gpu: &Gpu, pattern: Pattern, copies: bool, runs: usize) -> Result<Prepared> {
    let pipeline = gpu.pipeline(&if copies { copy_source(pattern) } else { read_source(pattern) })?;
    let x = noise(71, runs * RUN_BYTES / 4);
    let x_buffer = gpu.upload("x", &x)?;
    let y = unwritten(gpu, "y", if copies { x.len() } else { x.len() / PER_LANE })?;
    let want = move || {
        if copies { x.iter().map(|x| Want::Exactly(x.to_bits())).collect() } else { sums(&x, pattern) }
    };
    let outputs = vec![Output { name: "y", buffer: y.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| record_traffic(commands, &pipeline, &x_buffer, &y, runs);
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin of reading. A value passes the sum of two, a chain of eight and the sum of two chains.
fn sums(x: &[f32], pattern: Pattern) -> Vec<Want> {
    let word = |run: &[f32], at: usize| {
        let values = || (0..PER_LANE).map(|i| f64::from(run[4 * pattern.quad(at / 4, i) + at % 4]));
        let magnitude: f64 = values().map(f64::abs).sum();
        Want::Near { value: values().sum(), bound: rounding(1 + PER_LANE / 4 + 1) * magnitude }
    };
    x.chunks(RUN_BYTES / 4).flat_map(|run| (0..4 * WG).map(move |at| word(run, at))).collect()
}
