//! Schemes: how a weight matrix is stored and decoded, the host codec of each, what a change of the weights does to the
//! codes ([`change()`]), and roundings that keep such a change ([`keep`](mod@keep), [`stochastic`](mod@stochastic),
//! [`aligned()`]; [`Rounding`] names them).
//!
//! The host codec is the oracle of the GPU's packing kernel: codes and scales agree bit for bit. [`scale`]
//! holds the rules of the affine schemes, [`table`] those of bitsandbytes' tables; their public constants
//! are the ones that the shaders repeat.

mod aligned;
mod change;
mod codec;
pub mod keep;
mod ladder;
pub mod matched;
mod precision;
mod rescale;
mod rounding;
pub mod scale;
pub mod stochastic;
pub mod table;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, did_you_mean};

pub use aligned::aligned;
pub(crate) use change::{COUNTS, FP4_MINUS_ZERO, NEGLIGIBLE, OCTAVES_BELOW, SHARE_BITS, widths};
pub use change::{Change, Steps, change};
pub use codec::{decode, encode};
pub use keep::{Kept, KeptRow, keep};
pub use ladder::neighbour;
pub use matched::{Moments, matched};
pub use precision::Precision;
pub use rounding::{Rounded, Rounding, Rows, Share, round};
pub use stochastic::{Draw, stochastic};

/// How the weights of one matrix are stored.
///
/// All arithmetic is f32 on the source value (f16 and bf16 widened exactly); `rhe` rounds half to
/// even. A group of zeros (nothing as large as [`scale::TINY`]) has scale 0 and codes 0. Groups run
/// along a row; a row's last group may be shorter. The tables' blocks run over the flat row-major
/// matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// As stored: f32.
    F32,
    /// As stored: IEEE half.
    F16,
    /// As stored: bfloat16.
    Bf16,
    /// One scale a row, absmax / 127; codes -127..=127.
    Int8,
    /// Symmetric groups of 32, 64 or 128 neighbours in a row, scale absmax / 7.5; codes -8..=7.
    Int4 {
        /// Weights that share a scale.
        group: u32,
    },
    /// Groups of 128 with a zero point, scale (max(hi, 0) - min(lo, 0)) / 15; codes 0..=15.
    Int4Asym {
        /// Weights that share a scale and zero point.
        group: u32,
    },
    /// One scale a row, absmax / 8; codes -8..=7 (equation 2 of arXiv 2410.16454 read literally).
    Int4Row,
    /// bitsandbytes' FP4 table, blocks of 64, f32 absmax; the source is rounded to bf16 first.
    Fp4B64,
    /// bitsandbytes' NF4 table, blocks of 64, f32 absmax; the source is rounded to bf16 first.
    Nf4B64,
}

impl Scheme {
    /// Every scheme, full precision first.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Int8,
        Self::Int4 { group: 32 },
        Self::Int4 { group: 64 },
        Self::Int4 { group: 128 },
        Self::Int4Asym { group: 128 },
        Self::Int4Row,
        Self::Fp4B64,
        Self::Nf4B64,
    ];

    /// The name in flags, reports and file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 { group: 32 } => "int4-g32",
            Self::Int4 { group: 64 } => "int4-g64",
            Self::Int4 { .. } => "int4-g128",
            Self::Int4Asym { .. } => "int4-asym-g128",
            Self::Int4Row => "int4-row",
            Self::Fp4B64 => "fp4-b64",
            Self::Nf4B64 => "nf4-b64",
        }
    }

    /// Whether weights are kept exactly as stored.
    #[must_use]
    pub fn is_full(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bits of one stored weight, without its share of the scale.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Int8 => 8,
            _ => 4,
        }
    }

    /// How many weights one `u32` word holds.
    #[must_use]
    pub fn per_word(self) -> usize {
        (32 / self.bits()) as usize
    }

    /// How the scales of a `[rows, cols]` matrix are laid out; `None` for full precision.
    #[must_use]
    pub fn grouping(self, rows: usize, cols: usize) -> Option<Grouping> {
        let (row_len, group) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Int8 | Self::Int4Row => (cols, cols),
            Self::Int4 { group } | Self::Int4Asym { group } => (cols, group as usize),
            Self::Fp4B64 | Self::Nf4B64 => (rows * cols, 64),
        };
        let per_row = row_len.div_ceil(group);
        let count = if row_len == cols { rows * per_row } else { per_row };
        Some(Grouping { row_len, group, per_row, count })
    }

    /// f32 values stored for each group: the scale, and the zero point where there is one.
    #[must_use]
    pub fn values_per_group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Int4Asym { .. } => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == text).ok_or_else(|| Error::Flag {
            flag: "scheme",
            found: text.to_owned(),
            expected: format!(
                "one of {}{}",
                Self::ALL.map(Self::name).join(", "),
                did_you_mean(text, Self::ALL.map(Self::name))
            ),
        })
    }
}

/// Which weights share a scale.
///
/// Group `i` covers the flat row-major weights from `(i / per_row) * row_len + (i % per_row) * group`,
/// at most `group` of them and never past the end of its row of `row_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Length of the rows that groups are cut from: the matrix's columns, or the whole flat matrix.
    pub row_len: usize,
    /// Weights in a full group.
    pub group: usize,
    /// Groups in a row.
    pub per_row: usize,
    /// Groups in the matrix.
    pub count: usize,
}

impl Grouping {
    /// The group of flat weight `index`.
    #[must_use]
    pub fn of(&self, index: usize) -> usize {
        index / self.row_len * self.per_row + index % self.row_len / self.group
    }

    /// The flat weights of a group.
    #[must_use]
    pub fn range(&self, group: usize) -> std::ops::Range<usize> {
        let row = group / self.per_row * self.row_len;
        let first = row + group % self.per_row * self.group;
        first..(first + self.group).min(row + self.row_len)
    }
}

/// A `[rows, cols]` weight matrix in one scheme, laid out as the device reads it.
///
/// | scheme | `words` |
/// |---|---|
/// | f32 | one weight a word |
/// | f16, bf16 | two, low half first |
/// | int8 | four two's-complement bytes, lowest first |
/// | int4-gN, int4-row | eight two's-complement nibbles, lowest first |
/// | int4-asym | eight unsigned nibbles, lowest first |
/// | fp4, nf4 | eight table indices, lowest nibble first |
///
/// `scales` holds one f32 a group ([`Scheme::grouping`]); int4-asym holds pairs of scale and zero point.
/// `cols` is a multiple of 8, so every row starts at a word.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// How to read `words` and `scales`.
    pub scheme: Scheme,
    /// Rows, `n`.
    pub rows: usize,
    /// Columns, `k`; a multiple of 8.
    pub cols: usize,
    /// The codes (or the stored weights in full precision).
    pub words: Vec<u32>,
    /// The scales (and zero points); empty in full precision.
    pub scales: Vec<f32>,
}

impl Packed {
    /// The raw code of flat weight `index`, as an unsigned bit pattern of [`Scheme::bits`] bits.
    #[must_use]
    pub fn code(&self, index: usize) -> u32 {
        let per_word = self.scheme.per_word();
        let bits = self.scheme.bits();
        #[expect(clippy::cast_possible_truncation, reason = "a word holds at most 8 codes")]
        let position = (index % per_word) as u32 * bits;
        self.words[index / per_word] >> position & (u32::MAX >> (32 - bits))
    }
}
