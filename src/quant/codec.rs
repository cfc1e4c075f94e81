//! Encode and decode on the host.

use super::{Packed, Scheme};

/// Packs a row-major `[rows, cols]` matrix of finite weights.
///
/// # Panics
///
/// If `weights` is not `rows * cols` long or `cols` is not a multiple of 8: bugs in the caller.
#[must_use]
pub fn encode(_scheme: Scheme, _weights: &[f32], _rows: usize, _cols: usize) -> Packed {
    unimplemented!()
}

/// The weights that the codes stand for, row-major `[rows, cols]`.
#[must_use]
pub fn decode(_packed: &Packed) -> Vec<f32> {
    unimplemented!()
}
