//! Dequantize and multiply, many rows of x: `y = x W^T (+ bias)`.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::case::{ULP, exp_error, noise, rounding, unwritten};
use super::family::Family;
use super::link::{file, params};
use super::pack::{Packer, Stored, awkward_weights, small, stored};
use super::rms_norm::{self, Norm};
use super::split::{moving, token_ranges};
use super::{Case, Kernel, Matrix, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Scheme};

/// What all products declare alike.
pub(super) const PRODUCT: (&str, &str) = file!("common/product.wgsl");

params!(
    /// Of `common/product.wgsl`, which all families and `matvec.wgsl` link.
    Params {
        t: u32,
        n: u32,
        k: u32,
        first_row: u32,
        stride: u32,
        first_column: u32,
        first_bias: u32,
        eps: f32,
    }
);

/// What a kernel of `y = x W^T` does with a sum before it stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Finish {
    /// Adds a bias.
    pub bias: bool,
    /// Adds what y holds, after the bias: `y += x W^T (+ bias)`.
    pub add: bool,
    /// Multiplies the second half of the columns by silu of the first: `y = silu(x G^T) * x U^T`, where the matrix is
    /// the rows of G, then those of U. Goes with neither of the others.
    pub gated: bool,
}

impl Finish {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self { bias: false, add: false, gated: false },
        Self { bias: true, add: false, gated: false },
        Self { bias: false, add: true, gated: false },
        Self { bias: true, add: true, gated: false },
        Self { bias: false, add: false, gated: true },
    ];

    /// Columns of y that `rows` rows of the matrix give.
    #[must_use]
    pub fn columns(self, rows: usize) -> usize {
        if self.gated { rows / 2 } else { rows }
    }

    /// What stands behind the scheme in a kernel's name.
    pub(super) fn suffix(self) -> &'static str {
        match (self.bias, self.add) {
            _ if self.gated => "+gated",
            (false, false) => "",
            (true, false) => "+bias",
            (false, true) => "+add",
            (true, true) => "+bias+add",
        }
    }

    /// The shader's switches.
    pub(super) fn overrides(self) -> [(&'static str, f64); 3] {
        let switch = |on| f64::from(u8::from(on));
        [("BIAS", switch(self.bias)), ("ADD", switch(self.add)), ("GATED", switch(self.gated))]
    }
}

/// The kernels of the families.
pub(super) const KERNELS: [Kernel; 6] = [
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
        name: "matmul_subgroup_64x12",
        sources: || forms(Family::Subgroup64x12),
        params: Params::layout,
        cases: || cases(Family::Subgroup64x12),
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
    finish: Finish,
    /// The last takes what the ones before it leave over.
    pipelines: Vec<(Family, Arc<Pipeline>)>,
}

/// A launch's operands besides the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[t, k]` f32.
    pub x: &'a Buffer,
    /// `[n]` f32, if the kernel was made with a bias.
    pub bias: Option<&'a Buffer>,
    /// `[t, stride]` f32, of which n columns from `first_column` on are overwritten or added to; half as many where the
    /// kernel gates.
    pub y: &'a Buffer,
    /// Rows of x.
    pub t: usize,
    /// First row of the matrix to use.
    pub first_row: usize,
    /// Rows of the matrix to use.
    pub n: usize,
    /// Columns of y in all.
    pub stride: usize,
    /// The first column of y.
    pub first_column: usize,
}

/// Where the rows of a range of tokens are, in a buffer of `row` bytes a token.
fn rows_at(buffer: &Buffer, tokens: &Range<usize>, row: usize) -> Buffer {
    buffer.slice((tokens.start * row) as u64, (tokens.len() * row) as u64)
}

