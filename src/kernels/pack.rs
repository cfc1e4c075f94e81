//! Quantize and pack on the device. Host twin: [`crate::quant::encode`], bit for bit.

use std::sync::Arc;

use super::case::{noise, unwritten};
use super::link::{file, params, plain};
use super::split::moving;
use super::{Case, Kernel, Matrix, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Scheme};

const WG: u32 = 64;

/// A matrix is packed this many rows at a time or a multiple, so that every scheme's words and scales
/// start at a multiple of 256 bytes, as bindings must.
const ROW_BLOCK: usize = 512;

/// About as much of the stored matrix is on the device at one time.
const STAGING_BYTES: usize = 32 << 20;

params!(ScalesParams { groups: u32, row_len: u32, group: u32, per_row: u32 });
params!(CodesParams { words: u32, row_len: u32, group: u32, per_row: u32 });

pub(super) const SCALES: Kernel = Kernel {
    name: "pack_scales",
    sources: || pairs(scales_source),
    params: ScalesParams::layout,
    cases: Vec::new,
};
pub(super) const CODES: Kernel =
    Kernel { name: "pack_codes", sources: || pairs(codes_source), params: CodesParams::layout, cases };

const STORED: [Scheme; 3] = [Scheme::F32, Scheme::F16, Scheme::Bf16];

fn pairs(source: fn(Scheme, Scheme) -> Source) -> Vec<Source> {
    let quantizing = Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full());
    quantizing.flat_map(|scheme| STORED.map(|dtype| source(scheme, dtype))).collect()
}

/// Lanes that look at one group: more for longer groups.
fn group_lanes(scheme: Scheme) -> u32 {
    match scheme {
        Scheme::Int4 { group } | Scheme::Int4Asym { group } => group / 4,
        Scheme::Fp4B64 | Scheme::Nf4B64 => 16,
        _ => WG,
    }
}

fn scales_source(scheme: Scheme, dtype: Scheme) -> Source {
    let name = format!("pack_scales/{scheme} from {dtype}");
    let mut source =
        plain(name, file!("pack_scales.wgsl")).with_index().with_source(dtype).with_encoding(scheme);
    source.overrides.extend([("WG", f64::from(WG)), ("LANES", f64::from(group_lanes(scheme)))]);
    source
}

fn codes_source(scheme: Scheme, dtype: Scheme) -> Source {
    let name = format!("pack_codes/{scheme} from {dtype}");
    let mut source =
        plain(name, file!("pack_codes.wgsl")).with_index().with_source(dtype).with_encoding(scheme);
    source.overrides.extend([("WG", f64::from(WG)), ("PER_WORD", scheme.per_word() as f64)]);
    source
}

/// Packs matrices of one stored dtype into one scheme.
#[derive(Clone, Debug)]
pub struct Packer {
    scheme: Scheme,
    dtype: Scheme,
    /// Scales and codes; none in full precision, where the stored bytes are used as they are.
    kernels: Option<(Arc<Pipeline>, Arc<Pipeline>)>,
}

impl Packer {
    /// Compiles what `scheme` needs; a full-precision scheme must be the stored dtype.
    ///
    /// # Errors
    ///
    /// If a shader does not compile.
    pub fn new(gpu: &Gpu, scheme: Scheme, dtype: Scheme) -> Result<Self> {
        assert!(!scheme.is_full() || scheme == dtype, "{dtype} weights cannot be kept as {scheme}");
        let kernels = if scheme.is_full() {
            None
        } else {
            Some((gpu.pipeline(&scales_source(scheme, dtype))?, gpu.pipeline(&codes_source(scheme, dtype))?))
        };
        Ok(Self { scheme, dtype, kernels })
    }

    /// Uploads a stored `[n, k]` matrix and packs it; the stored bytes do not stay on the device.
    ///
    /// `what` names the matrix in errors. Submits; does not wait.
    ///
    /// # Errors
    ///
    /// If the device cannot hold the packed matrix.
    ///
    /// # Panics
    ///
    /// If `stored` has another size, or `k` is not a multiple of 8.
    pub fn pack(&self, gpu: &Gpu, what: &str, stored: &[u8], n: usize, k: usize) -> Result<Matrix> {
        let (scheme, dtype) = (self.scheme, self.dtype);
        let row_bytes = k / dtype.per_word() * 4;
        assert!(k.is_multiple_of(8) && stored.len() == n * row_bytes, "{what}: not a [{n}, {k}] of {dtype}");
        let Some((scales_kernel, codes_kernel)) = &self.kernels else {
            let weights = gpu.upload(what, stored)?;
            let scales = weights.clone();
            return Ok(Matrix { scheme, n, k, weights, scales });
        };
        let words = n * k / scheme.per_word();
        let weights = gpu.alloc(what, 4 * words as u64)?;
        let scale_count = |rows| scheme.grouping(rows, k).map_or(0, |g| g.count) * scheme.values_per_group();
        let scales = gpu.alloc(what, 4 * scale_count(n) as u64)?;

        let block = (STAGING_BYTES / row_bytes / ROW_BLOCK).max(1) * ROW_BLOCK;
        let staging = gpu.alloc("stored weights", (block.min(n) * row_bytes) as u64)?;
        for (index, part) in stored.chunks(block * row_bytes).enumerate() {
            let (first, rows) = (index * block, part.len() / row_bytes);
            gpu.write(&staging, part);
            let Some(grouping) = scheme.grouping(rows, k) else { continue };
            let part_words = rows * k / scheme.per_word();
            let weights = weights.slice((4 * first * k / scheme.per_word()) as u64, 4 * part_words as u64);
            let scales = scales.slice(4 * scale_count(first) as u64, 4 * scale_count(rows) as u64);
            let (row_len, group, per_row) =
                (small(grouping.row_len), small(grouping.group), small(grouping.per_row));
            let mut commands = Commands::new();
            commands.dispatch(
                scales_kernel,
                &ScalesParams { groups: small(grouping.count), row_len, group, per_row },
                &[("raw", &staging), ("scales", &scales)],
                Grid::flat(grouping.count.div_ceil((WG / group_lanes(scheme)) as usize)),
                moving(part.len()),
            );
            commands.dispatch(
                codes_kernel,
                &CodesParams { words: small(part_words), row_len, group, per_row },
                &[("raw", &staging), ("scales", &scales), ("codes", &weights)],
                Grid::flat(part_words.div_ceil(WG as usize)),
                moving(part.len() + 4 * part_words),
            );
            commands.submit(gpu)?;
        }
        Ok(Matrix { scheme, n, k, weights, scales })
    }
}

