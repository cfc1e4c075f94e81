//! Chooses the family of a matrix's prefill product by timing it on the device.

use super::Matrix;
use super::case::noise;
use super::family::Family;
use super::matmul::{Finish, Matmul, Operands};
use super::trial;
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu};

/// Tokens of a trial: one number, since a token's bits must not depend on how many others there are.
const TOKENS: usize = 128;

/// Products of a trial, about: a few milliseconds on a software adapter, and on others enough to fill them.
const SOFTWARE_PRODUCTS: usize = 1 << 23;
const PRODUCTS: usize = 1 << 31;

/// Rows of the matrix in a trial at least, for the sake of the largest tile.
const LEAST_ROWS: usize = 256;

/// Timed submissions; the best counts.
const RUNS: usize = 3;

impl Matmul {
    /// Compiles the family that is fastest here for `n` rows like those of `w` at a time, as [`Gpu::choose`] says.
    ///
    /// Phase, not size, decides between this and [`super::Matvec`], and one family serves batches of every
    /// size: so a token's bits do not depend on its batch. Another family may change the last bits, since a
    /// compiler may fuse a product and a sum or not; all add up in the same order and agree exactly on the
    /// adapters that the tests know.
    ///
    /// # Errors
    ///
    /// If a shader does not compile or the device fails.
    pub fn tuned(gpu: &Gpu, w: &Matrix, n: usize, finish: Finish) -> Result<Self> {
        let families: Vec<_> = Family::ALL.into_iter().filter(|family| family.runs_on(gpu)).collect();
        let source = |family: Family| (family.name(), family.source_on(gpu, w.scheme, Finish::default()));
        let candidates: Vec<_> = families.iter().map(|family| source(*family)).collect();
        let class = format!("matmul/{} n={n} k={}", w.scheme, w.k);
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
    rows: usize,
    x: crate::gpu::Buffer,
    y: crate::gpu::Buffer,
    /// In a submission; settled by the first family.
    launches: Option<usize>,
    best: f64,
    /// What the first family, the safe default, computed.
    expected: Vec<f32>,
}

impl<'a> Trial<'a> {
    fn new(gpu: &'a Gpu, w: &'a Matrix, n: usize) -> Result<Self> {
        let products = if gpu.info().is_software() { SOFTWARE_PRODUCTS } else { PRODUCTS };
        let rows = n.min(w.n).min((products / TOKENS / w.k).max(LEAST_ROWS));
        let x = gpu.upload("a trial's x", &noise(9, TOKENS * w.k))?;
        let y = gpu.alloc("a trial's y", (4 * TOKENS * rows) as u64)?;
        gpu.wait("packing")?;
        Ok(Self { gpu, w, rows, x, y, launches: None, best: f64::INFINITY, expected: Vec::new() })
    }

    /// Of one launch, the best of a few; `None` if the family does not compile or computes something else.
    fn seconds(&mut self, family: Family) -> Result<Option<f64>> {
        let kernel = match Matmul::new(self.gpu, family, self.w.scheme, Finish::default()) {
            Err(Error::Shader { .. }) if !self.expected.is_empty() => return Ok(None),
            kernel => kernel?,
        };
        // Drivers finish compiling at the first launch.
        self.run(&kernel, 1)?;
        let y: Vec<f32> = self.gpu.read(&self.y, TOKENS * self.rows)?;
        if self.expected.is_empty() {
            self.expected = y;
        } else if !alike(&self.expected, &y) {
            return Ok(None);
        }
        let mut best = self.run(&kernel, 1)?;
        // Far behind already: not worth more time.
        if best > 3.0 * self.best {
            return Ok(Some(best));
        }
        let launches = *self.launches.get_or_insert(trial::launches(best));
        for _ in 0..RUNS {
            best = best.min(self.run(&kernel, launches)? / launches as f64);
        }
        self.best = self.best.min(best);
        Ok(Some(best))
    }

    /// Wall seconds of one submission.
    fn run(&self, kernel: &Matmul, launches: usize) -> Result<f64> {
        let (x, y, n) = (&self.x, &self.y, self.rows);
        let operands = Operands { x, bias: None, y, t: TOKENS, first_row: 0, n, stride: n, first_column: 0 };
        let record = |commands: &mut Commands| kernel.record(commands, self.w, operands);
        trial::seconds(self.gpu, launches, &record)
    }
}

/// Whether two products differ by no more than rounding, far less than by one wrong operand.
pub(super) fn alike(expected: &[f32], found: &[f32]) -> bool {
    let largest = expected.iter().fold(0.0f32, |largest, y| largest.max(y.abs()));
    expected.iter().zip(found).all(|(a, b)| (a - b).abs() <= 1e-4 * largest)
}
