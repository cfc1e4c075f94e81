//! What the blocks are made of: which tensors, in which order, and what becomes of them.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, Config};
use crate::error::Result;
use crate::kernels::{FOLD_CHUNK, Finish, Matrix, Packer};
use crate::model::weights::{FINAL_NORM, Linear, Norm, head_name};
use crate::quant::{Precision, Rounding, Scheme};

/// What a tensor is to its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A vector, uploaded in f32.
    Vector,
    /// A matrix, packed; `launched` rows are multiplied at a time, its own or with those of matrices beside it.
    Matrix { finish: Finish, launched: usize },
}

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Packing {
    pub(super) scheme: Scheme,
    /// Nearest in full precision.
    pub(super) rounding: Rounding,
    /// The checkpoint from which the update leads, if the rounding asks for it.
    pub(super) target: Option<usize>,
}

/// A tensor of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    /// Of the whole tensor.
    pub(super) shape: Vec<usize>,
    /// Rows that this block takes.
    pub(super) rows: Range<usize>,
    pub(super) role: Role,
}

/// A block to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Attention(usize),
    FeedForward(usize),
    /// Rows of the head.
    Head(Range<usize>),
}

/// All blocks in the order of a pass: two for each layer, then the head, `head_rows` rows at a time.
pub(super) fn kinds(config: &Config, head_rows: usize) -> Vec<Kind> {
    let layers = (0..config.layers).flat_map(|layer| [Kind::Attention(layer), Kind::FeedForward(layer)]);
    let head = (0..config.vocab_size)
        .step_by(head_rows.max(1))
        .map(|first| Kind::Head(first..config.vocab_size.min(first + head_rows.max(1))));
    layers.chain(head).collect()
}

impl Kind {
    /// Its tensors in one checkpoint, norm first; an absent bias is left out.
    ///
    /// # Errors
    ///
    /// [`crate::Error::TensorMissing`] if there is no head.
    pub(super) fn parts(&self, checkpoint: &Checkpoint) -> Result<Vec<Part>> {
        let config = checkpoint.config();
        let vector = |name: String, n: usize| Part { name, shape: vec![n], rows: 0..n, role: Role::Vector };
        let mut parts = Vec::new();
        match self {
            Self::Attention(layer) | Self::FeedForward(layer) => {
                let (norm, linears): (_, &[Linear]) = match self {
                    Self::Attention(_) => (Norm::Attention, &Linear::ALL[..4]),
                    _ => (Norm::FeedForward, &Linear::ALL[4..]),
                };
                parts.push(vector(norm.name(*layer), config.hidden_size));
                // What reads the same rows of x is launched together, if it can be.
                let [.., last] = linears else { unreachable!("a block has matrices") };
                let together = linears.iter().filter(|linear| *linear != last);
                let together: usize = together.map(|linear| linear.shape(config)[0]).sum();
                for linear in linears {
                    let [n, k] = linear.shape(config);
                    let bias = linear.has_bias(checkpoint, *layer);
                    let finish = Finish { bias, add: linear == last, gated: false };
                    let launched = if linear == last { n } else { together };
                    let role = Role::Matrix { finish, launched };
                    parts.push(Part { name: linear.name(*layer), shape: vec![n, k], rows: 0..n, role });
                    if bias {
                        parts.push(vector(linear.bias_name(*layer), n));
                    }
                }
            }
            Self::Head(rows) => {
                let (v, d) = (config.vocab_size, config.hidden_size);
                let launched = v.min(FOLD_CHUNK);
                let role = Role::Matrix { finish: Finish::default(), launched };
                parts.push(vector(FINAL_NORM.to_owned(), d));
                let name = head_name(checkpoint)?.to_owned();
                parts.push(Part { name, shape: vec![v, d], rows: rows.clone(), role });
            }
        }
        Ok(parts)
    }

    /// The matrices that multiply the same rows: all but the last.
    ///
    /// # Errors
    ///
    /// As [`Self::parts`].
    pub(super) fn together(&self, checkpoint: &Checkpoint) -> Result<Vec<Part>> {
        let mut parts = self.parts(checkpoint)?;
        parts.retain(|part| matches!(part.role, Role::Matrix { .. }));
        parts.pop();
        Ok(parts)
    }

    /// Whether its matrices are quantized.
    pub(super) fn scheme(&self, stored: Scheme, precision: Precision, quantize_head: bool) -> Scheme {
        match self {
            Self::Head(_) if !quantize_head => stored,
            _ => precision.scheme(stored),
        }
    }

    /// Bytes on the device of this block for arms at `precisions` of one checkpoint, and the bytes read for it; the
    /// memory through which stored weights pass is counted where no arm keeps them.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or its dtype is not supported.
    pub(super) fn bytes(
        &self,
        checkpoint: &Checkpoint,
        precisions: &[Precision],
        quantize_head: bool,
    ) -> Result<BlockBytes> {
        let mut bytes = BlockBytes::default();
        for part in self.parts(checkpoint)? {
            let (stored, _) = checkpoint.tensors().describe(&part.name)?;
            let k: usize = part.shape.iter().skip(1).product();
            let (n, width) = (part.rows.len(), stored.bits() as usize / 8);
            bytes.read += (n * k * width) as u64;
            match part.role {
                Role::Vector => {
                    bytes.device += 4 * n.next_multiple_of(4) as u64;
                    bytes.uploaded += 4 * n as u64;
                }
                Role::Matrix { .. } => {
                    bytes.uploaded += (n * k * width) as u64;
                    let packing = |precision: &Precision| {
                        let scheme = self.scheme(stored, *precision, quantize_head);
                        (scheme, if scheme.is_full() { Rounding::Nearest } else { precision.rounding() })
                    };
                    let mut packings: Vec<_> = precisions.iter().map(packing).collect();
                    packings.sort_unstable();
                    packings.dedup();
                    let sizes = packings.iter().map(|(scheme, _)| Matrix::bytes_of(*scheme, n, k));
                    bytes.device += sizes.sum::<u64>();
                    let mut staging = 0;
                    if !packings.iter().any(|(scheme, _)| scheme.is_full()) {
                        staging = Packer::staging_bytes(stored, n, k);
                    }
                    let rounding =
                        |(scheme, rounding): &(_, _)| Packer::rounding_bytes(*scheme, *rounding, n, k);
                    staging += packings.iter().map(rounding).max().unwrap_or(0);
                    bytes.staging = bytes.staging.max(staging);
                }
            }
        }
        Ok(bytes)
    }
}

/// What a block takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockBytes {
    /// On the device, packed.
    pub(crate) device: u64,
    /// Through which stored weights pass on their way, at a time.
    pub(crate) staging: u64,
    /// Read from the checkpoint.
    pub(crate) read: u64,
    /// Uploaded.
    pub(crate) uploaded: u64,
}
