//! How codes are chosen, and the one way to have a matrix rounded so.

use std::fmt;
use std::str::FromStr;

use super::{Draw, KeptRow, Packed, Scheme, aligned, encode, keep, stochastic};

/// A share of an update, 0 to 1 in steps of a thousandth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share(u16);

impl Share {
    /// What is kept if nothing else is said: as much as forgetting needs, at the least cost (README).
    pub const USUAL: Self = Self(900);
    /// The same where the rounding looks at activations ([`matched`](super::matched())): an update that is a little smaller
    /// costs less there, and forgets as much.
    pub const USUAL_MATCHED: Self = Self(850);
    /// All of it.
    pub const ALL: Self = Self(1000);

    /// Reads a decimal number from 0 to 1; more than three digits after the point are rounded.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        (0.0..=1.0).contains(&share).then(|| Self((share * 1000.0).round() as u16))
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> f32 {
        f32::from(self.0) / 1000.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&(f64::from(self.0) / 1000.0).to_string())
    }
}

impl FromStr for Share {
    type Err = String;

    /// The error is what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| "a share from 0 to 1".to_owned())
    }
}

/// How the codes of a scheme are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rounding {
    /// The nearest.
    #[default]
    Nearest,
    /// So that this share of the update from the target survives ([`keep`](super::keep())).
    Kept(Share),
    /// The nearest, at scales that keep the update's direction ([`aligned`](super::aligned())).
    Aligned,
    /// At random by nearness, with this seed ([`stochastic`](super::stochastic())).
    Stochastic(u64),
}

impl Rounding {
    /// Whether it needs the weights from which the update leads.
    #[must_use]
    pub fn needs_target(self) -> bool {
        matches!(self, Self::Kept(_) | Self::Aligned)
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nearest => f.write_str("nearest"),
            Self::Kept(share) => write!(f, "keep={share}"),
            Self::Aligned => f.write_str("aligned"),
            Self::Stochastic(seed) => write!(f, "stochastic={seed}"),
        }
    }
}

impl FromStr for Rounding {
    type Err = String;

    /// Reads what [`Display`](fmt::Display) writes; share and seed may be left out. The error is what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match (name, value) {
            ("nearest", None) => Ok(Self::Nearest),
            ("keep", None) => Ok(Self::Kept(Share::USUAL)),
            ("keep", Some(share)) => {
                share.parse().map(Self::Kept).map_err(|expected| format!("{expected} after +keep="))
            }
            ("aligned", None) => Ok(Self::Aligned),
            ("stochastic", None) => Ok(Self::Stochastic(0)),
            ("stochastic", Some(seed)) => {
                seed.parse().map(Self::Stochastic).map_err(|_| "a whole number after +stochastic=".to_owned())
            }
            _ => {
                Err("+keep, +keep=SHARE, +aligned, +stochastic or +stochastic=SEED after the scheme"
                    .to_owned())
            }
        }
    }
}

/// Rows of a matrix that are to be rounded.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[rows, cols]`.
    pub weights: &'a [f32],
    /// Where the update leads from, `[rows, cols]`.
    pub target: Option<&'a [f32]>,
    /// How many.
    pub rows: usize,
    /// A multiple of 8.
    pub cols: usize,
    /// The tensor's name.
    pub tensor: &'a str,
    /// Index in the tensor of the first weight.
    pub first: u64,
}

/// Rounded rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// The codes and scales.
    pub packed: Packed,
    /// Codes that are not those of nearest rounding.
    pub moved: u64,
    /// What became of each row's update, in kept rounding.
    pub kept: Vec<KeptRow>,
}

/// Rounds rows to `scheme`.
///
/// # Panics
///
/// If a slice has another length, `cols` is not a multiple of 8, the scheme does not quantize, or there is no target for a
/// rounding that needs one: bugs in the caller.
#[must_use]
pub fn round(scheme: Scheme, rounding: Rounding, what: Rows<'_>) -> Rounded {
    let Rows { weights, target, rows, cols, tensor, first } = what;
    match (rounding, target) {
        (Rounding::Kept(share), Some(target)) => {
            let kept = keep(scheme, target, weights, rows, cols, share.get());
            let moved = kept.rows.iter().map(|row| row.moved).sum();
            Rounded { packed: kept.packed, moved, kept: kept.rows }
        }
        (Rounding::Aligned, Some(target)) => {
            let (packed, near) =
                (aligned(scheme, target, weights, rows, cols), encode(scheme, weights, rows, cols));
            let moved =
                (0..rows * cols).filter(|&index| packed.code(index) != near.code(index)).count() as u64;
            Rounded { packed, moved, kept: Vec::new() }
        }
        (Rounding::Stochastic(seed), _) => {
            let (packed, moved) = stochastic(scheme, weights, rows, cols, Draw::new(seed, tensor), first);
            Rounded { packed, moved, kept: Vec::new() }
        }
        (Rounding::Kept(_) | Rounding::Aligned, None) => {
            unreachable!("{rounding} of {tensor} without a target")
        }
        (Rounding::Nearest, _) => {
            Rounded { packed: encode(scheme, weights, rows, cols), moved: 0, kept: Vec::new() }
        }
    }
}
