//! Pure functions over slices and strings. Nothing here knows a device or a file.

pub mod agreement;
pub mod bootstrap;
pub mod correlation;
pub mod divergence;
pub mod hypothesis;
pub mod membership;
pub mod memorization;
pub mod recovery;
pub mod rouge;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// A number, or the reason why there is none. Never NaN.
///
/// Serializes to `{"value": 12.3}` or `{"value": null, "reason": "…"}`.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// The number; finite.
    Value(f64),
    /// Why there is none, in the user's words.
    Missing(String),
}

impl Measured {
    /// `value` if it is finite, else missing: `what` is not finite.
    #[must_use]
    pub fn finite(value: f64, what: &str) -> Self {
        if value.is_finite() { Self::Value(value) } else { Self::Missing(format!("{what} is not finite")) }
    }

    /// The number.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Missing(_) => None,
        }
    }

    /// Why there is no number.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Missing(reason) => Some(reason),
        }
    }
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Measured", 1 + usize::from(self.reason().is_some()))?;
        fields.serialize_field("value", &self.value())?;
        if let Some(reason) = self.reason() {
            fields.serialize_field("reason", reason)?;
        }
        fields.end()
    }
}

/// 100 times the plain mean: MUSE's scale for scores in 0..=1. Missing without scores.
#[must_use]
pub fn mean_percent(scores: &[f64]) -> Measured {
    if scores.is_empty() {
        return Measured::Missing("there are no examples".to_owned());
    }
    Measured::finite(100.0 * mean(scores), "the mean")
}

/// The plain mean; NaN without values.
fn mean(values: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 values")]
    let count = values.len() as f64;
    values.iter().sum::<f64>() / count
}
