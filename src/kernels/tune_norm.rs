//! Chooses who norms the rows of a decode product by timing both ways on the device.

use std::time::Instant;

use super::Matrix;
use super::case::noise;
use super::matmul::Operands;
use super::matvec::Matvec;
use super::rms_norm::{Norm, Operands as NormOperands, RmsNorm, RmsNormForm};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};

/// A timed submission lasts about so long, in seconds, in no more than so many launches.
const TRIAL_SECONDS: f64 = 0.001;
const MAX_LAUNCHES: f64 = 64.0;

/// Timed submissions; the best counts.
const RUNS: usize = 4;

impl Matvec {
    /// Lets the product norm its rows where that is faster here for one token than a launch for it: [`Gpu::choose`] between
    /// "apart" and "within". The bits are the same.
    ///
    /// # Errors
    ///
    /// If a shader does not compile or the device fails.
    pub fn tuned_norm(self, gpu: &Gpu, w: &Matrix) -> Result<Self> {
        let family = self.family().name();
        let class = format!("norm/{} {family} n={} k={}", w.scheme, w.n, w.k);
        let within = self.normed_source(gpu, w.k, 0);
        let apart = Self::text_of(gpu, self.family(), w.scheme);
        let mut trial: Option<Trial<'_>> = None;
        let chosen = gpu.choose(&class, &[("apart", apart), ("within", within)], &mut |index| {
            let trial = match &mut trial {
                Some(trial) => trial,
                none => none.insert(Trial::new(gpu, self.clone().with_norm(gpu, w.k)?, w)?),
            };
            trial.seconds(index == 1).map(Some)
        })?;
        if chosen == 1 { self.with_norm(gpu, w.k) } else { Ok(self) }
    }
}

/// One token's norm and product.
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

impl<'a> Trial<'a> {
    fn new(gpu: &'a Gpu, product: Matvec, w: &'a Matrix) -> Result<Self> {
        let (h, gain) =
            (gpu.upload("a trial's h", &noise(9, w.k))?, gpu.upload("a trial's gain", &noise(10, w.k))?);
        let (x, y) = (gpu.alloc("a trial's x", 4 * w.k as u64)?, gpu.alloc("a trial's y", 4 * w.n as u64)?);
        let bias = gpu.upload("a trial's bias", &noise(11, w.n))?;
        let norm = RmsNorm::new(gpu, RmsNormForm::Plain, w.k)?;
        gpu.wait("packing")?;
        Ok(Self { gpu, product, norm, w, h, gain, x, y, bias })
    }

    /// Of one way, the best of a few.
    fn seconds(&self, within: bool) -> Result<f64> {
        // Drivers finish compiling at the first launch.
        self.run(within, 1)?;
        let mut best = self.run(within, 1)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to MAX_LAUNCHES")]
        let launches = (TRIAL_SECONDS / best.max(1e-9)).clamp(1.0, MAX_LAUNCHES) as usize;
        for _ in 0..RUNS {
            best = best.min(self.run(within, launches)? / launches as f64);
        }
        Ok(best)
    }

    /// Wall seconds of one submission.
    fn run(&self, within: bool, launches: usize) -> Result<f64> {
        let mut commands = Commands::new();
        let (h, gain, y, d, eps) = (&self.h, &self.gain, &self.y, self.w.k, 1e-5);
        let operands = |x| {
            let (bias, n) = (Some(&self.bias), self.w.n);
            Operands { x, bias, y, t: 1, first_row: 0, n, stride: n, first_column: 0 }
        };
        for _ in 0..launches {
            if within {
                self.product.record_normed(&mut commands, self.w, operands(h), Norm { gain, eps });
            } else {
                let rows = NormOperands { h, rows: None, gain, y: &self.x, count: 1, d, eps };
                self.norm.record(&mut commands, rows);
                self.product.record(&mut commands, self.w, operands(&self.x));
            }
        }
        let start = Instant::now();
        commands.submit(self.gpu)?;
        self.gpu.wait("a trial")?;
        Ok(start.elapsed().as_secs_f64())
    }
}
