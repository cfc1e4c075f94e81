//! Dequantize and multiply, few rows of x: one new token a sequence.

use std::sync::Arc;

use super::link::{file, plain};
use super::matmul::{self, Finish, Operands};
use super::{Case, Kernel, Matrix};
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::Scheme;

/// Columns and rows of y that a workgroup computes, and lanes that share a sum; `matvec.wgsl` has the factors.
const TILE_N: usize = 32;
const TILE_T: usize = 8;
const LANES: usize = 8;

pub(super) const KERNEL: Kernel =
    Kernel { name: "matvec", sources: forms, params: || (matmul::REGISTER.params)(), cases };

/// Every scheme and finish.
fn forms() -> Vec<Source> {
    Scheme::ALL.into_iter().flat_map(|scheme| Finish::ALL.map(|finish| source(scheme, finish))).collect()
}

fn source(scheme: Scheme, finish: Finish) -> Source {
    let name = format!("matvec/{scheme}{}", finish.suffix());
    let mut source = plain(name, file!("matvec.wgsl")).with_format(scheme);
    source.parts.push(matmul::PRODUCT);
    source.overrides.extend(finish.overrides());
    source
}

/// `y = x W^T (+ bias)` for few rows of x.
///
/// The order of the sum depends on `k` alone, so a token's result does not depend on how many others
/// there are.
#[derive(Clone, Debug)]
pub struct Matvec {
    pipeline: Arc<Pipeline>,
}

impl Matvec {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, scheme: Scheme, finish: Finish) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source(scheme, finish))? })
    }

    /// Records one launch. `w` must be in the scheme that the kernel was made for.
    pub fn record(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>) {
        let grid = |n: usize, t: usize| Grid::plane(n.div_ceil(TILE_N), t.div_ceil(TILE_T));
        operands.record(commands, &self.pipeline, w, grid);
    }
}

fn cases() -> Vec<Case> {
    matmul::shapes(
        "matvec",
        |gpu, problem| {
            // The dot product of a quad and the sum of two, a lane's running sum, then the lanes in order.
            let sums = 4 + 1 + (problem.k / 8).div_ceil(LANES) + LANES;
            problem.prepare(gpu, sums, |gpu, scheme, finish| {
                let kernel = Matvec::new(gpu, scheme, finish)?;
                Ok(Box::new(move |commands, w, operands| kernel.record(commands, w, operands)))
            })
        },
        &[(1, 1, 8), (9, 65, 72), (3, 5, 256), (8, 33, 136), (2, 70, 1000), (17, 64, 64), (25, 32, 72)],
        (1, 1024, 1024),
    )
}
