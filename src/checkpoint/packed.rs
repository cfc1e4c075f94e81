//! Matrices that compressed-tensors packed (`pack-quantized`, symmetric integers): read as the values they stand for.
//!
//! A matrix `W` of such a checkpoint is three tensors: `W_packed` (I32 words of eight or four codes, lowest first, offset to
//! be unsigned), `W_scale` (one a group or a row) and `W_shape` (I64). A value is `(code - offset) * scale`, one f32 product.

use std::collections::HashMap;
use std::ops::Range;

use safetensors::Dtype;

use super::shard::Shard;
use super::tensors::widen;
use crate::error::{Error, Result};
use crate::quant::Scheme;

const CODES: &str = "_packed";
const SCALES: &str = "_scale";
const SHAPE: &str = "_shape";

/// Ends of the names of what belongs to a packed matrix and is not supported.
const OTHERS: [(&str, &str); 2] = [("_zero_point", "zero points"), ("_g_idx", "an activation order")];

/// Where a packed matrix is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedMatrix {
    /// Of the matrix.
    pub(super) shape: Vec<usize>,
    /// Which file holds the codes, and from where on.
    codes: (usize, usize),
    /// The same of the scales, with their dtype.
    scales: (usize, usize, Scheme),
    /// Codes in a word.
    per_word: usize,
    /// Weights that share a scale.
    group: usize,
}

/// All packed matrices by the name that they would have, taking what they consist of from `places`.
pub(super) fn find(
    shards: &[Shard],
    places: &mut HashMap<String, usize>,
) -> Result<HashMap<String, PackedMatrix>> {
    let names: Vec<_> =
        places.keys().filter_map(|name| name.strip_suffix(CODES)).map(str::to_owned).collect();
    let mut found = HashMap::new();
    for name in names {
        found.insert(name.clone(), matrix(shards, places, &name)?);
        for end in [CODES, SCALES, SHAPE] {
            places.remove(&format!("{name}{end}"));
        }
    }
    Ok(found)
}

fn matrix(shards: &[Shard], places: &HashMap<String, usize>, name: &str) -> Result<PackedMatrix> {
    let part = |end: &str| {
        let tensor = format!("{name}{end}");
        let place = places.get(&tensor).copied();
        let found = place.and_then(|place| Some((place, shards[place].info(&tensor)?)));
        found.ok_or_else(|| {
            let codes = places.get(&format!("{name}{CODES}")).copied().unwrap_or(0);
            Error::TensorMissing { path: shards[codes].path().to_path_buf(), tensor }
        })
    };
    let (place, codes) = part(CODES)?;
    let path = || shards[place].path().to_path_buf();
    for (end, what) in OTHERS {
        if places.contains_key(&format!("{name}{end}")) {
            return Err(Error::Unsupported {
                path: path(),
                what: "packed matrix",
                found: format!("{name} with {what}"),
                supported: "symmetric integers in the order of the columns".to_owned(),
            });
        }
    }
    let wrong = |what: &str, found: String, expected: &str| Error::Malformed {
        path: path(),
        what: format!("tensor {name}{what}"),
        found,
        expected: expected.to_owned(),
    };
    let (shape_place, shape) = part(SHAPE)?;
    if shape.dtype != Dtype::I64 || shape.shape != [2] {
        return Err(wrong(SHAPE, format!("{:?} {:?}", shape.dtype, shape.shape), "two I64"));
    }
    let bytes = shards[shape_place].read(shape.data_offsets.0, 16)?;
    let sizes = bytes.as_chunks().0.iter().map(|size| i64::from_le_bytes(*size));
    let sizes: Vec<_> = sizes.filter_map(|size| usize::try_from(size).ok()).collect();
    let [rows, cols] = *sizes.as_slice() else {
        return Err(wrong(SHAPE, "a negative size".to_owned(), "rows and columns"));
    };
    let [found_rows, words] = *codes.shape.as_slice() else {
        return Err(wrong(CODES, format!("shape {:?}", codes.shape), "a matrix of words"));
    };
    let per_word = cols.checked_div(words).filter(|per_word| matches!(per_word, 4 | 8));
    let per_word = per_word.filter(|per_word| words * per_word == cols && found_rows == rows);
    let Some(per_word) = per_word.filter(|_| codes.dtype == Dtype::I32) else {
        let found = format!("{:?} {:?} for a matrix of {rows} x {cols}", codes.dtype, codes.shape);
        return Err(wrong(CODES, found, "I32 words of eight 4-bit or four 8-bit codes that fill each row"));
    };
    let (scale_place, scales) = part(SCALES)?;
    let dtype = match scales.dtype {
        Dtype::F32 => Some(Scheme::F32),
        Dtype::F16 => Some(Scheme::F16),
        Dtype::BF16 => Some(Scheme::Bf16),
        _ => None,
    };
    let per_row = match *scales.shape.as_slice() {
        [found, per_row] if found == rows => per_row,
        [found] if found == rows => 1,
        _ => 0,
    };
    let group = cols.checked_div(per_row).filter(|group| group * per_row == cols);
    let (Some(dtype), Some(group)) = (dtype, group) else {
        let found = format!("{:?} {:?} for a matrix of {rows} x {cols}", scales.dtype, scales.shape);
        return Err(wrong(SCALES, found, "F32, F16 or BF16 scales, as many in each row, of equal groups"));
    };
    Ok(PackedMatrix {
        shape: vec![rows, cols],
        codes: (place, codes.data_offsets.0),
        scales: (scale_place, scales.data_offsets.0, dtype),
        per_word,
        group,
    })
}

impl PackedMatrix {
    /// The file that holds the codes.
    pub(super) fn shard<'a>(&self, shards: &'a [Shard]) -> &'a Shard {
        &shards[self.codes.0]
    }

    /// Whether its codes may be of this scheme. A group as long as the rows may be either, a group's or a row's.
    pub(super) fn is_in(&self, scheme: Scheme) -> bool {
        let whole_row = self.group == self.shape[1];
        match scheme {
            Scheme::Int8 => self.per_word == 4 && whole_row,
            Scheme::Int4 { group } => self.per_word == 8 && self.group == group as usize,
            Scheme::Int4Row => self.per_word == 8 && whole_row,
            _ => false,
        }
    }

    /// The values of some rows as little-endian f32, and the bytes that were read for them.
    pub(super) fn read(&self, shards: &[Shard], rows: Range<usize>) -> Result<(Vec<u8>, u64)> {
        let cols = self.shape[1];
        let (place, start) = self.codes;
        let row_bytes = cols / self.per_word * 4;
        let codes = shards[place].read(start + rows.start * row_bytes, rows.len() * row_bytes)?;
        let (place, start, dtype) = self.scales;
        let scale_bytes = cols / self.group * (dtype.bits() / 8) as usize;
        let scales = shards[place].read(start + rows.start * scale_bytes, rows.len() * scale_bytes)?;
        let read = (codes.len() + scales.len()) as u64;
        let scales = widen(dtype, &scales);
        let bits = 32 / self.per_word;
        let (mask, offset) = (u32::MAX >> (32 - bits), 1_i32 << (bits - 1));
        let words = codes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let codes = words.flat_map(|word| (0..self.per_word).map(move |place| word >> (place * bits) & mask));
        let value = |(index, code): (usize, u32)| {
            #[expect(clippy::cast_precision_loss, reason = "codes have at most 8 bits")]
            let code = (code.cast_signed() - offset) as f32;
            (code * scales[index / self.group]).to_le_bytes()
        };
        Ok((codes.enumerate().flat_map(value).collect(), read))
    }
}
