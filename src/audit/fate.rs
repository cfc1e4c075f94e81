//! What quantization leaves of an update, matrix by matrix.

use serde::{Deserialize, Serialize};

use super::codes::Codes;
use crate::quant::Change;

/// Sums over the weights of one or more matrices, from which shares follow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fate {
    /// `<u - t, u - t>`.
    pub update: f64,
    /// `<Q(u) - Q(t), u - t>`.
    pub kept: f64,
    /// Weights with `u != t`.
    pub changed: u64,
    /// Those of them with `Q(u) == Q(t)`; `None` of a released file, whose values may be those of another's scales.
    pub absorbed: Option<u64>,
}

/// One matrix's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixFate {
    /// Its layer; the head has none.
    pub layer: Option<usize>,
    /// `q_proj`, `gate_proj`, ... or [`HEAD`](super::HEAD).
    pub module: &'static str,
    /// What became of its update.
    pub fate: Fate,
}

impl Default for Fate {
    /// Of no weight.
    fn default() -> Self {
        Self { update: 0.0, kept: 0.0, changed: 0, absorbed: Some(0) }
    }
}

impl Fate {
    /// Of all of these together.
    #[must_use]
    pub fn sum<'a>(fates: impl IntoIterator<Item = &'a MatrixFate>) -> Self {
        let mut sum = Self::default();
        for MatrixFate { fate, .. } in fates {
            sum.update += fate.update;
            sum.kept += fate.kept;
            sum.changed += fate.changed;
            sum.absorbed = sum.absorbed.zip(fate.absorbed).map(|(sum, absorbed)| sum + absorbed);
        }
        sum
    }

    /// How much of the update outlives quantization: 1 all of it, 0 nothing. `None` without an update, or if a value is
    /// beyond f32.
    #[must_use]
    pub fn survival(&self) -> Option<f64> {
        (self.update > 0.0).then_some(self.kept / self.update).filter(|share| share.is_finite())
    }

    /// Share of the changed weights that are mapped back to the target's value. `None` if no weight changed, or codes are not
    /// known.
    #[must_use]
    pub fn absorbed_share(&self) -> Option<f64> {
        self.absorbed.filter(|_| self.changed > 0).map(|absorbed| absorbed as f64 / self.changed as f64)
    }
}

impl From<&Change> for Fate {
    fn from(change: &Change) -> Self {
        let Change { update, kept, changed, absorbed, .. } = *change;
        Self { update, kept, changed, absorbed: Some(absorbed) }
    }
}

/// What the plan's scheme number `scheme` leaves of each matrix's update.
pub(super) fn fates(codes: &Codes, scheme: usize) -> Vec<MatrixFate> {
    let of = |tensor: &super::TensorChange| MatrixFate {
        layer: tensor.layer,
        module: tensor.module,
        fate: (&tensor.changes[scheme]).into(),
    };
    codes.tensors.iter().map(of).collect()
}
