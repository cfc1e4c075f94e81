//! Chooses who norms the rows of a decode product by timing both ways on the device.

use super::Matrix;
use super::case::noise;
use super::matmul::Operands;
use super::matvec::{Matvec, NORMED_TOKENS};
use super::rms_norm::{Norm, Operands as NormOperands, RmsNorm, RmsNormForm};
use super::trial;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Commands, Gpu};

/// Timed submissions; the best counts.
const RUNS: usize = 4;

impl Matvec {
    /// Lets the product norm its rows where that is faster here for one token than a launch for it: [`Gpu::choose`] between
    /// "apart" and "within". A product whose bits are not those of a norm before it is not taken.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn tuned_norm(self, gpu: &Gpu, w: &Matrix) -> Result<Self> {
        let family = self.family().name();
        let class = format!("norm/{} {family} n={} k={}", w.scheme, w.n, w.k);
        let within = self.normed_source(gpu, w.k, 0);
        let apart = Self::text_of(gpu, self.family(), w.scheme);
        let mut trial: Option<Trial<'_>> = None;
        let chosen = gpu.choose(&class, &[("apart", apart), ("within", within)], &mut |index| {
            let trial = match &mut trial {
                Some(trial) => trial,
                none => none.insert(Trial::new(gpu, self.clone(), w)?),
            };
            if index == 0 { trial.apart().map(Some) } else { trial.within() }
        })?;
        if chosen == 1 { self.with_norm(gpu, w.k) } else { Ok(self) }
    }
}

/// Norm and product of a few tokens.
struct Trial<'a> {
    gpu: &'a Gpu,
    product: Matvec,
    norm: RmsNorm,
    w: &'a Matrix,
    h: Buffer,
    gain: Buffer,
    x: Buffer,
    y: Buffer,
    bias: Buffer,
}

const EPS: f32 = 1e-5;

impl<'a> Trial<'a> {
    fn new(gpu: &'a Gpu, product: Matvec, w: &'a Matrix) -> Result<Self> {
        let [h, gain] = [("a trial's h", NORMED_TOKENS * w.k), ("a trial's gain", w.k)];
        let (h, gain) = (gpu.upload(h.0, &noise(9, h.1))?, gpu.upload(gain.0, &noise(10, gain.1))?);
        let room = |what, columns: usize| gpu.alloc(what, (4 * NORMED_TOKENS * columns) as u64);
        let (x, y) = (room("a trial's x", w.k)?, room("a trial's y", w.n)?);
        let bias = gpu.upload("a trial's bias", &noise(11, w.n))?;
        let norm = RmsNorm::new(gpu, RmsNormForm::Plain, w.k)?;
        gpu.wait("packing")?;
        Ok(Self { gpu, product, norm, w, h, gain, x, y, bias })
    }

    fn operands<'b>(&'b self, x: &'b Buffer, t: usize) -> Operands<'b> {
        let (bias, n) = (Some(&self.bias), self.w.n);
        Operands { x, bias, y: &self.y, t, first_row: 0, n, stride: n, first_column: 0 }
    }

    fn record_apart(&self, commands: &mut Commands, t: usize) {
        let (h, gain, d) = (&self.h, &self.gain, self.w.k);
        self.norm.record(commands, NormOperands { h, rows: None, gain, y: &self.x, count: t, d, eps: EPS });
        self.product.record(commands, self.w, self.operands(&self.x, t));
    }

    /// Seconds of a norm and a product after it.
    fn apart(&self) -> Result<f64> {
        trial::best(self.gpu, RUNS, &|commands| self.record_apart(commands, 1))
    }

    /// Seconds of a product that norms; `None` if it does not compile or gives other bits.
    fn within(&self) -> Result<Option<f64>> {
        let product = match self.product.clone().with_norm(self.gpu, self.w.k) {
            Err(Error::Shader { .. }) => return Ok(None),
            product => product?,
        };
        let norm = Norm { gain: &self.gain, eps: EPS };
        let record = |commands: &mut Commands, t: usize| {
            product.record_normed(commands, self.w, self.operands(&self.h, t), norm);
        };
        // One token, and as many as the larger tile takes.
        for t in [1, NORMED_TOKENS] {
            let bits = |record: &dyn Fn(&mut Commands)| -> Result<Vec<u32>> {
                self.gpu.write(&self.y, &vec![0u32; NORMED_TOKENS * self.w.n]);
                trial::seconds(self.gpu, 1, record)?;
                self.gpu.read(&self.y, NORMED_TOKENS * self.w.n)
            };
            if bits(&|commands| self.record_apart(commands, t))? != bits(&|commands| record(commands, t))? {
                return Ok(None);
            }
        }
        trial::best(self.gpu, RUNS, &|commands| record(commands, 1)).map(Some)
    }
}
