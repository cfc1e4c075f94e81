//! Weights by positioned reads.

use std::path::Path;

use crate::error::Result;
use crate::quant::Scheme;

/// One tensor as stored, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// [`Scheme::F32`], [`Scheme::F16`] or [`Scheme::Bf16`].
    pub dtype: Scheme,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// The values, widened exactly.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        unimplemented!()
    }
}

/// The tensors of a checkpoint's safetensors files, sharded or not.
#[derive(Debug)]
pub struct Tensors {}

impl Tensors {
    /// Reads the headers of all weight files.
    ///
    /// # Errors
    ///
    /// If a file is missing, truncated, a git-LFS pointer, or otherwise broken.
    pub fn open(_checkpoint: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn contains(&self, _name: &str) -> bool {
        unimplemented!()
    }

    /// Reads one tensor, checks its shape and that every value is finite.
    ///
    /// # Errors
    ///
    /// If it is missing, has another shape, or holds NaN or infinity.
    pub fn read(&self, _name: &str, _shape: &[usize]) -> Result<Tensor> {
        unimplemented!()
    }

    /// Bytes read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        unimplemented!()
    }
}