impl Operands<'_> {
    /// Records the launch of `pipeline`, matmul or matvec, on the `grid` for numbers of columns and tokens; several
    /// launches if one would be too long, or the matrix has parts. A pipeline that norms x itself needs the norm.
    pub(super) fn record(
        self,
        commands: &mut Commands,
        pipeline: &Arc<Pipeline>,
        w: &Matrix,
        (finish, norm): (Finish, Option<Norm<'_>>),
        grid: impl Fn(usize, usize) -> Grid,
    ) {
        let Self { x, bias, y, t, first_row, n, stride, first_column } = self;
        assert!(first_row + n <= w.n, "rows {first_row}+{n} of {}", w.n);
        assert!(first_column + finish.columns(n) <= stride, "{n} rows at column {first_column} of {stride}");
        let (x_row, y_row) = (4 * w.k, 4 * stride);
        for (part, rows, first_bias) in w.parts_of(first_row..first_row + n) {
            assert!(
                !finish.gated || (rows.len() == n && n.is_multiple_of(2)),
                "both halves of {n} rows in a part"
            );
            let token_work = (2 * rows.len() * w.k) as u64 + moving(x_row + 4 * rows.len());
            for (tokens, work) in token_ranges(commands, t, &[x_row, y_row], |_| token_work) {
                let params = Params {
                    t: small(tokens.len()),
                    n: small(rows.len()),
                    k: small(w.k),
                    first_row: small(rows.start),
                    stride: small(stride),
                    first_column: small(first_column + first_bias),
                    first_bias: small(first_bias),
                    eps: norm.map_or(0.0, |norm| norm.eps),
                };
                commands.dispatch(
                    pipeline,
                    &params,
                    &[
                        ("weights", &part.weights),
                        ("scales", &part.scales),
                        ("x", &rows_at(x, &tokens, x_row)),
                        // Declared in any case, read only where the kernel was made with a bias.
                        ("bias", bias.unwrap_or(&part.scales)),
                        // Declared only where x is normed.
                        ("gain", norm.map_or(x, |norm| norm.gain)),
                        ("y", &rows_at(y, &tokens, y_row)),
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
        let form = |family: Family| Ok((family, gpu.pipeline(&family.source_on(gpu, scheme, finish))?));
        let pipelines = family.with_leftovers().into_iter().map(form).collect::<Result<_>>()?;
        Ok(Self { finish, pipelines })
    }

    /// Records one launch, or one for whole tiles and one for the tokens left over. `w` must be in the scheme that
    /// the kernel was made for.
    pub fn record(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>) {
        let mut first = 0;
        for (index, (family, pipeline)) in self.pipelines.iter().enumerate() {
            let left = operands.t - first;
            let count = if index + 1 == self.pipelines.len() { left } else { left - left % family.tokens() };
            if count > 0 {
                let tokens_of = first..first + count;
                let x = &rows_at(operands.x, &tokens_of, 4 * w.k);
                let y = &rows_at(operands.y, &tokens_of, 4 * operands.stride);
                Operands { x, y, t: count, ..operands }.record(
                    commands,
                    pipeline,
                    w,
                    (self.finish, None),
                    |n, t| family.grid(n, t),
                );
            }
            first += count;
        }
    }
}

fn cases(family: Family) -> Vec<Case> {
    let shapes = |ragged, large| {
        shapes(
            family.kernel(),
            false,
            move |gpu, problem| {
                // A value passes the dequantizing product, a chain of eight products and the sum of the eights.
                problem.prepare(gpu, 8 + problem.k / 8, move |gpu, scheme, finish| {
                    let kernel = Matmul::new(gpu, family, scheme, finish)?;
                    Ok(Box::new(move |commands, w, operands, _| kernel.record(commands, w, operands)))
                })
            },
            ragged,
            large,
        )
    };
    let ragged = &[
        (1, 1, 8),
        (33, 65, 72),
        (8, 4, 256),
        (70, 31, 136),
        (31, 130, 1000),
        (17, 257, 64),
        (131, 390, 24),
    ];
    // A square matrix, one with more rows than columns and one with fewer.
    let mut cases = shapes(ragged, (128, 512, 512));
    cases.extend(shapes(&[], (64, 1024, 256)));
    cases.extend(shapes(&[], (64, 256, 1024)));
    let of = |case: &Case, formats: &[&str]| formats.iter().any(|format| case.name.contains(format));
    if family == Family::Subgroup64x12 {
        // Drivers take a while to compile each form: a format with codes and one without.
        cases.retain(|case| of(case, &["/int4-g128", "/f16"]));
    }
    // As many tokens as a pass takes at least, in what people ask for: the figure to hold against a device's limits.
    cases.extend(
        shapes(&[], (256, 1024, 1024)).into_iter().filter(|case| of(case, &["/int4-g128", "/f16", "/int8"])),
    );
    cases
}

/// How a wrapper records one launch; the norm is there where the problem asks for it.
pub(super) type Record = Box<dyn Fn(&mut Commands, &Matrix, Operands<'_>, Option<Norm<'_>>)>;

/// `y (+)= x W^T (+ bias)`, leaving out row 0 of the matrix where there is a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    scheme: Scheme,
    finish: Finish,
    /// Whether x is normed first.
    normed: bool,
    t: usize,
    n: usize,
    pub(super) k: usize,
}

/// What stands behind scheme and finish in a kernel's name.
pub(super) fn suffix(normed: bool) -> &'static str {
    if normed { "+normed" } else { "" }
}

/// One case for each format and shape, and a timed one for each format; with `normed` of kernels that norm x first, which
/// never add to y.
pub(super) fn shapes(
    kernel: &str,
    normed: bool,
    prepare: impl Fn(&Gpu, Problem) -> Result<Prepared> + Copy + 'static,
    ragged: &[(usize, usize, usize)],
    large: (usize, usize, usize),
) -> Vec<Case> {
    let mut cases = Vec::new();
    for scheme in Scheme::ALL {
        let shapes = ragged.iter().map(|shape| (*shape, false)).chain([(large, true)]);
        for (index, ((t, n, k), timed)) in shapes.enumerate() {
            let mut finish = Finish::ALL[index % Finish::ALL.len()];
            finish.add &= !normed;
            // Two halves.
            let n = if finish.gated { n.next_multiple_of(2) } else { n };
            let problem = Problem { scheme, finish, normed, t, n, k };
            cases.push(Case {
                name: format!("{kernel}/{scheme}{}{} t={t} n={n} k={k}", finish.suffix(), suffix(normed)),
                work: Work::Both {
                    flops: (2 * t * n * k) as u64,
                    bytes: Matrix::bytes_of(scheme, n, k)
                        + (4 * (t * (n + k) + if normed { k } else { 0 })) as u64,
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
        let Self { scheme, finish, normed, t, n, k } = self;
        let Finish { bias, add, gated } = finish;
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
        let (gain, eps) = (noise(7, k), 1e-5);
        let x_buffer = gpu.upload("x", &x)?;
        let gain_buffer = gpu.upload("gain", &gain)?;
        let bias_buffer = gpu.upload("bias", &biases)?;
        let columns = finish.columns(n);
        let y = if add { gpu.upload("y", &before)? } else { unwritten(gpu, "y", t * columns)? };

        let seen = bytemuck::pod_collect_to_vec(&bytes);
        let full = quant::Packed { scheme: dtype, rows, cols: k, words: seen, scales: vec![] };
        let want = move || {
            let seen = quant::decode(&full);
            let seen = quant::decode(&quant::encode(scheme, &seen, rows, k));
            let mut bound = rounding(1 + sums + usize::from(bias) + usize::from(add));
            let mut x = x.clone();
            if normed {
                let rows: Vec<usize> = (0..t).collect();
                let values = rms_norm::reference(&x, &gain, f64::from(eps), k, &rows);
                // The twin's own f32 values are half an ulp off.
                bound += 1.01 * (rms_norm::error(k) + ULP);
                #[expect(clippy::cast_possible_truncation, reason = "the products' twin takes f32")]
                let rounded = values.into_iter().map(|value| value as f32).collect();
                x = rounded;
            }
            let biases = biases.iter().map(|b| if bias { f64::from(*b) } else { 0.0 });
            let biases: Vec<_> = biases.collect();
            let sums = reference(&seen[first_row * k..], &x, &biases, k);
            if gated {
                return sums.chunks(n).flat_map(|row| gated_row(row, bound)).collect();
            }
            sums.into_iter()
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
            let operands =
                Operands { x: &x_buffer, bias, y: &y, t, first_row, n, stride: columns, first_column: 0 };
            let norm = normed.then_some(Norm { gain: &gain_buffer, eps });
            kernel(commands, &w, operands, norm);
        };
        Ok(Prepared { record: Box::new(record), outputs })
    }
}

/// What a gating kernel makes of a row of sums, each with the sum of magnitudes to which `bound` is relative.
///
/// The slope of silu is 1.1 at most. Its own rounding and the product's are those of [`super::Swiglu`].
fn gated_row(row: &[(f64, f64)], bound: f64) -> Vec<Want> {
    let (gates, ups) = row.split_at(row.len() / 2);
    let near = |((gate, gate_magnitude), (up, up_magnitude)): (&(f64, f64), &(f64, f64))| {
        let (gate_error, up_error) = (bound * gate_magnitude, bound * up_magnitude);
        let silu = gate / (1.0 + (-gate).exp());
        let own = (exp_error(gate.clamp(-80.0, 20.0)) + 4.5 * ULP) * (silu * up).abs();
        let error = 1.1 * gate_error * (up.abs() + up_error) + silu.abs() * up_error;
        Want::Near { value: silu * up, bound: 1.01 * (own + error) + 1e-30 * up.abs() }
    };
    gates.iter().zip(ups).map(near).collect()
}

/// The f64 twin: `[t, n]` values of `x W^T + bias`, each with the sum of the magnitudes in it.
///
/// `w` is `[n, k]` as the device sees it (decoded), `x` is `[t, k]`.
pub(super) fn reference(w: &[f32], x: &[f32], bias: &[f64], k: usize) -> Vec<(f64, f64)> {
    let sum = |token: &[f32], row: &[f32], bias: f64| {
        let products = row.iter().zip(token).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p: f64| (s + p, m + p.abs()));
        (sum + bias, magnitude + bias.abs())
    };
    let row_of_y = |token| w.chunks(k).zip(bias).map(move |(row, bias)| sum(token, row, *bias));
    x.par_chunks(k).flat_map_iter(row_of_y).collect()
}
