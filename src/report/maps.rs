//! What became of an update where it stands, layer by layer and module by module: in the records.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::{self, Fate, HEAD, MatrixFate};

/// A figure of the quantized matrices of a model, by layer and module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Map<F> {
    /// All quantized matrices.
    pub total: F,
    /// By the module's name, over all layers.
    pub modules: BTreeMap<String, F>,
    /// Each layer.
    pub layers: Vec<LayerMap<F>>,
    /// The output head, if it is quantized.
    // Named, since a plain default wants one of F.
    #[serde(default = "Option::<F>::default", skip_serializing_if = "Option::is_none")]
    pub head: Option<F>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerMap<F> {
    /// Its number, from 0.
    pub layer: usize,
    /// All its matrices.
    pub total: F,
    /// Each of its matrices, by the module's name.
    pub modules: BTreeMap<String, F>,
}

/// Which matrices are wanted, by layer (the head has none) and module.
pub(super) type Wanted<'a> = dyn Fn(Option<usize>, &str) -> bool + 'a;

impl<F> Map<F> {
    /// Of matrices in these layers and modules; `sum` is the figure of those that are wanted.
    pub(super) fn new(matrices: &[(Option<usize>, &'static str)], sum: &dyn Fn(&Wanted<'_>) -> F) -> Self {
        let modules = |inside: &dyn Fn(Option<usize>) -> bool| {
            let own = matrices.iter().filter(|(layer, module)| *module != HEAD && inside(*layer));
            let own: BTreeSet<_> = own.map(|&(_, module)| module).collect();
            let of = |module| sum(&|layer, other| other == module && inside(layer));
            own.into_iter().map(|module| (module.to_owned(), of(module))).collect()
        };
        let layer = |number: usize| LayerMap {
            layer: number,
            total: sum(&|layer, _| layer == Some(number)),
            modules: modules(&|layer| layer == Some(number)),
        };
        let layers = matrices.iter().filter_map(|(layer, _)| *layer).max().map_or(0, |last| last + 1);
        let head = matrices.iter().any(|(_, module)| *module == HEAD);
        Self {
            total: sum(&|_, _| true),
            modules: modules(&|layer| layer.is_some()),
            layers: (0..layers).map(layer).collect(),
            head: head.then(|| sum(&|_, module| module == HEAD)),
        }
    }
}

/// What a precision keeps of an update.
pub type SurvivalMap = Map<Remains>;

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

/// Of a pair that could be compared.
pub(super) fn survival_map(survival: &audit::Survival) -> Option<SurvivalMap> {
    let matrices = &survival.matrices;
    let sum = |wanted: &Wanted<'_>| -> Remains {
        let own = |matrix: &&MatrixFate| wanted(matrix.layer, matrix.module);
        Fate::sum(matrices.iter().filter(own)).into()
    };
    let places: Vec<_> = matrices.iter().map(|matrix| (matrix.layer, matrix.module)).collect();
    (!places.is_empty()).then(|| Map::new(&places, &sum))
}
