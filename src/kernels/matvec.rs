//! Dequantize and multiply, few rows of x: one new token a sequence.

use std::sync::Arc;

use super::link::{SILU, file, plain};
use super::matmul::{self, Finish, Operands};
use super::pack::small;
use super::rms_norm::{self, Norm};
use super::{Case, Kernel, Matrix};
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::Scheme;

/// Rows of the matrix a lane.
const ROWS: usize = 4;

/// Lanes of a workgroup whose lanes share sums; `matvec.wgsl` and `matvec_subgroup.wgsl` have the same number.
const SHARING: usize = 64;

/// Lanes that share a sum in a workgroup's memory.
const WORKGROUP_LANES: u32 = 8;

/// Lanes of a workgroup whose lanes sum alone: few, so that small matrices give many workgroups.
const ALONE: u32 = 8;

/// How many lanes of a subgroup share something: the largest number that the device's smallest subgroup has.
const SUBGROUP_LANES: [u32; 3] = [4, 8, 32];

/// Weights of a row that [`MatvecFamily::Run`] reads at a time, and tokens up to which it does.
const RUN_LENGTH: usize = 32;
const RUN_TOKENS: usize = 4;

/// Tokens that a workgroup serves: the smallest that takes them all, or the largest. It never changes a token's bits.
const TILES: [usize; 3] = [1, 4, 16];

/// Of those, the ones for which a kernel may norm x itself: it saves a launch, and with more tokens a launch is little.
const NORMED_TILES: usize = 2;

/// Tokens up to which.
pub(super) const NORMED_TOKENS: usize = TILES[NORMED_TILES - 1];

/// How the lanes share a product of few rows.
///
/// Within a family the order of the sum depends on `k` and, where lanes share a sum, on how many do: for
/// [`Self::Subgroup`] on the device's smallest subgroup. [`Self::Lane`], [`Self::Broadcast`] and
/// [`Self::Run`] add up as every prefill family does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatvecFamily {
    /// Eight lanes share a row and join their sums in workgroup memory: the safe default.
    Workgroup,
    /// A lane has its rows for itself.
    Lane,
    /// A subgroup's lanes share a row and join their sums by shuffles, in a fixed tree; needs subgroups.
    Subgroup,
    /// A lane has its rows for itself; a subgroup's lanes hold parts of x and hand them to each other; needs
    /// subgroups.
    Broadcast,
    /// As [`Self::Broadcast`], a few tokens' weights read 32 at a time; needs subgroups and rows of whole 32s.
    Run,
}

pub(super) const WORKGROUP: Kernel = Kernel {
    name: "matvec",
    sources: || forms(MatvecFamily::Workgroup),
    params: || (matmul::REGISTER.params)(),
    cases: || cases("matvec", MatvecFamily::Workgroup),
};
pub(super) const LANE: Kernel = Kernel {
    name: "matvec_lane",
    sources: || forms(MatvecFamily::Lane),
    params: || (matmul::REGISTER.params)(),
    cases: || cases("matvec_lane", MatvecFamily::Lane),
};
pub(super) const SUBGROUP: Kernel = Kernel {
    name: "matvec_subgroup",
    sources: || forms(MatvecFamily::Subgroup),
    params: || (matmul::REGISTER.params)(),
    cases: || cases("matvec_subgroup", MatvecFamily::Subgroup),
};
pub(super) const BROADCAST: Kernel = Kernel {
    name: "matvec_broadcast",
    sources: || forms(MatvecFamily::Broadcast),
    params: || (matmul::REGISTER.params)(),
    cases: || cases("matvec_broadcast", MatvecFamily::Broadcast),
};
pub(super) const RUN: Kernel = Kernel {
    name: "matvec_run",
    sources: || forms(MatvecFamily::Run),
    params: || (matmul::REGISTER.params)(),
    cases: || cases("matvec_run", MatvecFamily::Run),
};

