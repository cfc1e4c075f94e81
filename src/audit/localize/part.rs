//! What of an unlearned checkpoint is quantized.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Config};
use crate::error::{Error, Result};
use crate::model::{Linear, Source};
use crate::quant::Precision;

/// A matrix of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its layer, from 0.
    pub layer: usize,
    /// Which of its matrices.
    pub(super) linear: Linear,
}

impl Block {
    /// `q_proj`, `gate_proj`, ...
    #[must_use]
    pub fn module(self) -> &'static str {
        self.linear.short_name()
    }

    fn tensor(self) -> String {
        self.linear.name(self.layer)
    }

    /// All blocks of a model, layer by layer in the order of use.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        (0..config.layers).flat_map(|layer| Linear::ALL.map(|linear| Self { layer, linear })).collect()
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers.{}.{}", self.layer, self.module())
    }
}

/// Names of the matrices of a layer, in the order of their use.
#[must_use]
pub fn modules() -> [&'static str; 7] {
    Linear::ALL.map(Linear::short_name)
}

/// What an arm is, or what of it is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The target at full precision.
    TargetFull,
    /// The target, quantized.
    Target,
    /// The unlearned model at full precision.
    Nothing,
    /// The unlearned model, quantized.
    All,
    /// One matrix.
    Block(Block),
    /// All matrices of a layer.
    Layer(usize),
    /// All matrices of a kind.
    Module(&'static str),
    /// All matrices of the first so many layers.
    Prefix(usize),
    /// All matrices but these.
    AllBut(Vec<Block>),
}

impl Part {
    /// The kind's name in reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TargetFull => "target_full",
            Self::Target => "target",
            Self::Nothing => "nothing",
            Self::All => "all",
            Self::Block(_) => "block",
            Self::Layer(_) => "layer",
            Self::Module(_) => "module",
            Self::Prefix(_) => "prefix",
            Self::AllBut(_) => "all_but",
        }
    }

    /// Whether a block is quantized in an unlearned arm.
    fn takes(&self, block: Block) -> bool {
        match self {
            Self::TargetFull | Self::Target | Self::Nothing => false,
            Self::All => true,
            Self::Block(own) => *own == block,
            Self::Layer(layer) => *layer == block.layer,
            Self::Module(module) => *module == block.module(),
            Self::Prefix(layers) => block.layer < *layers,
            Self::AllBut(kept) => !kept.contains(&block),
        }
    }

    /// What the arm is made of.
    pub(super) fn source(
        &self,
        target: &Arc<Checkpoint>,
        unlearned: &Arc<Checkpoint>,
        precision: Precision,
    ) -> Source {
        match self {
            Self::TargetFull => Source::new(target, Precision::Full),
            Self::Target => Source::new(target, precision),
            Self::Nothing => Source::new(unlearned, Precision::Full),
            Self::All => Source::new(unlearned, precision),
            _ => {
                let blocks = Block::all(unlearned.config()).into_iter().filter(|block| self.takes(*block));
                let only: BTreeSet<String> = blocks.map(Block::tensor).collect();
                Source { only: Some(Arc::new(only)), ..Source::new(unlearned, precision) }
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TargetFull | Self::Target | Self::Nothing | Self::All => f.write_str(self.kind()),
            Self::Block(block) => block.fmt(f),
            Self::Layer(layer) => write!(f, "layers.{layer}"),
            Self::Module(module) => f.write_str(module),
            Self::Prefix(layers) => write!(f, "the first {layers} layers"),
            Self::AllBut(kept) => write!(f, "all but {}", kept.len()),
        }
    }
}

/// How a model is taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Every matrix by itself.
    Block,
    /// Every layer.
    Layer,
    /// Every kind of matrix, over all layers.
    Module,
    /// The first layers, one more each time.
    Prefix,
}

impl By {
    /// All ways.
    pub const ALL: [Self; 4] = [Self::Block, Self::Layer, Self::Module, Self::Prefix];

    /// The parts that a model is taken into.
    pub(super) fn parts(self, config: &Config) -> Vec<Part> {
        match self {
            Self::Block => Block::all(config).into_iter().map(Part::Block).collect(),
            Self::Layer => (0..config.layers).map(Part::Layer).collect(),
            Self::Module => modules().map(Part::Module).into(),
            Self::Prefix => (1..config.layers).map(Part::Prefix).collect(),
        }
    }
}

impl std::str::FromStr for By {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "block" => Ok(Self::Block),
            "layer" => Ok(Self::Layer),
            "module" => Ok(Self::Module),
            "prefix" => Ok(Self::Prefix),
            other => Err(Error::Flag {
                flag: "--by",
                found: other.to_owned(),
                expected: "block, layer, module or prefix".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_take_what_they_say() {
        let block = |layer, linear| Block { layer, linear };
        let q1 = block(1, Linear::Q);
        assert!(Part::Block(q1).takes(q1) && !Part::Block(q1).takes(block(0, Linear::Q)));
        assert!(
            Part::Layer(1).takes(block(1, Linear::Down)) && !Part::Layer(1).takes(block(2, Linear::Down))
        );
        assert!(Part::Module("q_proj").takes(q1) && !Part::Module("q_proj").takes(block(1, Linear::K)));
        assert!(Part::Prefix(2).takes(q1) && !Part::Prefix(1).takes(q1));
        assert!(!Part::AllBut(vec![q1]).takes(q1) && Part::AllBut(vec![q1]).takes(block(0, Linear::Q)));
        assert!(Part::All.takes(q1) && !Part::Nothing.takes(q1));
        assert_eq!(q1.to_string(), "layers.1.q_proj");
    }
}
