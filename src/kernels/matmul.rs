//! Dequantize and multiply, many rows of x: `y = x W^T (+ bias)`.

use std::sync::Arc;

use super::case::{noise, rounding, unwritten};
use super::family::Family;
use super::link::{file, params};
use super::pack::{Packer, Stored, awkward_weights, small, stored};
use super::split::{moving, token_ranges};
use super::{Case, Kernel, Matrix, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Scheme};

/// What all products declare alike.
pub(super) const PRODUCT: (&str, &str) = file!("common/product.wgsl");

params!(
    /// Of `common/product.wgsl`, which all families and `matvec.wgsl` link.
    Params { t: u32, n: u32, k: u32, first_row: u32, stride: u32, first_column: u32 }
);

/// What a kernel of `y = x W^T` does with a sum before it stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Finish {
    /// Adds a bias.
    pub bias: bool,
    /// Adds what y holds, after the bias: `y += x W^T (+ bias)`.
    pub add: bool,
}

impl Finish {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self { bias: false, add: false },
        Self { bias: true, add: false },
        Self { bias: false, add: true },
        Self { bias: true, add: true },
    ];

    /// What stands behind the scheme in a kernel's name.
    pub(super) fn suffix(self) -> &'static str {
        match (self.bias, self.add) {
            (false, false) => "",
            (true, false) => "+bias",
            (false, true) => "+add",
            (true, true) => "+bias+add",
        }
    }

    /// The shader's switches.
    pub(super) fn overrides(self) -> [(&'static str, f64); 2] {
        [("BIAS", f64::from(u8::from(self.bias))), ("ADD", f64::from(u8::from(self.add)))]
    }
}

/// The kernels of the families.
pub(super) const KERNELS: [Kernel; 5] = [
    Kernel {
        name: "matmul",
        sources: || forms(Family::Register),
        params: Params::layout,
        cases: || cases(Family::Register),
    },
    Kernel {
        name: "matmul_subgroup",
        sources: || forms(Family::Subgroup),
        params: Params::layout,
        cases: || cases(Family::Subgroup),
    },
    Kernel {
        name: "matmul_subgroup_16x8",
        sources: || forms(Family::Subgroup16x8),
        params: Params::layout,
        cases: || cases(Family::Subgroup16x8),
    },
    Kernel {
        name: "matmul_subgroup_32x4",
        sources: || forms(Family::Subgroup32x4),
        params: Params::layout,
        cases: || cases(Family::Subgroup32x4),
    },
    Kernel {
        name: "matmul_shared",
        sources: || forms(Family::Shared),
        params: Params::layout,
        cases: || cases(Family::Shared),
    },
];

/// One of them, for what all of them and `matvec.wgsl` declare alike.
pub(super) const REGISTER: Kernel = KERNELS[0];

fn forms(family: Family) -> Vec<Source> {
    Scheme::ALL.into_iter().flat_map(|scheme| family.sources(scheme)).collect()
}

/// `y = x W^T (+ bias)` for many rows of x.
#[derive(Clone, Debug)]
pub struct Matmul {
    family: Family,
    pipeline: Arc<Pipeline>,
}

/// A launch's operands besides the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[t, k]` f32.
    pub x: &'a Buffer,
    /// `[n]` f32, if the kernel was made with a bias.
    pub bias: Option<&'a Buffer>,
    /// `[t, n]` f32, overwritten or added to.
    pub y: &'a Buffer,
    /// Rows of x.
    pub t: usize,
    /// First row of the matrix to use.
    pub first_row: usize,
    /// Rows of the matrix to use: columns of y.
    pub n: usize,
}

impl Operands<'_> {
    /// Records the launch of `pipeline`, matmul or matvec, on the `grid` for numbers of columns and tokens; several
    /// launches if one would be too long, or the matrix has parts.
    pub(super) fn record(
        self,
        commands: &mut Commands,
        pipeline: &Arc<Pipeline>,
        w: &Matrix,
        grid: impl Fn(usize, usize) -> Grid,
    ) {
        let Self { x, bias, y, t, first_row, n } = self;
        assert!(first_row + n <= w.n, "rows {first_row}+{n} of {}", w.n);
        let (x_row, y_row) = (4 * w.k, 4 * n);
        for (part, rows, first_column) in w.parts_of(first_row..first_row + n) {
            let token_work = (2 * rows.len() * w.k) as u64 + moving(x_row + 4 * rows.len());
            for (tokens, work) in token_ranges(commands, t, &[x_row, y_row], |_| token_work) {
                let of_tokens = |buffer: &Buffer, row: usize| {
                    buffer.slice((tokens.start * row) as u64, (tokens.len() * row) as u64)
                };
                let params = Params {
                    t: small(tokens.len()),
                    n: small(rows.len()),
                    k: small(w.k),
                    first_row: small(rows.start),
                    stride: small(n),
                    first_column: small(first_column),
                };
                commands.dispatch(
                    pipeline,
                    &params,
                    &[
                        ("weights", &part.weights),
                        ("scales", &part.scales),
                        ("x", &of_tokens(x, x_row)),
                        // Declared in any case, read only where the kernel was made with a bias.
                        ("bias", bias.unwrap_or(&part.scales)),
                        ("y", &of_tokens(y, y_row)),
                    ],
                    grid(rows.len(), tokens.len()),
                    work + moving(rows.len() * w.row_bytes()),
                );
            }
        }
    }
}

impl Matmul {
    /// Compiles the kernel of `family`, which must run on the device.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, family: Family, scheme: Scheme, finish: Finish) -> Result<Self> {
        Ok(Self { family, pipeline: gpu.pipeline(&family.source_on(gpu, scheme, finish))? })
    }

    /// Records one launch. `w` must be in the scheme that the kernel was made for.
    pub fn record(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>) {
        operands.record(commands, &self.pipeline, w, |n, t| self.family.grid(n, t));
    }
}