/// A dimension as the shaders take it. A matrix that a device can bind has less than 2^32 weights.
pub(super) fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The bytes of `weights` stored as `dtype`.
pub(super) fn stored(dtype: Scheme, weights: &[f32]) -> Vec<u8> {
    // Full-precision words are the stored bytes, two halves a word, low half first.
    bytemuck::cast_slice(&quant::encode(dtype, weights, 1, weights.len()).words).to_vec()
}

/// Weights that try the encoders: noise, a heavy tail, exact ties, a group of zeros, a tiny group,
/// subnormal halves.
pub(super) fn awkward_weights(seed: u64, n: usize, k: usize) -> Vec<f32> {
    let mut weights = noise(seed, n * k);
    for (index, weight) in weights.iter_mut().enumerate() {
        let (row, column) = (index / k, index % k);
        *weight *= match (row % 7, column / 32 % 3) {
            (1, _) if column % 41 == 0 => 30.0,
            (2, 1) => 0.0,
            (3, 0) => 3e-8,
            (4, _) => 1e-3,
            _ => 1.0,
        };
        if row % 7 == 5 {
            // Multiples of half a step: ties for the symmetric grids.
            *weight = (column as f32 % 16.0 - 7.5) * 0.5;
        }
    }
    weights
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for scheme in Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()) {
        for dtype in STORED {
            for (n, k) in [(1, 8), (9, 72), (17, 256), (5, 1000)] {
                cases.push(case(scheme, dtype, n, k, false));
            }
        }
        // More than one staging block, with a ragged last one.
        cases.push(case(scheme, Scheme::F32, 2 * ROW_BLOCK + 3, 32, false));
        cases.push(case(scheme, Scheme::F16, 512, 2048, true));
    }
    cases
}

fn case(scheme: Scheme, dtype: Scheme, n: usize, k: usize, timed: bool) -> Case {
    let packed_bytes = n * k * scheme.bits() as usize / 8;
    let stored_bytes = n * k * dtype.bits() as usize / 8;
    Case {
        name: format!("pack/{scheme} from {dtype} n={n} k={k}"),
        work: Work::Bytes((2 * stored_bytes + packed_bytes) as u64),
        timed,
        prepare: Box::new(move |gpu| prepare(gpu, scheme, dtype, n, k)),
    }
}

/// Unlike [`Packer::pack`] this does not upload in `record`: benches time the kernels.
fn prepare(gpu: &Gpu, scheme: Scheme, dtype: Scheme, n: usize, k: usize) -> Result<Prepared> {
    let bytes = stored(dtype, &awkward_weights(7, n, k));
    let packer = Packer::new(gpu, scheme, dtype)?;
    let Some((scales_kernel, codes_kernel)) = packer.kernels else { unreachable!("a quantizing scheme") };
    let Some(grouping) = scheme.grouping(n, k) else { unreachable!("a quantizing scheme") };
    let raw = gpu.upload("raw", &bytes)?;
    let work = moving(bytes.len());
    let words = n * k / scheme.per_word();
    let scales = unwritten(gpu, "scales", grouping.count * scheme.values_per_group())?;
    let codes = unwritten(gpu, "codes", words)?;
    let want = move |part: fn(&quant::Packed) -> Vec<u32>| {
        let bytes = bytes.clone();
        Box::new(move || {
            let seen = quant::decode(&quant::Packed {
                scheme: dtype,
                rows: n,
                cols: k,
                words: bytemuck::pod_collect_to_vec(&bytes),
                scales: vec![],
            });
            part(&quant::encode(scheme, &seen, n, k)).into_iter().map(Want::Exactly).collect()
        }) as Box<dyn Fn() -> Vec<Want>>
    };
    let outputs = vec![
        output("scales", &scales, want(|packed| packed.scales.iter().map(|s| s.to_bits()).collect())),
        output("codes", &codes, want(|packed| packed.words.clone())),
    ];
    let (row_len, group, per_row) = (small(grouping.row_len), small(grouping.group), small(grouping.per_row));
    let scale_params = ScalesParams { groups: small(grouping.count), row_len, group, per_row };
    let code_params = CodesParams { words: small(words), row_len, group, per_row };
    let scale_grid = Grid::flat(grouping.count.div_ceil((WG / group_lanes(scheme)) as usize));
    let record = move |commands: &mut Commands| {
        commands.dispatch(
            &scales_kernel,
            &scale_params,
            &[("raw", &raw), ("scales", &scales)],
            scale_grid,
            1,
        );
        commands.dispatch(
            &codes_kernel,
            &code_params,
            &[("raw", &raw), ("scales", &scales), ("codes", &codes)],
            Grid::flat(words.div_ceil(WG as usize)),
            work,
        );
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

fn output(name: &'static str, buffer: &Buffer, want: Box<dyn Fn() -> Vec<Want>>) -> Output {
    Output { name, buffer: buffer.clone(), want }
}
