//! Weights by positioned reads.
//!
//! Files are never mapped: a mapped file that shrinks or sits on a failing network share kills the process with a
//! signal, and on Windows the mappings of a large sharded checkpoint exhaust the commit limit.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use safetensors::Dtype;

use super::index;
use super::packed::{self, PackedMatrix};
use super::shard::Shard;
use crate::error::{Error, Result};
use crate::quant::Scheme;

/// Bytes that one thread scans for NaN at a time; a multiple of every value's size.
const SCAN_BYTES: usize = 1 << 20;

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
        widen(self.dtype, &self.bytes)
    }

    /// Flat index and value of the first NaN or infinity.
    fn first_not_finite(&self) -> Option<(usize, f32)> {
        // By the exponent's bits, not by comparing floats: all ones means NaN or infinity.
        let half = |mask: u16| move |value: [u8; 2]| u16::from_le_bytes(value) & mask == mask;
        let index = match self.dtype {
            Scheme::F16 => first(&self.bytes, half(0x7c00)),
            Scheme::Bf16 => first(&self.bytes, half(0x7f80)),
            _ => first(&self.bytes, |value| u32::from_le_bytes(value) & 0x7f80_0000 == 0x7f80_0000),
        }?;
        let width = (self.dtype.bits() / 8) as usize;
        let value = self.bytes.get(index * width..(index + 1) * width)?;
        Some((index, widen(self.dtype, value).first().copied()?))
    }
}

/// Index of the first value that is `bad`.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    bytes.par_chunks(SCAN_BYTES).enumerate().find_map_first(|(chunk, bytes)| {
        let values = bytes.as_chunks::<N>().0;
        // Looking at every value compiles to vector code, stopping at the first does not; bad ones are rare.
        if !values.iter().fold(false, |any, value| any | bad(*value)) {
            return None;
        }
        Some(chunk * (SCAN_BYTES / N) + values.iter().position(|value| bad(*value))?)
    })
}

pub(super) fn widen(dtype: Scheme, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter().map(|value| u16::from_le_bytes(*value));
    match dtype {
        Scheme::F16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        Scheme::Bf16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect(),
    }
}

/// The tensors of a checkpoint's safetensors files, sharded or not.
#[derive(Debug)]
pub struct Tensors {
    checkpoint: PathBuf,
    shards: Vec<Shard>,
    /// Tensor to index in `shards`.
    places: HashMap<String, usize>,
    /// Matrices that are not stored as tensors of their own.
    packed: HashMap<String, PackedMatrix>,
    bytes_read: AtomicU64,
}

impl Tensors {
    /// Reads the headers of all weight files.
    ///
    /// `model.safetensors` is used if it is there, else the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// If a file is missing, truncated, a git-LFS pointer, or otherwise broken.
    pub fn open(checkpoint: &Path) -> Result<Self> {
        let (shards, mut places) = match index::files(checkpoint)? {
            index::Files::Single(path) => {
                let shard = Shard::open(path)?;
                let places = shard.names().map(|name| (name.clone(), 0)).collect();
                (vec![shard], places)
            }
            index::Files::Sharded { index, files, places } => {
                let shards: Vec<_> = files.into_iter().map(Shard::open).collect::<Result<_>>()?;
                for (name, &place) in &places {
                    let shard = &shards[place];
                    if shard.info(name).is_none() {
                        return Err(Error::Malformed {
                            path: shard.path().to_path_buf(),
                            what: "header".to_owned(),
                            found: format!("no tensor {name}"),
                            expected: format!("it, by {}", index.display()),
                        });
                    }
                }
                (shards, places)
            }
        };
        let packed = packed::find(&shards, &mut places)?;
        let checkpoint = checkpoint.to_path_buf();
        let tensors = Self { checkpoint, shards, places, packed, bytes_read: AtomicU64::new(0) };
        tensors.count(tensors.header_bytes());
        Ok(tensors)
    }

