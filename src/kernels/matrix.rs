//! A weight matrix on the device.

use crate::gpu::Buffer;
use crate::quant::Scheme;

/// A `[n, k]` weight matrix in one scheme, laid out as [`crate::quant::Packed`] says.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// How to read it.
    pub scheme: Scheme,
    /// Rows: outputs.
    pub n: usize,
    /// Columns: inputs; a multiple of 8.
    pub k: usize,
    /// Codes, or the weights as stored.
    pub weights: Buffer,
    /// Scales and zero points; a few unused bytes of `weights` in full precision.
    pub scales: Buffer,
}

impl Matrix {
    /// Rows `first..first + count` of the matrix can be used on their own by giving this to a kernel's
    /// `first_row`; this is how many bytes one row takes, without scales.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.k / self.scheme.per_word() * 4
    }
}
