//! Quantize and pack on the device. Host twin: [`crate::quant::encode`], bit for bit.

use std::ops::Range;
use std::sync::Arc;

use super::case::{noise, unwritten};
use super::link::{file, params, plain};
use super::split::moving;
use super::{Case, Kernel, Matrix, Output, Part, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Scheme};

const WG: u32 = 64;

/// A matrix is packed this many rows at a time or a multiple, so that every scheme's words and scales
/// start at a multiple of 256 bytes, as bindings must.
const ROW_BLOCK: usize = 512;

/// About as much of the stored matrix is uploaded at one time.
const STAGING_BYTES: usize = 8 << 20;

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

/// Dtypes that a checkpoint stores.
pub(super) const STORED: [Scheme; 3] = [Scheme::F32, Scheme::F16, Scheme::Bf16];

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

/// A matrix as a checkpoint stores it.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// [`Scheme::F32`], [`Scheme::F16`] or [`Scheme::Bf16`].
    pub dtype: Scheme,
    /// `[n, k]` values, row-major, little-endian.
    pub bytes: &'a [u8],
    /// Rows.
    pub n: usize,
    /// Columns, a multiple of 8.
    pub k: usize,
}

/// Uploads stored matrices once and packs them into one or more schemes.
///
/// Holds the memory through which stored rows pass that no full-precision matrix keeps on the device.
#[derive(Debug, Default)]
pub struct Packer {
    pub(super) staging: Option<Buffer>,
    pub(super) rounding: Option<super::round::Staging>,
    pub(super) always_on_device: bool,
}

impl Packer {
    /// As [`Self::pack`], for one scheme.
    ///
    /// # Errors
    ///
    /// As [`Self::pack`].
    pub fn pack_one(&mut self, gpu: &Gpu, scheme: Scheme, stored: Stored<'_>) -> Result<Matrix> {
        let mut matrices = self.pack(gpu, &[scheme], stored)?;
        let Some(matrix) = matrices.pop() else { unreachable!("one scheme gives one matrix") };
        Ok(matrix)
    }

    /// Uploads `stored` once and packs it into each of `schemes`; a full-precision scheme must be the stored dtype.
    ///
    /// Submits; does not wait. At most [`Self::staging_bytes`] of stored rows are on the device besides the result.
    ///
    /// # Errors
    ///
    /// If a shader does not compile or the device cannot hold the packed matrices.
    ///
    /// # Panics
    ///
    /// If `stored.bytes` has another size, `k` is not a multiple of 8, or `schemes` names another full precision.
    pub fn pack(&mut self, gpu: &Gpu, schemes: &[Scheme], stored: Stored<'_>) -> Result<Vec<Matrix>> {
        let Stored { name, n, k, .. } = stored;
        let matrices: Vec<_> =
            schemes.iter().map(|scheme| Self::allocate(gpu, name, *scheme, n, k)).collect::<Result<_>>()?;
        self.pack_into(gpu, &matrices, stored)?;
        Ok(matrices)
    }

    /// A matrix in `scheme` whose weights are not there yet.
    ///
    /// # Errors
    ///
    /// If the device cannot hold it.
    pub fn allocate(gpu: &Gpu, name: &str, scheme: Scheme, n: usize, k: usize) -> Result<Matrix> {
        allocate(gpu, name, scheme, n, k)
    }

    /// As [`Self::pack`], into matrices that are allocated.
    ///
    /// # Errors
    ///
    /// As [`Self::pack`].
    ///
    /// # Panics
    ///
    /// As [`Self::pack`].
    pub fn pack_into(&mut self, gpu: &Gpu, matrices: &[Matrix], stored: Stored<'_>) -> Result<()> {
        let Stored { name, dtype, bytes, n, k } = stored;
        let row_bytes = row_bytes(dtype, k);
        assert!(k.is_multiple_of(8) && bytes.len() == n * row_bytes, "{name}: not a [{n}, {k}] of {dtype}");
        let full = matrices.iter().find(|matrix| matrix.scheme.is_full());
        let quantized = matrices.iter().filter(|matrix| !matrix.scheme.is_full());
        let kernels = quantized.map(|matrix| PackKernels::new(gpu, matrix.scheme, dtype));
        let kernels = kernels.collect::<Result<Vec<_>>>()?;

        let block = block_rows(row_bytes);
        if full.is_none() {
            self.reserve(gpu, (block.min(n) * row_bytes) as u64)?;
        }
        for first in (0..n).step_by(block) {
            let rows = first..n.min(first + block);
            let part = &bytes[rows.start * row_bytes..rows.end * row_bytes];
            // Blocks of rows never straddle the parts of a matrix: both are multiples of ROW_BLOCK.
            let raw = match (full, &self.staging) {
                (Some(matrix), _) => {
                    assert!(matrix.scheme == dtype, "{name}: {dtype} weights kept as {}", matrix.scheme);
                    rows_of(matrix, rows.clone(), |part| &part.weights, row_bytes)
                }
                (None, Some(staging)) => staging.slice(0, part.len() as u64),
                (None, None) => unreachable!("memory was reserved"),
            };
            gpu.write(&raw, part);
            let quantized = matrices.iter().filter(|matrix| !matrix.scheme.is_full());
            let mut commands = Commands::new();
            for (matrix, kernels) in quantized.zip(&kernels) {
                kernels.record(&mut commands, &raw, matrix, rows.clone());
            }
            commands.submit(gpu)?;
        }
        Ok(())
    }

    /// Bytes of a stored matrix that pass through the packer's own memory at a time, where no full-precision
    /// matrix keeps them.
    #[must_use]
    pub fn staging_bytes(dtype: Scheme, n: usize, k: usize) -> u64 {
        let row_bytes = row_bytes(dtype, k);
        (block_rows(row_bytes).min(n) * row_bytes) as u64
    }

