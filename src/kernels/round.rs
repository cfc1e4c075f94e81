//! Matrices in roundings other than the nearest: kept rounding on the device, the others on the host.

use std::ops::Range;

use super::keep::{Keep, Operands, scratch_bytes};
use super::pack::{PackKernels, Packer, Stored, scale_count};
use super::{Matrix, Part};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::quant::{self, Packed, Rounding, Rows, Scheme, round};

/// About as many weights are rounded at a time.
const BLOCK: usize = 1 << 20;

/// Rows come in multiples of the first of these at which a matrix can be cut.
const ROWS: [usize; 2] = [64, 512];

/// Memory on the device through which rows pass.
#[derive(Debug)]
pub(super) struct Staging {
    scheme: Scheme,
    weights: usize,
    unlearned: Buffer,
    target: Buffer,
    target_codes: Buffer,
    target_scales: Buffer,
    moves: Buffer,
}

impl Staging {
    /// For `weights` weights, in at most as many rows as groups allow.
    fn new(gpu: &Gpu, scheme: Scheme, [rows, cols]: [usize; 2]) -> Result<Self> {
        let weights = rows * cols;
        let scales = 4 * scale_count(scheme, rows, cols) as u64;
        Ok(Self {
            scheme,
            weights,
            unlearned: gpu.alloc("unlearned weights", 4 * weights as u64)?,
            target: gpu.alloc("target weights", 4 * weights as u64)?,
            target_codes: gpu.alloc("target codes", (4 * weights / scheme.per_word()) as u64)?,
            target_scales: gpu.alloc("target scales", scales)?,
            moves: gpu.alloc("moves", scratch_bytes(rows, cols))?,
        })
    }

    /// Whether rows like these fit.
    fn holds(&self, scheme: Scheme, [rows, cols]: [usize; 2]) -> bool {
        let scales = 4 * scale_count(scheme, rows, cols) as u64;
        self.scheme == scheme && rows * cols <= self.weights && scales <= self.target_scales.bytes()
    }
}

/// Rows that are rounded at a time.
fn block_rows(scheme: Scheme, cols: usize) -> usize {
    let [few, many] = ROWS;
    let unit = if Matrix::is_cut_at(scheme, few, cols) { few } else { many };
    unit * (BLOCK / (unit * cols)).max(1)
}

impl Packer {
    /// Bytes of device memory through which a `[n, k]` matrix passes in a rounding that is not the nearest.
    #[must_use]
    pub fn rounding_bytes(scheme: Scheme, rounding: Rounding, n: usize, k: usize) -> u64 {
        let rows = block_rows(scheme, k).min(n);
        match rounding {
            Rounding::Kept(_) => {
                8 * (rows * k) as u64 + Matrix::bytes_of(scheme, rows, k) + scratch_bytes(rows, k)
            }
            Rounding::Nearest | Rounding::Aligned | Rounding::Stochastic(_) => 0,
        }
    }

    /// One that rounds on the device even where that is the host in disguise.
    #[must_use]
    pub fn always_on_device() -> Self {
        Self { always_on_device: true, ..Self::default() }
    }

    /// Packs `stored` into an allocated matrix in any rounding; its update leads from `target`, of the same shape.
    /// `first_row` says which row of its tensor the first one is.
    ///
    /// Kept rounding is computed on the device, unless that is the host in disguise; the codes are the same.
    ///
    /// # Errors
    ///
    /// If a shader does not compile or the device cannot hold [`Self::rounding_bytes`].
    ///
    /// # Panics
    ///
    /// If bytes are not those of a matrix of this shape or the matrix is in full precision.
    pub fn round_into(
        &mut self,
        gpu: &Gpu,
        matrix: &Matrix,
        rounding: Rounding,
        stored: Stored<'_>,
        target: Option<Stored<'_>>,
        first_row: usize,
    ) -> Result<()> {
        let on_device = self.always_on_device || !gpu.info().is_software();
        for part in &matrix.parts {
            let step = block_rows(matrix.scheme, matrix.k);
            for first in part.rows.clone().step_by(step) {
                let rows = first..part.rows.end.min(first + step);
                let weights = widened(&stored, rows.clone());
                let target = target.map(|target| widened(&target, rows.clone()));
                let own = first - part.rows.start;
                if let (Rounding::Kept(share), Some(target), true) = (rounding, &target, on_device) {
                    self.keep(
                        gpu,
                        matrix.scheme,
                        part,
                        own..own + rows.len(),
                        &weights,
                        target,
                        share.get(),
                    )?;
                    continue;
                }
                let what = Rows {
                    weights: &weights,
                    target: target.as_deref(),
                    rows: rows.len(),
                    cols: matrix.k,
                    tensor: stored.name,
                    first: ((first_row + rows.start) * matrix.k) as u64,
                };
                write(gpu, part, own, &round(matrix.scheme, rounding, what).packed);
            }
        }
        Ok(())
    }

