//! A weight matrix on the device.

use std::ops::Range;

use crate::error::Result;
use crate::gpu::{Buffer, Gpu};
use crate::quant::Scheme;

/// Buffers can be bound from multiples of this many bytes on every device.
const BINDING_ALIGNMENT: u64 = 256;

/// Weights of a group that runs on from row to row.
const FLAT_GROUP: usize = 64;

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
    /// A `[n, k]` matrix in one part.
    pub(super) fn whole(scheme: Scheme, [n, k]: [usize; 2], weights: &Buffer, scales: &Buffer) -> Self {
        let parts = vec![Part { rows: 0..n, weights: weights.clone(), scales: scales.clone() }];
        Self { scheme, n, k, parts }
    }

    /// All words on the host: of each part the codes, then the scales. Waits for the device.
    ///
    /// # Errors
    ///
    /// If any work since the device was opened failed.
    pub fn words(&self, gpu: &Gpu) -> Result<Vec<u32>> {
        let mut words = Vec::new();
        for buffer in self.buffers() {
            words.extend(gpu.read::<u32>(buffer, Self::words_of(buffer))?);
        }
        Ok(words)
    }

    /// Uploads what [`Self::words`] gave of a matrix of this shape and scheme.
    ///
    /// # Panics
    ///
    /// If there are fewer words.
    pub fn set_words(&self, gpu: &Gpu, mut words: &[u32]) {
        for buffer in self.buffers() {
            let (own, rest) = words.split_at(Self::words_of(buffer));
            gpu.write(buffer, bytemuck::cast_slice::<u32, u8>(own));
            words = rest;
        }
    }

    /// Codes and scales of every part.
    fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        let scales = !self.scheme.is_full();
        self.parts
            .iter()
            .flat_map(move |part| std::iter::once(&part.weights).chain(scales.then_some(&part.scales)))
    }

    fn words_of(buffer: &Buffer) -> usize {
        usize::try_from(buffer.bytes() / 4).unwrap_or(usize::MAX)
    }

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

    /// Whether a `[n, k]` matrix in `scheme` can end after `rows` rows and another begin there: both can be bound, and
    /// no group of weights lies in both.
    #[must_use]
    pub fn is_cut_at(scheme: Scheme, rows: usize, k: usize) -> bool {
        let flat = matches!(scheme, Scheme::Fp4B64 | Scheme::Nf4B64);
        let codes = (rows * k / scheme.per_word() * 4) as u64;
        let scales = Self::bytes_of(scheme, rows, k) - codes;
        let whole = !flat || (rows * k).is_multiple_of(FLAT_GROUP);
        whole && codes.is_multiple_of(BINDING_ALIGNMENT) && scales.is_multiple_of(BINDING_ALIGNMENT)
    }

    /// Some of its rows as a matrix of their own in the same memory; `None` if it is in parts or cannot be cut there.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let [part] = self.parts.as_slice() else { return None };
        if ![rows.start, rows.end].iter().all(|end| Self::is_cut_at(self.scheme, *end, self.k)) {
            return None;
        }
        let codes = |rows: usize| (rows * self.row_bytes()) as u64;
        let scales = |rows: usize| Self::bytes_of(self.scheme, rows, self.k) - codes(rows);
        let cut = |buffer: &Buffer, bytes: &dyn Fn(usize) -> u64| {
            buffer.slice(bytes(rows.start), bytes(rows.end) - bytes(rows.start))
        };
        let weights = cut(&part.weights, &codes);
        let scales = if self.scheme.is_full() { weights.clone() } else { cut(&part.scales, &scales) };
        let n = rows.len();
        let parts = vec![Part { rows: 0..n, weights, scales }];
        Some(Self { scheme: self.scheme, n, k: self.k, parts })
    }

    /// This matrix and `next` below it as one, if they lie so in memory.
    #[must_use]
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let ([own], [other]) = (self.parts.as_slice(), next.parts.as_slice()) else { return None };
        if (self.scheme, self.k) != (next.scheme, next.k) {
            return None;
        }
        let weights = own.weights.joined(&other.weights)?;
        let scales =
            if self.scheme.is_full() { weights.clone() } else { own.scales.joined(&other.scales)? };
        let n = self.n + next.n;
        let parts = vec![Part { rows: 0..n, weights, scales }];
        Some(Self { scheme: self.scheme, n, k: self.k, parts })
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
