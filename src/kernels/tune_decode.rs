//! Chooses the family of a matrix's decode product by timing it on the device.

use super::Matrix;
use super::case::noise;
use super::matmul::{Finish, Operands};
use super::matvec::{Matvec, MatvecFamily};
use super::trial;
use super::tune::alike;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Commands, Gpu};

/// Tokens of the trials: a single stream, and sequences together. One family serves both, since a token's bits must
/// not depend on how many others there are.
const TOKENS: [usize; 2] = [1, 16];

/// Timed submissions; the best counts.
const RUNS: usize = 4;

impl Matvec {
    /// Compiles the family that is fastest here for `n` rows like those of `w` at a time, as [`Gpu::choose`] says: by the time of
    /// a single stream's product and of 16 sequences' together.
    ///
    /// # Errors
    ///
    /// If a shader does not compile or the device fails.
    pub fn tuned(gpu: &Gpu, w: &Matrix, n: usize, finish: Finish) -> Result<Self> {
        let fits = |family: &MatvecFamily| family.runs_on(gpu) && family.reads(w.k);
        let families: Vec<_> = MatvecFamily::ALL.into_iter().filter(fits).collect();
        let source = |family: MatvecFamily| (family.name(), Self::text_of(gpu, family, w.scheme));
        let candidates: Vec<_> = families.iter().map(|family| source(*family)).collect();
        let class = format!("matvec/{} n={n} k={}", w.scheme, w.k);
        let mut trial: Option<Trial<'_>> = None;
        let chosen = gpu.choose(&class, &candidates, &mut |index| {
            let trial = match &mut trial {
                Some(trial) => trial,
                none => none.insert(Trial::new(gpu, w, n)?),
            };
            trial.seconds(families[index])
        })?;
        Self::new(gpu, families[chosen], w.scheme, finish)
    }
}

/// One problem that every family is timed on.
struct Trial<'a> {
    gpu: &'a Gpu,
    w: &'a Matrix,
    n: usize,
    x: Buffer,
    y: Buffer,
    /// What the first family, the safe default, computed.
    expected: Vec<f32>,
}

impl<'a> Trial<'a> {
    fn new(gpu: &'a Gpu, w: &'a Matrix, n: usize) -> Result<Self> {
        let (most, n) = (TOKENS[1], n.min(w.n));
        let x = gpu.upload("a trial's x", &noise(9, most * w.k))?;
        let y = gpu.alloc("a trial's y", (4 * most * n) as u64)?;
        gpu.wait("packing")?;
        Ok(Self { gpu, w, n, x, y, expected: Vec::new() })
    }

    /// Of one launch each, the best of a few; `None` if the family does not compile or computes something else.
    fn seconds(&mut self, family: MatvecFamily) -> Result<Option<f64>> {
        let kernel = match Matvec::new(self.gpu, family, self.w.scheme, Finish::default()) {
            Err(Error::Shader { .. }) if !self.expected.is_empty() => return Ok(None),
            kernel => kernel?,
        };
        let mut sum = 0.0;
        for tokens in TOKENS {
            let (x, y, n) = (&self.x, &self.y, self.n);
            let operands =
                Operands { x, bias: None, y, t: tokens, first_row: 0, n, stride: n, first_column: 0 };
            let record = |commands: &mut Commands| kernel.record(commands, self.w, operands);
            sum += trial::best(self.gpu, RUNS, &record)?;
        }
        let y: Vec<f32> = self.gpu.read(&self.y, TOKENS[1] * self.n)?;
        if self.expected.is_empty() {
            self.expected = y;
        } else if !alike(&self.expected, &y) {
            return Ok(None);
        }
        Ok(Some(sum))
    }
}