    /// Kept rounding of some rows of a part, which are those of the part's range `own`, on the device.
    #[expect(clippy::too_many_arguments, reason = "what and where, for one caller")]
    fn keep(
        &mut self,
        gpu: &Gpu,
        scheme: Scheme,
        part: &Part,
        own: Range<usize>,
        unlearned: &[f32],
        target: &[f32],
        share: f32,
    ) -> Result<()> {
        let (n, k) = (own.len(), unlearned.len() / own.len().max(1));
        let Some(grouping) = scheme.grouping(n, k) else { unreachable!("{scheme} has codes") };
        if self.rounding.as_ref().is_none_or(|staging| !staging.holds(scheme, [n, k])) {
            self.rounding = None;
            self.rounding = Some(Staging::new(gpu, scheme, [n, k])?);
        }
        let Some(staging) = &self.rounding else { unreachable!("memory was reserved") };
        let bytes = |count: usize| 4 * count as u64;
        let cut = |buffer: &Buffer, count: usize| buffer.slice(0, bytes(count));
        let scales = scale_count(scheme, n, k);
        let words = n * k / scheme.per_word();
        let codes = part.weights.slice(bytes(own.start * k / scheme.per_word()), bytes(words));
        let own_scales = part.scales.slice(bytes(scale_count(scheme, own.start, k)), bytes(scales));
        let (weights, targets) = (cut(&staging.unlearned, n * k), cut(&staging.target, n * k));
        let (target_codes, target_scales) =
            (cut(&staging.target_codes, words), cut(&staging.target_scales, scales));
        gpu.write(&weights, bytemuck::cast_slice::<f32, u8>(unlearned));
        gpu.write(&targets, bytemuck::cast_slice::<f32, u8>(target));

        let pack = PackKernels::new(gpu, scheme, Scheme::F32)?;
        let mut commands = Commands::new();
        let of_u = Matrix::whole(scheme, [n, k], &codes, &own_scales);
        let of_t = Matrix::whole(scheme, [n, k], &target_codes, &target_scales);
        pack.record(&mut commands, &weights, &of_u, 0..n);
        pack.record(&mut commands, &targets, &of_t, 0..n);
        let what = Operands {
            weights: &weights,
            targets: &targets,
            scales: &own_scales,
            target_scales: &target_scales,
            target_codes: &target_codes,
            codes: &codes,
            moves: &staging.moves.slice(0, scratch_bytes(n, k)),
        };
        Keep::new(gpu, scheme)?.record(&mut commands, &what, [n, k], &grouping, share);
        commands.submit(gpu)
    }
}

/// Rows of a stored matrix in f32.
fn widened(stored: &Stored<'_>, rows: Range<usize>) -> Vec<f32> {
    let row_bytes = stored.bytes.len() / stored.n.max(1);
    let bytes = &stored.bytes[rows.start * row_bytes..rows.end * row_bytes];
    quant::decode(&Packed {
        scheme: stored.dtype,
        rows: rows.len(),
        cols: stored.k,
        words: bytemuck::pod_collect_to_vec(bytes),
        scales: Vec::new(),
    })
}

/// Uploads rows of a part, from its row `first` on.
fn write(gpu: &Gpu, part: &Part, first: usize, packed: &Packed) {
    let Packed { scheme, cols, .. } = *packed;
    let place = |bytes: usize, length: usize| (bytes as u64, length as u64);
    let (start, length) = place(first * cols / scheme.per_word() * 4, packed.words.len() * 4);
    gpu.write(&part.weights.slice(start, length), bytemuck::cast_slice::<u32, u8>(&packed.words));
    let (start, length) = place(4 * scale_count(scheme, first, cols), packed.scales.len() * 4);
    gpu.write(&part.scales.slice(start, length), bytemuck::cast_slice::<f32, u8>(&packed.scales));
}
