//! The feed-forward gate: `y = silu(gate) * up` (arXiv 2002.05202).

use std::sync::Arc;

use super::case::{ULP, exp_error, noise, unwritten};
use super::link::{SILU, file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;

params!(Params { quads: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "swiglu", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("swiglu".to_owned(), file!("swiglu.wgsl")).with_index();
    source.parts.push(SILU);
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// `y = silu(gate) * up`.
#[derive(Clone, Debug)]
pub struct Swiglu {
    pipeline: Arc<Pipeline>,
}

impl Swiglu {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source())? })
    }

    /// Records one launch over `count` values, a multiple of 4; all buffers f32.
    pub fn record(&self, commands: &mut Commands, gate: &Buffer, up: &Buffer, y: &Buffer, count: usize) {
        let params = Params { quads: small(count / 4) };
        let grid = Grid::flat((count / 4).div_ceil(WG as usize));
        commands.dispatch(
            &self.pipeline,
            &params,
            &[("gate", gate), ("up", up), ("y", y)],
            grid,
            moving(12 * count),
        );
    }
}

fn cases() -> Vec<Case> {
    [(8, false), (260, false), (4096, false), (1 << 20, true)]
        .into_iter()
        .map(|(count, timed)| Case {
            name: format!("swiglu/ count={count}"),
            work: Work::Bytes(12 * count as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, count)),
        })
        .collect()
}

fn prepare(gpu: &Gpu, count: usize) -> Result<Prepared> {
    let mut gate: Vec<f32> = noise(21, count).iter().map(|g| 6.0 * g).collect();
    // Where exp(-gate) would overflow, and where it is 0.
    (gate[0], gate[1]) = (-1000.0, 1000.0);
    let up = noise(22, count);
    let gate_buffer = gpu.upload("gate", &gate)?;
    let up_buffer = gpu.upload("up", &up)?;
    let y = unwritten(gpu, "y", count)?;
    let want = move || {
        // exp, the sum with 1, the division (2.5 ulp), the product; and what is lost below -80.
        let near = |(gate, up): (&f32, &f32)| {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let value = reference(gate, up);
            let relative = exp_error(gate.clamp(-80.0, 20.0)) + 4.5 * ULP;
            Want::Near { value, bound: relative * value.abs() + 1e-30 * up.abs() }
        };
        gate.iter().zip(&up).map(near).collect()
    };
    let kernel = Swiglu::new(gpu)?;
    let outputs = vec![Output { name: "y", buffer: y.clone(), want: Box::new(want) }];
    let record = move |commands: &mut Commands| kernel.record(commands, &gate_buffer, &up_buffer, &y, count);
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin.
fn reference(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}
