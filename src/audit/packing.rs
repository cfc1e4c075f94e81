//! How a rounded matrix lies in the written file.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::checkpoint::Kind;
use crate::error::{Error, Result};
use crate::quant::{Packed, Scheme, decode};

/// How the matrices are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The values that codes stand for, as F32.
    Dequantized,
    /// `pack-quantized` of compressed-tensors: codes in I32 words, lowest first, offset to be unsigned; F32 scales.
    CompressedTensors,
}

impl Format {
    /// The name in flags and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dequantized => "dequantized",
            Self::CompressedTensors => "compressed-tensors",
        }
    }

    /// The one that takes the fewest bytes, of those that can hold matrices with rows of all these lengths.
    #[must_use]
    pub fn smallest(scheme: Scheme, cols: &[usize]) -> Self {
        let packs = cols.iter().all(|&cols| Self::CompressedTensors.holds(scheme, cols));
        if packs { Self::CompressedTensors } else { Self::Dequantized }
    }

    /// Whether it has words for the scheme, and can cut its groups.
    fn holds(self, scheme: Scheme, cols: usize) -> bool {
        match (self, scheme) {
            (Self::Dequantized, _) | (_, Scheme::Int8) => true,
            (Self::CompressedTensors, Scheme::Int4 { group }) => cols.is_multiple_of(group as usize),
            (Self::CompressedTensors, _) => false,
        }
    }

    /// Refuses a scheme that the format has no words for, and groups that it cannot cut.
    pub(super) fn check(self, scheme: Scheme, cols: usize) -> Result<()> {
        if self.holds(scheme, cols) {
            return Ok(());
        }
        Err(Error::Flag {
            flag: "--format",
            found: format!("{self} with --scheme {scheme} and rows of {cols}"),
            expected: "int8 or int4-gN, with a group that divides every row; or --format dequantized"
                .to_owned(),
        })
    }

    /// The tensors of a matrix, in the order in which they are written.
    pub(super) fn tensors(
        self,
        name: &str,
        scheme: Scheme,
        [rows, cols]: [usize; 2],
    ) -> Vec<(String, Kind, Vec<usize>)> {
        let group = scheme.grouping(rows, cols).map_or(cols, |grouping| grouping.group);
        match self {
            Self::Dequantized => vec![(name.to_owned(), Kind::Weights(Scheme::F32), vec![rows, cols])],
            Self::CompressedTensors => vec![
                (format!("{name}_packed"), Kind::I32, vec![rows, cols / scheme.per_word()]),
                (format!("{name}_scale"), Kind::Weights(Scheme::F32), vec![rows, cols / group]),
                (format!("{name}_shape"), Kind::I64, vec![2]),
            ],
        }
    }

    /// The bytes of some rows: what is written at once, and scales for after the last row.
    pub(super) fn bytes(self, packed: &Packed) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::Dequantized => {
                (decode(packed).into_iter().flat_map(f32::to_le_bytes).collect(), Vec::new())
            }
            Self::CompressedTensors => {
                // Two's complement to offset: the sign bit of every code turns over.
                let signs = if packed.scheme.bits() == 8 { 0x8080_8080 } else { 0x8888_8888 };
                let words = packed.words.iter().flat_map(|word| (word ^ signs).to_le_bytes()).collect();
                (words, packed.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect())
            }
        }
    }

    /// The bytes that close a matrix, after its scales.
    pub(super) fn end(self, shape: [usize; 2]) -> Vec<u8> {
        match self {
            Self::Dequantized => Vec::new(),
            Self::CompressedTensors => {
                shape.into_iter().flat_map(|size| (size as u64).to_le_bytes()).collect()
            }
        }
    }

    /// What `config.json` says of it.
    pub(super) fn config(self, scheme: Scheme) -> Option<Value> {
        let (strategy, group) = match scheme {
            Scheme::Int4 { group } => ("group", Some(group)),
            _ => ("channel", None),
        };
        let weights = json!({
            "num_bits": scheme.bits(), "type": "int", "symmetric": true, "strategy": strategy, "group_size": group,
            "dynamic": false
        });
        let group = json!({
            "targets": ["Linear"], "weights": weights, "input_activations": null, "output_activations": null
        });
        (self == Self::CompressedTensors).then(|| {
            json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "ignore": ["lm_head"], "config_groups": {"group_0": group}
            })
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Dequantized, Self::CompressedTensors]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| Error::Flag {
                flag: "--format",
                found: text.to_owned(),
                expected: "one of dequantized, compressed-tensors".to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has no words, or groups that do not fit every matrix, is written as values.
    #[test]
    fn the_smallest_format_is_one_that_holds_every_matrix() {
        let (g32, g128) = (Scheme::Int4 { group: 32 }, Scheme::Int4 { group: 128 });
        for (scheme, cols, packs) in [
            (g128, [1024, 2816], true),
            (g128, [1536, 576], false),
            (g32, [1536, 576], true),
            (Scheme::Int8, [1536, 576], true),
            (Scheme::Nf4B64, [1024, 1024], false),
        ] {
            let format = Format::smallest(scheme, &cols);
            assert_eq!(format == Format::CompressedTensors, packs, "{scheme} {cols:?}");
            assert!(cols.iter().all(|&cols| format.check(scheme, cols).is_ok()), "{scheme} {cols:?}");
        }
    }
}
