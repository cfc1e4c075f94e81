//! Which matrices keep their part of an update, layer by layer: in the record.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::{self, Fate, HEAD, MatrixFate};

/// What a precision keeps of an update, by layer and module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurvivalMap {
    /// All quantized matrices.
    pub total: Remains,
    /// By the module's name, over all layers.
    pub modules: BTreeMap<String, Remains>,
    /// Each layer.
    pub layers: Vec<LayerRemains>,
    /// The output head, if it is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Remains>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerRemains {
    /// Its number, from 0.
    pub layer: usize,
    /// All its matrices.
    pub total: Remains,
    /// Each of its matrices, by the module's name.
    pub modules: BTreeMap<String, Remains>,
}

/// What is kept of one or more matrices' update; `null` where no weight of them changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Remains {
    /// `<Q(u) - Q(t), u - t> / <u - t, u - t>`.
    pub survival: Option<f64>,
    /// Share of the changed weights with `Q(u) == Q(t)`: unlearning changed them, quantization gives them the target's value
    /// again.
    pub absorbed: Option<f64>,
}

impl From<Fate> for Remains {
    fn from(fate: Fate) -> Self {
        Self { survival: fate.survival(), absorbed: fate.absorbed_share() }
    }
}

impl SurvivalMap {
    /// Of a pair that could be compared.
    pub(super) fn new(survival: &audit::Survival) -> Option<Self> {
        let matrices = &survival.matrices;
        let sum = |wanted: &dyn Fn(&MatrixFate) -> bool| -> Remains {
            Fate::sum(matrices.iter().filter(|matrix| wanted(matrix))).into()
        };
        let modules = |layer: Option<usize>| {
            let inside = |matrix: &&MatrixFate| match layer {
                Some(layer) => matrix.layer == Some(layer),
                None => matrix.layer.is_some(),
            };
            let modules = matrices.iter().filter(inside).map(|matrix| matrix.module);
            let of = |module: &'static str| {
                (module.to_owned(), sum(&|matrix| matrix.module == module && inside(&matrix)))
            };
            modules.map(of).collect()
        };
        let last = matrices.iter().filter_map(|matrix| matrix.layer).max()?;
        let layer = |layer: usize| LayerRemains {
            layer,
            total: sum(&|matrix| matrix.layer == Some(layer)),
            modules: modules(Some(layer)),
        };
        let head = matrices.iter().any(|matrix| matrix.module == HEAD);
        Some(Self {
            total: sum(&|_| true),
            modules: modules(None),
            layers: (0..=last).map(layer).collect(),
            head: head.then(|| sum(&|matrix| matrix.module == HEAD)),
        })
    }
}
