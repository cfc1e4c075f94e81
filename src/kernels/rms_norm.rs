//! RMS norm: `y = h / sqrt(mean(h^2) + eps) * gain` (arXiv 1910.07467).

use std::sync::Arc;

use super::case::{ULP, noise, unwritten};
use super::link::{file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;

params!(Params { rows: u32, d: u32, eps: f32, unused: u32 });

pub(super) const KERNEL: Kernel = Kernel {
    name: "rms_norm",
    sources: || FORMS.into_iter().flat_map(|form| LANES.map(|lanes| source(form, lanes))).collect(),
    params: Params::layout,
    cases,
};

/// Which rows of the residual stream a launch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmsNormForm {
    /// All of them, in order.
    Plain,
    /// Chosen ones.
    Gather,
}

const FORMS: [RmsNormForm; 2] = [RmsNormForm::Plain, RmsNormForm::Gather];

/// A norm of the rows that another kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[d]` f32.
    pub gain: &'a Buffer,
    /// Added to the mean square.
    pub eps: f32,
}

/// Numbers of lanes that share a row.
pub(super) const LANES: [u32; 4] = [8, 16, 32, 64];

/// Lanes that share a row: more for wider rows.
pub(super) fn lanes(d: usize) -> u32 {
    u32::try_from(d / 32).unwrap_or(WG).clamp(8, WG).next_power_of_two()
}

fn source(form: RmsNormForm, lanes: u32) -> Source {
    let name = format!("rms_norm/{form:?} lanes={lanes}");
    let mut source = plain(name, file!("rms_norm.wgsl")).with_index();
    source.overrides.extend([("WG", f64::from(WG)), ("LANES", f64::from(lanes))]);
    source.overrides.push(("GATHER", f64::from(u8::from(form == RmsNormForm::Gather))));
    source
}

/// The kernel in one form.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    form: RmsNormForm,
    lanes: u32,
    pipeline: Arc<Pipeline>,
}

/// A launch's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// The residual stream, `[t, d]` f32.
    pub h: &'a Buffer,
    /// `[m]` u32, rows of `h`; used by the gathering form.
    pub rows: Option<&'a Buffer>,
    /// `[d]` f32.
    pub gain: &'a Buffer,
    /// `[m, d]` f32, overwritten; `m = t` unless gathered.
    pub y: &'a Buffer,
    /// m.
    pub count: usize,
    /// Width, a multiple of 4.
    pub d: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// Compiles the kernel for rows of `d`.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, form: RmsNormForm, d: usize) -> Result<Self> {
        let lanes = lanes(d);
        Ok(Self { form, lanes, pipeline: gpu.pipeline(&source(form, lanes))? })
    }

    /// Records one launch.
    pub fn record(&self, commands: &mut Commands, operands: Operands<'_>) {
        let Operands { h, rows, gain, y, count, d, eps } = operands;
        assert_eq!(rows.is_some(), self.form == RmsNormForm::Gather, "rows are for the gathering form");
        let params = Params { rows: small(count), d: small(d), eps, unused: 0 };
        // `rows` is declared in any case and read only where rows are gathered.
        let buffers = [("h", h), ("rows", rows.unwrap_or(gain)), ("gain", gain), ("y", y)];
        let grid = Grid::flat(count.div_ceil((WG / self.lanes) as usize));
        commands.dispatch(&self.pipeline, &params, &buffers, grid, moving(3 * 4 * count * d));
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in FORMS {
        for (t, d, timed) in
            [(1, 8, false), (3, 72, false), (70, 256, false), (5, 1000, false), (256, 1024, true)]
        {
            cases.push(Case {
                name: format!("rms_norm/{form:?} t={t} d={d}"),
                work: Work::Bytes((3 * 4 * t * d) as u64),
                timed,
                prepare: Box::new(move |gpu| prepare(gpu, form, t, d)),
            });
        }
    }
    cases
}

fn prepare(gpu: &Gpu, form: RmsNormForm, t: usize, d: usize) -> Result<Prepared> {
    let h = noise(11, t * d);
    let gain = noise(13, d);
    let eps = 1e-5;
    // Backwards, and not all of them.
    let gathered = form == RmsNormForm::Gather;
    let rows: Vec<u32> = (0..t).rev().step_by(if gathered { 2 } else { 1 }).map(small).collect();
    let count = rows.len();
    let h_buffer = gpu.upload("h", &h)?;
    let rows_buffer = gpu.upload("rows", &rows)?;
    let gain_buffer = gpu.upload("gain", &gain)?;
    let y = unwritten(gpu, "y", count * d)?;

    let wanted_rows: Vec<usize> =
        if gathered { rows.iter().map(|row| *row as usize).collect() } else { (0..t).collect() };
    let want = move || {
        let values = reference(&h, &gain, f64::from(eps), d, &wanted_rows);
        values.into_iter().map(|value| Want::Near { value, bound: error(d) * value.abs() }).collect()
    };
    let outputs = vec![Output { name: "y", buffer: y.clone(), want: Box::new(want) }];

    let kernel = RmsNorm::new(gpu, form, d)?;
    let record = move |commands: &mut Commands| {
        let rows = gathered.then_some(&rows_buffer);
        let (h, gain, y) = (&h_buffer, &gain_buffer, &y);
        kernel.record(commands, Operands { h, rows, gain, y, count, d, eps });
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// Relative error of a normed value.
pub(super) fn error(d: usize) -> f64 {
    // The sum of squares: a quad's dot product, the lane's running sum, the lanes in order. Half of its
    // relative error, of the division's and of the sum's with eps passes the root, which adds
    // 2 ulp; two products follow.
    let lanes = lanes(d) as usize;
    let depth = 4 + (d / 4).div_ceil(lanes) + lanes;
    (0.5 * (depth as f64 + 2.5 + 1.0) + 2.0 + 2.0) * ULP
}

/// The f64 twin: the norm of the given rows of `h`, `[rows, d]`.
pub(super) fn reference(h: &[f32], gain: &[f32], eps: f64, d: usize, rows: &[usize]) -> Vec<f64> {
    let mut values = Vec::with_capacity(rows.len() * d);
    for row in rows {
        let row = &h[row * d..][..d];
        let squares: f64 = row.iter().map(|h| f64::from(*h) * f64::from(*h)).sum();
        let factor = 1.0 / (squares / d as f64 + eps).sqrt();
        values.extend(row.iter().zip(gain).map(|(h, gain)| f64::from(*h) * factor * f64::from(*gain)));
    }
    values
}