fn cases(family: Family) -> Vec<Case> {
    let shapes = |ragged, large| {
        shapes(
            family.kernel(),
            move |gpu, problem| {
                // A value passes the dequantizing product, a chain of eight products and the sum of the eights.
                problem.prepare(gpu, 8 + problem.k / 8, move |gpu, scheme, finish| {
                    let kernel = Matmul::new(gpu, family, scheme, finish)?;
                    Ok(Box::new(move |commands, w, operands| kernel.record(commands, w, operands)))
                })
            },
            ragged,
            large,
        )
    };
    let ragged = &[(1, 1, 8), (33, 65, 72), (8, 4, 256), (70, 31, 136), (31, 130, 1000), (17, 257, 64)];
    // A square matrix, one with more rows than columns and one with fewer.
    let mut cases = shapes(ragged, (128, 512, 512));
    cases.extend(shapes(&[], (64, 1024, 256)));
    cases.extend(shapes(&[], (64, 256, 1024)));
    cases
}

/// How a wrapper records one launch.
pub(super) type Record = Box<dyn Fn(&mut Commands, &Matrix, Operands<'_>)>;

/// `y (+)= x W^T (+ bias)`, leaving out row 0 of the matrix where there is a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    scheme: Scheme,
    finish: Finish,
    t: usize,
    n: usize,
    pub(super) k: usize,
}

/// One case for each format and shape, and a timed one for each format.
pub(super) fn shapes(
    kernel: &str,
    prepare: impl Fn(&Gpu, Problem) -> Result<Prepared> + Copy + 'static,
    ragged: &[(usize, usize, usize)],
    large: (usize, usize, usize),
) -> Vec<Case> {
    let mut cases = Vec::new();
    for scheme in Scheme::ALL {
        let shapes = ragged.iter().map(|shape| (*shape, false)).chain([(large, true)]);
        for (index, ((t, n, k), timed)) in shapes.enumerate() {
            let finish = Finish::ALL[index % 4];
            let problem = Problem { scheme, finish, t, n, k };
            cases.push(Case {
                name: format!("{kernel}/{scheme}{} t={t} n={n} k={k}", finish.suffix()),
                work: Work::Both {
                    flops: (2 * t * n * k) as u64,
                    bytes: Matrix::bytes_of(scheme, n, k) + (4 * t * (n + k)) as u64,
                },
                timed,
                prepare: Box::new(move |gpu| prepare(gpu, problem)),
            });
        }
    }
    cases
}

impl Problem {
    /// `sums` is the longest chain of roundings from the first product to the sum without its bias.
    pub(super) fn prepare(
        self,
        gpu: &Gpu,
        sums: usize,
        wrapper: impl Fn(&Gpu, Scheme, Finish) -> Result<Record>,
    ) -> Result<Prepared> {
        let Self { scheme, finish, t, n, k } = self;
        let Finish { bias, add } = finish;
        // With a bias, also try a launch that starts inside the matrix.
        let first_row = usize::from(bias);
        let rows = n + first_row;
        let dtype = if scheme.is_full() { scheme } else { Scheme::F16 };
        let bytes = stored(dtype, &awkward_weights(3, rows, k));
        let w = Packer::default().pack_one(
            gpu,
            scheme,
            Stored { name: "w", dtype, bytes: &bytes, n: rows, k },
        )?;
        let x = noise(5, t * k);
        let biases = noise(6, n);
        let before = noise(8, t * n);
        let x_buffer = gpu.upload("x", &x)?;
        let bias_buffer = gpu.upload("bias", &biases)?;
        let y = if add { gpu.upload("y", &before)? } else { unwritten(gpu, "y", t * n)? };

        let seen = bytemuck::pod_collect_to_vec(&bytes);
        let full = quant::Packed { scheme: dtype, rows, cols: k, words: seen, scales: vec![] };
        let want = move || {
            let seen = quant::decode(&full);
            let seen = quant::decode(&quant::encode(scheme, &seen, rows, k));
            let bound = rounding(1 + sums + usize::from(bias) + usize::from(add));
            let biases = biases.iter().map(|b| if bias { f64::from(*b) } else { 0.0 });
            let biases: Vec<_> = biases.collect();
            reference(&seen[first_row * k..], &x, &biases, k)
                .into_iter()
                .zip(before.iter().map(|y| if add { f64::from(*y) } else { 0.0 }))
                .map(|((sum, magnitude), before)| Want::Near {
                    value: sum + before,
                    bound: bound * (magnitude + before.abs()),
                })
                .collect()
        };
        let kernel = wrapper(gpu, scheme, finish)?;
        let outputs = vec![Output { name: "y", buffer: y.clone(), want: Box::new(want) }];
        let record = move |commands: &mut Commands| {
            let bias = bias.then_some(&bias_buffer);
            kernel(commands, &w, Operands { x: &x_buffer, bias, y: &y, t, first_row, n });
        };
        Ok(Prepared { record: Box::new(record), outputs })
    }
}

/// The f64 twin: `[t, n]` values of `x W^T + bias`, each with the sum of the magnitudes in it.
///
/// `w` is `[n, k]` as the device sees it (decoded), `x` is `[t, k]`.
pub(super) fn reference(w: &[f32], x: &[f32], bias: &[f64], k: usize) -> Vec<(f64, f64)> {
    let mut values = Vec::with_capacity(x.len() / k * bias.len());
    for token in x.chunks(k) {
        for (row, bias) in w.chunks(k).zip(bias) {
            let products = row.iter().zip(token).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p: f64| (s + p, m + p.abs()));
            values.push((sum + bias, magnitude + bias.abs()));
        }
    }
    values
}
