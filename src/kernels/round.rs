//! Matrices in roundings other than the nearest: chosen on the host, by the codec itself.

use super::pack::{Packer, Stored, scale_count};
use super::{Matrix, Part};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::quant::{self, Packed, Rounding, Rows, round};

/// About as many weights are rounded at a time.
const BLOCK: usize = 1 << 22;

/// Rows come in multiples of this: no block of a table scheme is cut, as columns are multiples of 8.
const ROWS: usize = 8;

impl Packer {
    /// Packs `stored` into an allocated matrix in any rounding; its update leads from `target`, of the same shape.
    /// `first_row` says which row of its tensor the first one is.
    ///
    /// # Errors
    ///
    /// If the device fails.
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
        let Stored { name, k, .. } = stored;
        for part in &matrix.parts {
            let step = ROWS * (BLOCK / (ROWS * k)).max(1);
            for first in part.rows.clone().step_by(step) {
                let rows = first..part.rows.end.min(first + step);
                let weights = widened(&stored, rows.clone());
                let target = target.map(|target| widened(&target, rows.clone()));
                let what = Rows {
                    weights: &weights,
                    target: target.as_deref(),
                    rows: rows.len(),
                    cols: k,
                    tensor: name,
                    first: ((first_row + rows.start) * k) as u64,
                };
                write(gpu, part, first - part.rows.start, &round(matrix.scheme, rounding, what).packed);
            }
        }
        Ok(())
    }
}

/// Rows of a stored matrix in f32.
fn widened(stored: &Stored<'_>, rows: std::ops::Range<usize>) -> Vec<f32> {
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
