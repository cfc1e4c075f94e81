//! Encode and decode on the host.

use rayon::prelude::*;

use super::scale::{self, Grid};
use super::{Packed, Scheme, table};

/// Blocks of a flat table scheme that one task encodes.
const BLOCKS_PER_TASK: usize = 256;

/// Packs a row-major `[rows, cols]` matrix of finite weights.
///
/// In f16 and bf16, values that came from that dtype are kept exactly; others are rounded half to even.
///
/// # Panics
///
/// If `weights` is not `rows * cols` long, or `cols` or the scheme's group is not a multiple of 8:
/// bugs in the caller.
#[must_use]
pub fn encode(scheme: Scheme, weights: &[f32], rows: usize, cols: usize) -> Packed {
    assert_eq!(weights.len(), rows * cols, "weights of a [{rows}, {cols}] matrix");
    assert!(cols.is_multiple_of(8), "cols is {cols}, expected a multiple of 8");
    let mut words = vec![0; weights.len() / scheme.per_word()];
    let mut scales = Vec::new();
    if !weights.is_empty() {
        if let Some(layout) = layout(scheme, rows, cols) {
            scales = vec![0.0; layout.count * scheme.values_per_group()];
            encode_groups(scheme, &layout, weights, &mut words, &mut scales);
        } else {
            words.par_iter_mut().zip(weights.par_chunks(scheme.per_word())).for_each(|(word, weights)| {
                *word = full_word(scheme, weights);
            });
        }
    }
    Packed { scheme, rows, cols, words, scales }
}

/// The weights that the codes stand for, row-major `[rows, cols]`.
///
/// One f32 multiplication a weight: `code * scale`, `(code - zero) * scale` or `table[code] * scale`.
#[must_use]
pub fn decode(packed: &Packed) -> Vec<f32> {
    let scheme = packed.scheme;
    let per_word = scheme.per_word();
    let mut weights = vec![0.0; packed.rows * packed.cols];
    if weights.is_empty() {
        return weights;
    }
    let Some(layout) = layout(scheme, packed.rows, packed.cols) else {
        weights.par_chunks_mut(per_word).zip(&packed.words).for_each(|(weights, &word)| {
            for (weight, code) in weights.iter_mut().zip(codes(scheme, word)) {
                *weight = full_value(scheme, code);
            }
        });
        return weights;
    };
    let tasks = weights
        .par_chunks_mut(layout.task)
        .zip(packed.words.par_chunks(layout.task / per_word))
        .zip(packed.scales.par_chunks(layout.task.div_ceil(layout.group) * scheme.values_per_group()));
    tasks.for_each(|((weights, words), scales)| {
        let groups = weights
            .chunks_mut(layout.group)
            .zip(words.chunks(layout.group / per_word))
            .zip(scales.chunks(scheme.values_per_group()));
        for ((weights, words), scales) in groups {
            for (weights, &word) in weights.chunks_mut(per_word).zip(words) {
                for (weight, code) in weights.iter_mut().zip(codes(scheme, word)) {
                    *weight = value(scheme, code, scales);
                }
            }
        }
    });
    weights
}

/// How a matrix is cut into tasks, and a task into groups. Both start at a word.
struct Layout {
    /// Weights a task.
    task: usize,
    /// Weights a group; the last of a task may be shorter.
    group: usize,
    /// Groups in the matrix.
    count: usize,
}

/// `None` for full precision.
fn layout(scheme: Scheme, rows: usize, cols: usize) -> Option<Layout> {
    let grouping = scheme.grouping(rows, cols)?;
    let group = grouping.group;
    assert!(group.is_multiple_of(8), "the group of {scheme:?} is {group}, expected a multiple of 8");
    // A flat scheme's blocks do not care for rows; one row of it would be one task.
    let flat = matches!(scheme, Scheme::Fp4B64 | Scheme::Nf4B64);
    let task = if flat { group * BLOCKS_PER_TASK } else { cols };
    Some(Layout { task, group, count: grouping.count })
}