    fn reserve(&mut self, gpu: &Gpu, bytes: u64) -> Result<()> {
        if self.staging.as_ref().is_none_or(|staging| staging.bytes() < bytes) {
            self.staging = None;
            self.staging = Some(gpu.alloc("stored weights", bytes)?);
        }
        Ok(())
    }
}

/// Bytes of a row of `k` stored values.
fn row_bytes(dtype: Scheme, k: usize) -> usize {
    k / dtype.per_word() * 4
}

/// Rows that are uploaded at a time.
fn block_rows(row_bytes: usize) -> usize {
    (STAGING_BYTES / row_bytes / ROW_BLOCK).max(1) * ROW_BLOCK
}

/// Numbers of scales (and zero points) of `rows` rows.
pub(super) fn scale_count(scheme: Scheme, rows: usize, k: usize) -> usize {
    scheme.grouping(rows, k).map_or(0, |grouping| grouping.count) * scheme.values_per_group()
}

/// An unwritten matrix, cut into parts that the device can bind.
fn allocate(gpu: &Gpu, name: &str, scheme: Scheme, n: usize, k: usize) -> Result<Matrix> {
    let row_bytes = row_bytes(scheme, k);
    let most = usize::try_from(gpu.max_binding_bytes()).unwrap_or(usize::MAX) / row_bytes;
    // Whole upload blocks where more than one fits, so that a block lies in one part.
    let unit = if scheme.is_full() { block_rows(row_bytes) } else { ROW_BLOCK };
    let rows = if most >= n { n.max(1) } else { (most / unit).max(1) * unit };
    let parts = (0..n).step_by(rows).map(|first| {
        let rows = first..n.min(first + rows);
        let weights = gpu.alloc(name, (rows.len() * row_bytes) as u64)?;
        let scales = match scale_count(scheme, rows.len(), k) {
            0 => weights.clone(),
            count => gpu.alloc(name, 4 * count as u64)?,
        };
        Ok(Part { rows, weights, scales })
    });
    Ok(Matrix { scheme, n, k, parts: parts.collect::<Result<_>>()? })
}

/// Where `rows`, which lie in one part, are in one of its buffers.
fn rows_of(
    matrix: &Matrix,
    rows: Range<usize>,
    buffer: impl Fn(&Part) -> &Buffer,
    row_bytes: usize,
) -> Buffer {
    let Some(part) = matrix.parts.iter().find(|part| part.rows.contains(&rows.start)) else {
        unreachable!("row {} of {}", rows.start, matrix.n)
    };
    let first = rows.start - part.rows.start;
    buffer(part).slice((first * row_bytes) as u64, (rows.len() * row_bytes) as u64)
}

/// Packing from one dtype into one scheme.
pub(super) struct PackKernels {
    scales: Arc<Pipeline>,
    codes: Arc<Pipeline>,
}

impl PackKernels {
    /// # Errors
    ///
    /// If a shader does not compile.
    pub(super) fn new(gpu: &Gpu, scheme: Scheme, dtype: Scheme) -> Result<Self> {
        let scales = gpu.pipeline(&scales_source(scheme, dtype))?;
        Ok(Self { scales, codes: gpu.pipeline(&codes_source(scheme, dtype))? })
    }

    /// Records the packing of `rows`, whose stored values are `raw`.
    pub(super) fn record(&self, commands: &mut Commands, raw: &Buffer, matrix: &Matrix, rows: Range<usize>) {
        let (scheme, k) = (matrix.scheme, matrix.k);
        let row_words = k / scheme.per_word();
        // A part may end inside a block that was uploaded at once.
        for (part, own, first) in matrix.parts_of(rows.clone()) {
            let Some(grouping) = scheme.grouping(own.len(), k) else { continue };
            let words = own.len() * row_words;
            let codes = part.weights.slice((4 * own.start * row_words) as u64, 4 * words as u64);
            let scales = part.scales.slice(
                4 * scale_count(scheme, own.start, k) as u64,
                4 * scale_count(scheme, own.len(), k) as u64,
            );
            let raw_row = raw.bytes() / rows.len() as u64;
            let raw = raw.slice(first as u64 * raw_row, own.len() as u64 * raw_row);
            let (row_len, group, per_row) =
                (small(grouping.row_len), small(grouping.group), small(grouping.per_row));
            commands.dispatch(
                &self.scales,
                &ScalesParams { groups: small(grouping.count), row_len, group, per_row },
                &[("raw", &raw), ("scales", &scales)],
                Grid::flat(grouping.count.div_ceil((WG / group_lanes(scheme)) as usize)),
                moving(usize::try_from(raw.bytes()).unwrap_or(usize::MAX)),
            );
            commands.dispatch(
                &self.codes,
                &CodesParams { words: small(words), row_len, group, per_row },
                &[("raw", &raw), ("scales", &scales), ("codes", &codes)],
                Grid::flat(words.div_ceil(WG as usize)),
                moving(usize::try_from(raw.bytes()).unwrap_or(usize::MAX).saturating_add(4 * words)),
            );
        }
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
    let kernels = PackKernels::new(gpu, scheme, dtype)?;
    let Some(grouping) = scheme.grouping(n, k) else { unreachable!("a quantizing scheme") };
    let raw = gpu.upload("raw", &bytes)?;
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
    let matrix = Matrix::whole(scheme, [n, k], &codes, &scales);
    let record = move |commands: &mut Commands| kernels.record(commands, &raw, &matrix, 0..n);
    Ok(Prepared { record: Box::new(record), outputs })
}

fn output(name: &'static str, buffer: &Buffer, want: Box<dyn Fn() -> Vec<Want>>) -> Output {
    Output { name, buffer: buffer.clone(), want }
}
