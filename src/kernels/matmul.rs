//! Dequantize and multiply, many rows of x: `y = x W^T (+ bias)`.

use std::sync::Arc;

use super::case::{noise, rounding, unwritten};
use super::link::{file, params, plain};
use super::pack::{Packer, Stored, awkward_weights, small, stored};
use super::split::{moving, token_ranges};
use super::{Case, Kernel, Matrix, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Scheme};

/// What all products declare alike.
pub(super) const PRODUCT: (&str, &str) = file!("common/product.wgsl");

/// How many lanes of a subgroup share out the activations: the largest number that the device's smallest
/// subgroup has.
const SUBGROUP_LANES: [u32; 3] = [4, 8, 32];

params!(
    /// Of `common/product.wgsl`, which all families and `matvec.wgsl` link.
    Params { t: u32, n: u32, k: u32, first_row: u32, stride: u32, first_column: u32 }
);

/// How operands travel to the lanes that multiply them. All families add up in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Every lane loads what it needs: the safe default.
    Register,
    /// A subgroup's lanes hold parts of x and hand them to each other; needs subgroups.
    Subgroup,
    /// A workgroup shares tiles of both operands in its memory.
    Shared,
}

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

/// What a lane and a workgroup compute; the shaders get the numbers as constants.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// Columns of y, and tokens, a lane.
    rows: u32,
    tokens: u32,
    /// Lanes along each.
    row_lanes: u32,
    token_lanes: u32,
}

impl Family {
    /// All of them; the safe default first.
    pub const ALL: [Self; 3] = [Self::Register, Self::Subgroup, Self::Shared];

    /// Its name in records and in the tuner's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Subgroup => "subgroup",
            Self::Shared => "shared",
        }
    }

    /// Whether the device has what it needs.
    #[must_use]
    pub fn runs_on(self, gpu: &Gpu) -> bool {
        self != Self::Subgroup || gpu.has_subgroups()
    }

    /// The table of tile sizes.
    fn tile(self) -> Tile {
        match self {
            Self::Register => Tile { rows: 4, tokens: 8, row_lanes: 16, token_lanes: 4 },
            Self::Subgroup => Tile { rows: 4, tokens: 16, row_lanes: 64, token_lanes: 1 },
            Self::Shared => Tile { rows: 4, tokens: 8, row_lanes: 16, token_lanes: 8 },
        }
    }

    /// Every form of its kernel for `scheme`.
    fn sources(self, scheme: Scheme) -> Vec<Source> {
        let lanes: &[u32] = if self == Self::Subgroup { &SUBGROUP_LANES } else { &[0] };
        let forms = lanes.iter().flat_map(|lanes| Finish::ALL.map(|finish| (*lanes, finish)));
        forms.map(|(lanes, finish)| self.source(scheme, finish, lanes)).collect()
    }

    /// Its kernel, for subgroups of at least `lanes`.
    fn source(self, scheme: Scheme, finish: Finish, lanes: u32) -> Source {
        let finish_name = finish.suffix();
        let (name, file) = match self {
            Self::Register => (format!("matmul/{scheme}{finish_name}"), file!("matmul.wgsl")),
            Self::Subgroup => {
                let name = format!("matmul_subgroup/{scheme}{finish_name} lanes={lanes}");
                (name, file!("matmul_subgroup.wgsl"))
            }
            Self::Shared => (format!("matmul_shared/{scheme}{finish_name}"), file!("matmul_shared.wgsl")),
        };
        let mut source = plain(name, file).with_format(scheme);
        source.parts.extend([PRODUCT, file!("common/tile.wgsl")]);
        let Tile { rows, tokens, row_lanes, token_lanes } = self.tile();
        source.consts.extend([
            ("ROWS", rows),
            ("TOKENS", tokens),
            ("ROW_LANES", row_lanes),
            ("TOKEN_LANES", token_lanes),
        ]);
        if self == Self::Subgroup {
            source.needs_subgroups = true;
            source.consts.push(("LANES", lanes));
        }
        source.overrides.extend(finish.overrides());
        source
    }

    /// Its kernel as the device runs it.
    pub(super) fn source_on(self, gpu: &Gpu, scheme: Scheme, finish: Finish) -> Source {
        let smallest = gpu.info().subgroups[0];
        let lanes = SUBGROUP_LANES.into_iter().rev().find(|lanes| *lanes <= smallest);
        self.source(scheme, finish, lanes.unwrap_or(SUBGROUP_LANES[0]))
    }

    /// Workgroups for `n` columns of `t` tokens.
    fn grid(self, n: usize, t: usize) -> Grid {
        let Tile { rows, tokens, row_lanes, token_lanes } = self.tile();
        Grid::plane(n.div_ceil((rows * row_lanes) as usize), t.div_ceil((tokens * token_lanes) as usize))
    }
}

pub(super) const REGISTER: Kernel = Kernel {
    name: "matmul",
    sources: || Scheme::ALL.into_iter().flat_map(|scheme| Family::Register.sources(scheme)).collect(),
    params: Params::layout,
    cases: || cases("matmul", Family::Register),
};
pub(super) const SUBGROUP: Kernel = Kernel {
    name: "matmul_subgroup",
    sources: || Scheme::ALL.into_iter().flat_map(|scheme| Family::Subgroup.sources(scheme)).collect(),
    params: Params::layout,
    cases: || cases("matmul_subgroup", Family::Subgroup),
};
pub(super) const SHARED: Kernel = Kernel {
    name: "matmul_shared",
    sources: || Scheme::ALL.into_iter().flat_map(|scheme| Family::Shared.sources(scheme)).collect(),
    params: Params::layout,
    cases: || cases("matmul_shared", Family::Shared),
};

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

fn cases(kernel: &str, family: Family) -> Vec<Case> {
    // A value passes the dequantizing product, a chain of eight products and the sum of the eights.
    shapes(
        kernel,
        move |gpu, problem| {
            problem.prepare(gpu, 8 + problem.k / 8, move |gpu, scheme, finish| {
                let kernel = Matmul::new(gpu, family, scheme, finish)?;
                Ok(Box::new(move |commands, w, operands| kernel.record(commands, w, operands)))
            })
        },
        &[(1, 1, 8), (33, 65, 72), (8, 4, 256), (70, 31, 136), (31, 130, 1000), (17, 257, 64)],
        (128, 512, 512),
    )
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