fn encode_groups(scheme: Scheme, layout: &Layout, weights: &[f32], words: &mut [u32], scales: &mut [f32]) {
    let per_word = scheme.per_word();
    let values = scheme.values_per_group();
    let tasks = weights
        .par_chunks(layout.task)
        .zip(words.par_chunks_mut(layout.task / per_word))
        .zip(scales.par_chunks_mut(layout.task.div_ceil(layout.group) * values));
    tasks.for_each(|((weights, words), scales)| {
        let groups = weights
            .chunks(layout.group)
            .zip(words.chunks_mut(layout.group / per_word))
            .zip(scales.chunks_mut(values));
        for ((weights, words), scales) in groups {
            encode_group(scheme, weights, words, scales);
        }
    });
}

/// Encodes one group. `words` come as zeros, so a group of zeros leaves codes of 0.
fn encode_group(scheme: Scheme, weights: &[f32], words: &mut [u32], scales: &mut [f32]) {
    let bits = scheme.bits();
    let per_word = scheme.per_word();
    let mut put = |index: usize, code: u32| {
        #[expect(clippy::cast_possible_truncation, reason = "a word holds at most 8 codes")]
        let position = (index % per_word) as u32 * bits;
        words[index / per_word] |= (code & ((1 << bits) - 1)) << position;
    };
    match scheme {
        Scheme::F32 | Scheme::F16 | Scheme::Bf16 => {}
        Scheme::Int8 | Scheme::Int4 { .. } | Scheme::Int4Row => {
            scales[0] =
                scale::symmetric(weights, grid(scheme), |index, code| put(index, code.cast_unsigned()));
        }
        Scheme::Int4Asym { .. } => {
            let emit = |index, code: i32| put(index, code.cast_unsigned());
            let (step, zero) = scale::asymmetric(weights, grid(scheme), emit);
            scales[0] = step;
            scales[1] = as_f32(zero);
        }
        Scheme::Fp4B64 => scales[0] = table::block(weights, table::fp4_code, put),
        Scheme::Nf4B64 => scales[0] = table::block(weights, table::nf4_code, put),
    }
}

/// The grid of an affine scheme.
pub(super) fn grid(scheme: Scheme) -> Grid {
    match scheme {
        Scheme::Int8 => scale::INT8,
        Scheme::Int4Row => scale::INT4_ROW,
        Scheme::Int4Asym { .. } => scale::INT4_ASYM,
        _ => scale::INT4,
    }
}

/// The stored bits of [`Scheme::per_word`] full-precision weights.
fn full_word(scheme: Scheme, weights: &[f32]) -> u32 {
    let half = |weight: f32| match scheme {
        Scheme::F16 => half::f16::from_f32(weight).to_bits(),
        _ => half::bf16::from_f32(weight).to_bits(),
    };
    match *weights {
        [weight] => weight.to_bits(),
        [low, high] => u32::from(half(low)) | u32::from(half(high)) << 16,
        _ => 0,
    }
}

/// The weight that full-precision bits stand for.
fn full_value(scheme: Scheme, code: u32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "a code of a 16-bit scheme has 16 bits")]
    match scheme {
        Scheme::F16 => half::f16::from_bits(code as u16).to_f32(),
        Scheme::Bf16 => half::bf16::from_bits(code as u16).to_f32(),
        _ => f32::from_bits(code),
    }
}

/// The codes in a word, as unsigned bit patterns, lowest first.
pub(super) fn codes(scheme: Scheme, word: u32) -> impl Iterator<Item = u32> {
    let bits = scheme.bits();
    let mask = u32::MAX >> (32 - bits);
    (0..32 / bits).map(move |position| word >> (position * bits) & mask)
}

/// The weight that `code` stands for in a group with these scales.
pub(super) fn value(scheme: Scheme, code: u32, scales: &[f32]) -> f32 {
    match scheme {
        Scheme::F32 | Scheme::F16 | Scheme::Bf16 => full_value(scheme, code),
        Scheme::Int8 => as_f32((code << 24).cast_signed() >> 24) * scales[0],
        Scheme::Int4 { .. } | Scheme::Int4Row => as_f32((code << 28).cast_signed() >> 28) * scales[0],
        Scheme::Int4Asym { .. } => (as_f32(code.cast_signed()) - scales[1]) * scales[0],
        Scheme::Fp4B64 => table::FP4[code as usize] * scales[0],
        Scheme::Nf4B64 => table::NF4[code as usize] * scales[0],
    }
}

/// A code as a float.
fn as_f32(code: i32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "codes have at most 8 bits")]
    let float = code as f32;
    float
}