/// Every scheme, finish and tile of a family, for every size of subgroups where that matters.
fn forms(family: MatvecFamily) -> Vec<Source> {
    let lanes: &[u32] = if family.needs_subgroups() { &SUBGROUP_LANES } else { &[WORKGROUP_LANES] };
    let mut forms = Vec::new();
    for scheme in Scheme::ALL {
        for finish in Finish::ALL {
            for lanes in lanes {
                // What one family lends another is not told twice.
                let own =
                    TILES.into_iter().filter(|tokens| family != MatvecFamily::Run || *tokens <= RUN_TOKENS);
                let own: Vec<_> = own.collect();
                forms.extend(own.iter().map(|tokens| family.source(scheme, finish, *tokens, *lanes, None)));
                let normed = TILES[..NORMED_TILES].iter().filter(|_| !finish.add);
                forms.extend(normed.flat_map(|tokens| {
                    rms_norm::LANES.map(|norm| family.source(scheme, finish, *tokens, *lanes, Some(norm)))
                }));
            }
        }
    }
    forms
}

impl MatvecFamily {
    /// All of them; the safe default first.
    pub const ALL: [Self; 5] = [Self::Workgroup, Self::Lane, Self::Subgroup, Self::Broadcast, Self::Run];

    /// Its name in records and in the tuner's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workgroup => "workgroup",
            Self::Lane => "lane",
            Self::Subgroup => "subgroup",
            Self::Broadcast => "broadcast",
            Self::Run => "run",
        }
    }

    /// Whether the device has what it needs.
    #[must_use]
    pub fn runs_on(self, gpu: &Gpu) -> bool {
        !self.needs_subgroups() || gpu.has_subgroups()
    }

    /// Whether it can read rows of `k` weights.
    #[must_use]
    pub fn reads(self, k: usize) -> bool {
        self != Self::Run || k.is_multiple_of(RUN_LENGTH)
    }

    fn needs_subgroups(self) -> bool {
        matches!(self, Self::Subgroup | Self::Broadcast | Self::Run)
    }

    /// Lanes that share something on this device.
    fn lanes(self, gpu: &Gpu) -> u32 {
        if !self.needs_subgroups() {
            return WORKGROUP_LANES;
        }
        let smallest = gpu.info().subgroups[0];
        let fitting = SUBGROUP_LANES.into_iter().rev().find(|lanes| *lanes <= smallest);
        fitting.unwrap_or(SUBGROUP_LANES[0])
    }

    /// Its kernel for `tokens` at a time, `lanes` sharing; with lanes of the norm it norms x itself.
    fn source(self, scheme: Scheme, finish: Finish, tokens: usize, lanes: u32, norm: Option<u32>) -> Source {
        // With many tokens x is what is read most.
        let runs = self == Self::Run && tokens <= RUN_TOKENS;
        let (kernel, file) = match self {
            Self::Workgroup => ("matvec", file!("matvec.wgsl")),
            Self::Lane => ("matvec_lane", file!("matvec_lane.wgsl")),
            Self::Subgroup => ("matvec_subgroup", file!("matvec_subgroup.wgsl")),
            Self::Run if runs => ("matvec_run", file!("matvec_run.wgsl")),
            Self::Broadcast | Self::Run => ("matvec_broadcast", file!("matvec_broadcast.wgsl")),
        };
        let normed = matmul::suffix(norm.is_some());
        let mut name = format!("{kernel}/{scheme}{}{normed} tokens={tokens}", finish.suffix());
        if self.needs_subgroups() {
            name.push_str(&format!(" lanes={lanes}"));
        }
        if let Some(norm) = norm {
            name.push_str(&format!(" norm={norm}"));
        }
        let mut source = plain(name, file);
        source = if runs { source.with_runs(scheme) } else { source.with_format(scheme) };
        source.parts.extend([matmul::PRODUCT, SILU, file!("common/tile.wgsl"), file!("common/rows.wgsl")]);
        if !runs {
            source.parts.push(file!("common/row_tile.wgsl"));
        }
        source.consts.extend([("ROWS", small(ROWS)), ("TOKENS", small(tokens))]);
        if self != Self::Lane {
            source.consts.push(("LANES", lanes));
        }
        if let Some(workgroup) = self.alone(lanes) {
            source.consts.push(("WG", workgroup));
        }
        source.needs_subgroups = self.needs_subgroups();
        source.overrides.extend(finish.overrides());
        source.parts.push(match norm {
            Some(_) => file!("common/x_normed.wgsl"),
            None => file!("common/x_rows.wgsl"),
        });
        source.overrides.extend(norm.map(|lanes| ("NORM_LANES", f64::from(lanes))));
        source
    }

    /// Lanes of a workgroup if each has its rows for itself; a whole subgroup at least.
    fn alone(self, lanes: u32) -> Option<u32> {
        matches!(self, Self::Lane | Self::Broadcast | Self::Run).then_some(ALONE.max(lanes))
    }

    /// Rows of the matrix that a workgroup multiplies.
    fn columns(self, lanes: u32) -> usize {
        ROWS * self.alone(lanes).map_or(SHARING / lanes as usize, |lanes| lanes as usize)
    }
}

