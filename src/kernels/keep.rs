//! Kept rounding on the device. Host twin: [`crate::quant::keep()`], code by code.

use std::sync::Arc;

use super::case::{noise, unwritten};
use super::link::{file, params, plain};
use super::pack::{PackKernels, small};
use super::split::moving;
use super::{Case, Kernel, Matrix, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Grouping, Scheme, scale};

const WG: u32 = 64;

params!(KeepParams {
    cols: u32,
    row_len: u32,
    group: u32,
    per_row: u32,
    share: f32,
    nothing: u32,
    rows: u32,
});

pub(super) const KERNEL: Kernel = Kernel { name: "keep", sources, params: KeepParams::layout, cases };

fn sources() -> Vec<Source> {
    Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()).map(source).collect()
}

fn source(scheme: Scheme) -> Source {
    let mut source = plain(format!("keep/{scheme}"), file!("keep.wgsl")).with_index();
    source.parts.push(file!("common/wide.wgsl"));
    let grid = match scheme {
        Scheme::Int8 => Some(scale::INT8),
        Scheme::Int4Row => Some(scale::INT4_ROW),
        Scheme::Int4 { .. } => Some(scale::INT4),
        _ => None,
    };
    source.parts.extend(match scheme {
        Scheme::Int4Asym { .. } => vec![file!("ladders/unsigned.wgsl")],
        Scheme::Fp4B64 => vec![file!("ladders/fp4.wgsl"), file!("tables/fp4.wgsl")],
        Scheme::Nf4B64 => vec![file!("ladders/nf4.wgsl"), file!("tables/nf4.wgsl")],
        _ => vec![file!("ladders/signed.wgsl")],
    });
    source.overrides.extend([("WG", f64::from(WG)), ("PER_WORD", scheme.per_word() as f64)]);
    if let Some(grid) = grid {
        source.overrides.extend([("MIN_CODE", f64::from(grid.min)), ("MAX_CODE", f64::from(grid.max))]);
    }
    source
}

/// What a launch reads and writes, `[rows, cols]` each.
pub(super) struct Operands<'a> {
    /// u, f32.
    pub(super) weights: &'a Buffer,
    /// t, f32.
    pub(super) targets: &'a Buffer,
    /// Of u.
    pub(super) scales: &'a Buffer,
    /// Of t.
    pub(super) target_scales: &'a Buffer,
    /// Nearest codes of t.
    pub(super) target_codes: &'a Buffer,
    /// Nearest codes of u, then kept ones.
    pub(super) codes: &'a Buffer,
    /// Scratch of [`scratch_bytes`].
    pub(super) moves: &'a Buffer,
}

/// Bytes of scratch for a `[rows, cols]` matrix.
pub(super) fn scratch_bytes(rows: usize, cols: usize) -> u64 {
    8 * (rows * cols) as u64
}

/// The kernel for one scheme.
pub(super) struct Keep {
    pipeline: Arc<Pipeline>,
}

impl Keep {
    /// # Errors
    ///
    /// If the shader does not compile.
    pub(super) fn new(gpu: &Gpu, scheme: Scheme) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source(scheme))? })
    }

    /// Records the keeping of `share` of the update in every row of a matrix whose scales are grouped so.
    pub(super) fn record(
        &self,
        commands: &mut Commands,
        what: &Operands<'_>,
        [rows, cols]: [usize; 2],
        grouping: &Grouping,
        share: f32,
    ) {
        let params = KeepParams {
            cols: small(cols),
            row_len: small(grouping.row_len),
            group: small(grouping.group),
            per_row: small(grouping.per_row),
            share,
            nothing: 0,
            rows: small(rows),
        };
        let bindings = [
            ("weights", what.weights),
            ("targets", what.targets),
            ("scales", what.scales),
            ("target_scales", what.target_scales),
            ("target_codes", what.target_codes),
            ("codes", what.codes),
            ("moves", what.moves),
        ];
        // Some thirty looks at every move in each of a few rounds.
        let work = moving(100 * 8 * rows * cols);
        commands.dispatch(&self.pipeline, &params, &bindings, Grid::flat(rows), work);
    }
}

/// A target and an unlearned matrix: rows without an update, with a single changed weight, with changes everywhere, with
/// ties (equal changes of equal weights), zeros and tiny numbers.
fn awkward_pair(seed: u64, n: usize, k: usize) -> [Vec<f32>; 2] {
    let target = super::pack::awkward_weights(seed, n, k);
    let change = noise(seed + 1, n * k);
    let unlearned = target.iter().zip(change).enumerate().map(|(index, (&weight, change))| {
        let (row, column) = (index / k, index % k);
        weight
            + match row % 6 {
                0 => 0.0,
                1 if column == k / 2 => 0.3,
                1 => 0.0,
                2 => 0.05 * change,
                3 if column % 3 == 0 => 0.125,
                3 => 0.0,
                4 => 1e-3 * change,
                _ => 0.5 * change,
            }
    });
    let unlearned = unlearned.collect();
    [target, unlearned]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for scheme in Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()) {
        for (n, k, share) in [(9, 72, 0.9), (13, 264, 0.5), (7, 1000, 1.0), (6, 128, 0.0)] {
            cases.push(case(scheme, n, k, share, false));
        }
    }
    cases.push(case(Scheme::Int4 { group: 128 }, 256, 2048, 0.9, true));
    cases
}

fn case(scheme: Scheme, n: usize, k: usize, share: f32, timed: bool) -> Case {
    Case {
        name: format!("keep/{scheme} n={n} k={k} share={share}"),
        work: Work::Bytes((8 * n * k) as u64),
        timed,
        prepare: Box::new(move |gpu| prepare(gpu, scheme, n, k, share)),
    }
}

fn prepare(gpu: &Gpu, scheme: Scheme, n: usize, k: usize, share: f32) -> Result<Prepared> {
    let kernel = Keep::new(gpu, scheme)?;
    let [target, unlearned] = awkward_pair(11, n, k);
    let Some(grouping) = scheme.grouping(n, k) else { unreachable!("a quantizing scheme") };
    let of_target = quant::encode(scheme, &target, n, k);
    let weights = gpu.upload("weights", &unlearned)?;
    let targets = gpu.upload("targets", &target)?;
    let scales = unwritten(gpu, "scales", grouping.count * scheme.values_per_group())?;
    let target_scales = gpu.upload("target scales", &of_target.scales)?;
    let target_codes = gpu.upload("target codes", &of_target.words)?;
    let codes = unwritten(gpu, "codes", n * k / scheme.per_word())?;
    let moves = gpu.alloc("moves", scratch_bytes(n, k))?;
    let pack = PackKernels::new(gpu, scheme, Scheme::F32)?;
    let packed = Matrix::whole(scheme, [n, k], &codes, &scales);
    let want = move || {
        let kept = quant::keep(scheme, &target, &unlearned, n, k, share);
        kept.packed.words.into_iter().map(Want::Exactly).collect()
    };
    let outputs = vec![Output { name: "codes", buffer: codes.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| {
        // From the nearest codes each time.
        pack.record(commands, &weights, &packed, 0..n);
        let what = Operands {
            weights: &weights,
            targets: &targets,
            scales: &scales,
            target_scales: &target_scales,
            target_codes: &target_codes,
            codes: &codes,
            moves: &moves,
        };
        kernel.record(commands, &what, [n, k], &grouping, share);
    };
    Ok(Prepared { record: Box::new(record), outputs })
}
