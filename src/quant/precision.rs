//! What the user asks for: full precision, or a scheme and how its codes are chosen.

use std::fmt;
use std::str::FromStr;

use super::{Rounding, Scheme};
use crate::error::{Error, Result, did_you_mean};

/// What the user asks for: full precision, which keeps the checkpoint's own dtype, or a scheme.
///
/// ```
/// # use undertext::quant::Precision;
/// let kept: Precision = "int4+keep".parse().unwrap();
/// assert_eq!(kept.to_string(), "int4-g128+keep=0.9");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// The weights as stored; called `fp16` whatever their dtype.
    Full,
    /// Quantized, with codes that are chosen so.
    Quantized(Scheme, Rounding),
    /// The values of a file that somebody quantized in this scheme: taken as they are. The number tells several files of one
    /// model and scheme apart, from 1.
    Released(Scheme, u32),
}

impl Precision {
    /// Quantized to the nearest codes.
    #[must_use]
    pub const fn nearest(scheme: Scheme) -> Self {
        Self::Quantized(scheme, Rounding::Nearest)
    }

    /// The scheme that quantizes; `None` where weights are taken as they are.
    #[must_use]
    pub fn quantizing(self) -> Option<Scheme> {
        match self {
            Self::Full | Self::Released(..) => None,
            Self::Quantized(scheme, _) => Some(scheme),
        }
    }

    /// How codes are chosen; nearest where none are.
    #[must_use]
    pub fn rounding(self) -> Rounding {
        match self {
            Self::Full | Self::Released(..) => Rounding::Nearest,
            Self::Quantized(_, rounding) => rounding,
        }
    }

    /// The scheme of a matrix that is stored in scheme `stored`.
    #[must_use]
    pub fn scheme(self, stored: Scheme) -> Scheme {
        self.quantizing().unwrap_or(stored)
    }

    /// The same scheme with nearest codes: what models that have no update to keep are run at.
    #[must_use]
    pub fn plain(self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Quantized(scheme, _) | Self::Released(scheme, _) => Self::nearest(scheme),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.pad("fp16"),
            Self::Quantized(scheme, Rounding::Nearest) => f.pad(scheme.name()),
            Self::Quantized(scheme, rounding) => f.pad(&format!("{scheme}+{rounding}")),
            Self::Released(scheme, 1) => f.pad(&format!("{scheme}+released")),
            Self::Released(scheme, number) => f.pad(&format!("{scheme}+released={number}")),
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Reads `fp16` (also `full`), `int8`, `int4` (short for `int4-g128`) or a quantizing scheme's name; after a scheme
    /// may stand `+keep`, `+keep=SHARE`, `+aligned`, `+stochastic` or `+stochastic=SEED`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |expected| Error::Flag { flag: "--precision", found: text.to_owned(), expected };
        let (name, rounding) = match text.split_once('+') {
            Some((name, rounding)) => (name, Some(rounding)),
            None => (text, None),
        };
        let mut quantizing = Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full());
        let scheme = match name {
            "int4" => Some(Scheme::Int4 { group: 128 }),
            _ => quantizing.find(|scheme| scheme.name() == name),
        };
        match (name, scheme, rounding) {
            ("fp16" | "full", _, None) => Ok(Self::Full),
            (_, Some(scheme), None) => Ok(Self::nearest(scheme)),
            (_, Some(scheme), Some(rounding)) => {
                rounding.parse().map(|rounding| Self::Quantized(scheme, rounding)).map_err(wrong)
            }
            ("fp16" | "full", _, Some(_)) => {
                Err(wrong("full precision by itself: it has no codes to choose".to_owned()))
            }
            (_, None, _) => {
                let names: Vec<_> =
                    Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full()).map(Scheme::name).collect();
                let near = did_you_mean(name, ["fp16", "int4"].into_iter().chain(names.iter().copied()));
                Err(wrong(format!("one of fp16, int4, {}{near}", names.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in [
            "fp16",
            "int8",
            "int4-g32",
            "nf4-b64+keep=0.85",
            "int4-g128+keep=1",
            "int4-row+keep=0",
            "fp4-b64+aligned",
            "int4-asym-g128+stochastic=7",
        ] {
            assert_eq!(text.parse::<Precision>().unwrap().to_string(), text);
        }
        assert_eq!("int4+keep".parse::<Precision>().unwrap().to_string(), "int4-g128+keep=0.9");
        assert_eq!("int8+stochastic".parse::<Precision>().unwrap().to_string(), "int8+stochastic=0");
        for text in ["int5", "fp16+keep", "int4+keep=1.1", "int4+keep=x", "int4+", "int4+kept", "f32", ""] {
            assert_eq!(text.parse::<Precision>().unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(format!("{:>10}", Precision::Full), "      fp16");
    }
}