/// `y = x W^T (+ bias)` for few rows of x.
///
/// The order of the sum depends on the family and on `k` alone, so a token's result does not depend on how
/// many others there are.
#[derive(Clone, Debug)]
pub struct Matvec {
    /// For each of [`TILES`].
    pipelines: [Arc<Pipeline>; 3],
    /// For the first of them, those that norm x.
    normed: Option<[Arc<Pipeline>; NORMED_TILES]>,
    family: MatvecFamily,
    scheme: Scheme,
    finish: Finish,
    columns: usize,
}

impl Matvec {
    /// Compiles the kernels of `family`, which must run on the device.
    ///
    /// # Errors
    ///
    /// If a shader does not compile.
    pub fn new(gpu: &Gpu, family: MatvecFamily, scheme: Scheme, finish: Finish) -> Result<Self> {
        let lanes = family.lanes(gpu);
        let pipeline = |tokens| gpu.pipeline(&family.source(scheme, finish, tokens, lanes, None));
        let pipelines = [pipeline(TILES[0])?, pipeline(TILES[1])?, pipeline(TILES[2])?];
        Ok(Self { pipelines, normed: None, family, scheme, finish, columns: family.columns(lanes) })
    }

    /// The same that can also norm rows of `k` as it reads them, a few tokens at a time.
    ///
    /// # Errors
    ///
    /// If a shader does not compile.
    pub fn with_norm(self, gpu: &Gpu, k: usize) -> Result<Self> {
        let pipeline = |tile: usize| gpu.pipeline(&self.normed_source(gpu, k, tile));
        let normed = Some([pipeline(0)?, pipeline(1)?]);
        Ok(Self { normed, ..self })
    }

    /// The kernel of tile `tile` that norms rows of `k`.
    pub(super) fn normed_source(&self, gpu: &Gpu, k: usize, tile: usize) -> Source {
        let norm = Some(rms_norm::lanes(k));
        self.family.source(self.scheme, self.finish, TILES[tile], self.family.lanes(gpu), norm)
    }

    /// Whether [`Self::record_normed`] takes `t` tokens.
    #[must_use]
    pub fn norms(&self, t: usize) -> bool {
        self.normed.is_some() && t <= NORMED_TOKENS
    }

    /// Records one launch. `w` must be in the scheme that the kernel was made for.
    ///
    /// # Panics
    ///
    /// If the family does not read rows as long as `w`'s.
    pub fn record(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>) {
        let tile = TILES.iter().position(|tokens| *tokens >= operands.t).unwrap_or(TILES.len() - 1);
        self.launch(commands, w, operands, (tile, &self.pipelines[tile]), None);
    }

