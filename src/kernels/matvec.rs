//! Dequantize and multiply, few rows of x: one new token a sequence.

use std::sync::Arc;

use super::link::{file, plain, row_lanes};
use super::matmul::{self, Operands};
use super::{Case, Kernel, Matrix};
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::Scheme;

const WG: u32 = 64;
/// Rows of x that a workgroup serves; `matvec.wgsl` has the same number.
const TOKENS: usize = 8;

pub(super) const KERNEL: Kernel = Kernel {
    name: "matvec",
    sources: || matmul::forms(|scheme, bias| source(scheme, bias, 16)),
    params: || (matmul::KERNEL.params)(),
    cases,
};

fn source(scheme: Scheme, bias: bool, lanes: u32) -> Source {
    let name = format!("matvec/{scheme}{}", if bias { "+bias" } else { "" });
    let mut source = plain(name, file!("matvec.wgsl")).with_format(scheme).with_reduce(WG, lanes);
    source.overrides.push(("BIAS", f64::from(u8::from(bias))));
    source
}

/// `y = x W^T (+ bias)` for few rows of x.
///
/// The order of the sum depends on `k` alone, so a token's result does not depend on how many others
/// there are.
#[derive(Clone, Debug)]
pub struct Matvec {
    pipeline: Arc<Pipeline>,
    lanes: u32,
}

impl Matvec {
    /// Compiles the kernel for matrices of `k` columns.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, scheme: Scheme, bias: bool, k: usize) -> Result<Self> {
        let lanes = row_lanes(k / 8, WG);
        Ok(Self { pipeline: gpu.pipeline(&source(scheme, bias, lanes))?, lanes })
    }

    /// Records one launch. `w` must be in the scheme that the kernel was made for.
    pub fn record(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>) {
        let rows = (WG / self.lanes) as usize;
        let grid = Grid::plane(operands.n.div_ceil(rows), operands.t.div_ceil(TOKENS));
        operands.record(commands, &self.pipeline, w, grid);
    }
}

fn cases() -> Vec<Case> {
    matmul::shapes(
        "matvec",
        |gpu, problem| {
            let lanes = row_lanes(problem.k / 8, WG) as usize;
            let sums = (problem.k / 8).div_ceil(lanes) + lanes.ilog2() as usize;
            problem.prepare(gpu, sums, |gpu, scheme, bias, k| {
                let kernel = Matvec::new(gpu, scheme, bias, k)?;
                Ok(Box::new(move |commands, w, operands| kernel.record(commands, w, operands)))
            })
        },
        &[(1, 1, 8), (9, 65, 72), (3, 5, 256), (8, 33, 136), (2, 70, 1000)],
        (1, 1024, 1024),
    )
}
