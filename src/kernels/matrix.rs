//! A weight matrix on the device.

use std::ops::Range;

use crate::gpu::Buffer;
use crate::quant::Scheme;

/// A `[n, k]` weight matrix in one scheme, laid out as [`crate::quant::Packed`] says, in parts that a device can
/// bind. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// How to read it.
    pub scheme: Scheme,
    /// Rows: outputs.
    pub n: usize,
    /// Columns: inputs; a multiple of 8.
    pub k: usize,
    /// Its rows, in order.
    pub parts: Vec<Part>,
}

/// Whole rows of a [`Matrix`], small enough for one binding.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which rows.
    pub rows: Range<usize>,
    /// Codes, or the weights as stored.
    pub weights: Buffer,
    /// Scales and zero points; `weights` again in full precision.
    pub scales: Buffer,
}

impl Matrix {
    /// Bytes that one row takes, without scales.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.k / self.scheme.per_word() * 4
    }

    /// Bytes of device memory that a `[n, k]` matrix in `scheme` takes, with scales.
    #[must_use]
    pub fn bytes_of(scheme: Scheme, n: usize, k: usize) -> u64 {
        let scales = scheme.grouping(n, k).map_or(0, |grouping| grouping.count * scheme.values_per_group());
        (4 * (n * k / scheme.per_word() + scales)) as u64
    }

    /// The parts that hold `rows`: each with the range of its own rows to use and the first of them in `rows`.
    pub(super) fn parts_of(&self, rows: Range<usize>) -> impl Iterator<Item = (&Part, Range<usize>, usize)> {
        self.parts.iter().filter_map(move |part| {
            let first = rows.start.max(part.rows.start);
            let end = rows.end.min(part.rows.end);
            let own = first.checked_sub(part.rows.start)?..end.checked_sub(part.rows.start)?;
            (first < end).then_some((part, own, first - rows.start))
        })
    }
}