    /// Records one launch that multiplies the normed rows of x: bit for bit what [`super::RmsNorm`] and [`Self::record`] make
    /// of them.
    ///
    /// # Panics
    ///
    /// As [`Self::record`], and if it does not norm as many tokens ([`Self::norms`]).
    pub fn record_normed(&self, commands: &mut Commands, w: &Matrix, operands: Operands<'_>, norm: Norm<'_>) {
        assert!(self.norms(operands.t), "{} does not norm {} tokens", self.family.name(), operands.t);
        let normed = TILES.into_iter().zip(self.normed.iter().flatten()).enumerate();
        let mut fitting = normed.filter(|(_, (tokens, _))| *tokens >= operands.t);
        if let Some((tile, (_, pipeline))) = fitting.next() {
            self.launch(commands, w, operands, (tile, pipeline), Some(norm));
        }
    }

    fn launch(
        &self,
        commands: &mut Commands,
        w: &Matrix,
        operands: Operands<'_>,
        (tile, pipeline): (usize, &Arc<Pipeline>),
        norm: Option<Norm<'_>>,
    ) {
        assert!(self.family.reads(w.k), "{} reads no rows of {}", self.family.name(), w.k);
        let grid = |n: usize, t: usize| Grid::plane(n.div_ceil(self.columns), t.div_ceil(TILES[tile]));
        operands.record(commands, pipeline, w, (self.finish, norm), grid);
    }

    /// How its lanes share a product.
    pub(super) fn family(&self) -> MatvecFamily {
        self.family
    }

    /// The kernel's text for one token on this device: what a remembered choice depends on.
    pub(super) fn text_of(gpu: &Gpu, family: MatvecFamily, scheme: Scheme) -> Source {
        family.source(scheme, Finish::default(), TILES[0], family.lanes(gpu), None)
    }
}

fn cases(kernel: &'static str, family: MatvecFamily) -> Vec<Case> {
    let shapes = |normed: bool, ragged, large| {
        matmul::shapes(
            kernel,
            normed,
            move |gpu, problem| {
                // A chain of eight products, a lane's running sum, then the lanes in order.
                let lanes = if family.alone(0).is_some() { 1 } else { family.lanes(gpu) as usize };
                let sums = 8 + (problem.k / 8).div_ceil(lanes) + lanes;
                problem.prepare(gpu, sums, move |gpu, scheme, finish| {
                    let mut kernel = Matvec::new(gpu, family, scheme, finish)?;
                    if normed {
                        kernel = kernel.with_norm(gpu, problem.k)?;
                    }
                    Ok(Box::new(move |commands, w, operands, norm| match norm {
                        Some(norm) => kernel.record_normed(commands, w, operands, norm),
                        None => kernel.record(commands, w, operands),
                    }))
                })
            },
            ragged,
            large,
        )
    };
    // One new token, as many as the largest tile has, and a few on fewer rows than columns.
    let ragged: &[_] = if family == MatvecFamily::Run {
        &[(1, 1, 32), (9, 65, 96), (3, 5, 256), (4, 33, 160), (2, 70, 992), (17, 64, 64), (1, 37, 96)]
    } else {
        &[(1, 1, 8), (9, 65, 72), (3, 5, 256), (4, 33, 136), (2, 70, 1000), (17, 64, 64), (25, 32, 72)]
    };
    let mut cases = shapes(false, ragged, (1, 1024, 1024));
    cases.extend(shapes(false, &[], (16, 1024, 1024)));
    cases.extend(shapes(false, &[], (4, 512, 2048)));
    // How x is read does not depend on the format.
    let few: Vec<_> = ragged.iter().copied().filter(|(t, ..)| *t <= NORMED_TOKENS).collect();
    let normed = shapes(true, &few, (1, 1024, 1024)).into_iter();
    cases.extend(normed.filter(|case| case.name.contains("/f32") || case.name.contains("/int4-g128")));
    cases
}