    /// Names of all tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.places.keys().chain(self.packed.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name) || self.packed.contains_key(name)
    }

    /// The scheme of all packed matrices; `None` if there is none, or they are not of one scheme.
    #[must_use]
    pub fn packed_scheme(&self) -> Option<Scheme> {
        // In [`Scheme::ALL`] groups come before whole rows.
        let mut fitting = Scheme::ALL.into_iter().filter(|scheme| {
            !self.packed.is_empty() && self.packed.values().all(|matrix| matrix.is_in(*scheme))
        });
        fitting.next()
    }

    /// A tensor's dtype and shape, from its file's header. A packed matrix is F32.
    ///
    /// # Errors
    ///
    /// If it is missing or its dtype is not F32, F16 or BF16.
    pub fn describe(&self, name: &str) -> Result<(Scheme, &[usize])> {
        if let Some(packed) = self.packed.get(name) {
            return Ok((Scheme::F32, &packed.shape));
        }
        let (shard, info) = self.find(name)?;
        Ok((scheme(shard, name, info.dtype)?, &info.shape))
    }

    /// Reads one tensor, checks its shape and that every value is finite.
    ///
    /// # Errors
    ///
    /// If it is missing, has another shape or an unsupported dtype, or holds NaN or infinity.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let rows = shape.first().copied().unwrap_or(1);
        let mut tensor = self.read_rows(name, shape, 0..rows)?;
        tensor.shape = shape.to_vec();
        Ok(tensor)
    }

    /// Reads rows (indices of the slowest dimension) of one tensor of `shape`; checks as [`Tensors::read`] does.
    ///
    /// # Errors
    ///
    /// As [`Tensors::read`]; [`Error::Shape`] if `rows` reaches past the tensor.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Tensor> {
        let packed = self.packed.get(name);
        let (shard, found, offset) = match packed {
            Some(packed) => (packed.shard(&self.shards), &packed.shape, 0),
            None => self.find(name).map(|(shard, info)| (shard, &info.shape, info.data_offsets.0))?,
        };
        if found != shape {
            return Err(Error::TensorShape {
                path: shard.path().to_path_buf(),
                tensor: name.to_owned(),
                found: found.clone(),
                expected: shape.to_vec(),
            });
        }
        let count = shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            return Err(Error::Shape {
                kernel: "read_rows",
                what: "end of the rows",
                got: rows.end,
                expected: format!("at most {count} and not before their start {}", rows.start),
            });
        }
        let (dtype, _) = self.describe(name)?;
        let row_len: usize = shape.iter().skip(1).product();
        let row_bytes = row_len * (dtype.bits() / 8) as usize;

        let (bytes, read) = match packed {
            Some(packed) => packed.read(&self.shards, rows.clone())?,
            None => {
                let bytes = shard.read(offset + rows.start * row_bytes, rows.len() * row_bytes)?;
                let read = bytes.len() as u64;
                (bytes, read)
            }
        };
        self.count(read);
        let mut tensor = Tensor { dtype, shape: shape.to_vec(), bytes };
        if let Some(first) = tensor.shape.first_mut() {
            *first = rows.len();
        }
        if let Some((index, value)) = tensor.first_not_finite() {
            return Err(Error::NotFinite {
                path: shard.path().to_path_buf(),
                tensor: name.to_owned(),
                index: rows.start * row_len + index,
                value,
            });
        }
        Ok(tensor)
    }

    /// Bytes read so far, headers included.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of all files before their tensors.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        self.shards.iter().map(Shard::header_bytes).sum()
    }

    /// A hash of all bytes of the weight files, in hex; these are not part of [`Self::bytes_read`]. `watch` is told how many of
    /// how many bytes are done; its error ends it.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], and what `watch` returns.
    pub fn content_hash(&self, watch: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<String> {
        let total = self.shards.iter().map(Shard::file_bytes).sum();
        let mut done = 0;
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            let hash = shard.content_hash(&mut |bytes| {
                done += bytes;
                watch(done, total)
            })?;
            hasher.update(hash.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn count(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn find(&self, name: &str) -> Result<(&Shard, &safetensors::tensor::TensorInfo)> {
        let found = self.places.get(name).and_then(|&place| {
            let shard = self.shards.get(place)?;
            Some((shard, shard.info(name)?))
        });
        found.ok_or_else(|| Error::TensorMissing { path: self.checkpoint.clone(), tensor: name.to_owned() })
    }
}

fn scheme(shard: &Shard, name: &str, dtype: Dtype) -> Result<Scheme> {
    match dtype {
        Dtype::F32 => Ok(Scheme::F32),
        Dtype::F16 => Ok(Scheme::F16),
        Dtype::BF16 => Ok(Scheme::Bf16),
        other => Err(Error::Unsupported {
            path: shard.path().to_path_buf(),
            what: "dtype",
            found: format!("{other} of tensor {name}"),
            supported: "F32, F16, BF16".to_owned(),
        }),
    }
}
