//! The families of the prefill product and the table of their tiles.

use super::link::{SILU, file, plain};
use super::matmul::{Finish, PRODUCT};
use crate::gpu::{Gpu, Grid, Source};
use crate::quant::Scheme;

/// How many lanes of a subgroup share out the activations: the largest number that the device's smallest
/// subgroup has.
const SUBGROUP_LANES: [u32; 3] = [4, 8, 32];

/// How operands travel to the lanes that multiply them, and how many sums a lane holds. All families add up in the
/// same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Every lane loads what it needs: the safe default.
    Register,
    /// A subgroup's lanes hold parts of x and hand them to each other; needs subgroups. 16 tokens by 4 columns a lane.
    Subgroup,
    /// As [`Self::Subgroup`], 16 tokens by 8 columns: x is loaded half as often.
    Subgroup16x8,
    /// As [`Self::Subgroup`], 32 tokens by 4 columns: weights are loaded and converted half as often.
    Subgroup32x4,
    /// As [`Self::Subgroup`], 64 tokens by 12 columns: few loads, for a device on which they are slow. Tokens that
    /// fill no tile are [`Self::Subgroup16x8`]'s.
    Subgroup64x12,
    /// A workgroup shares tiles of both operands in its memory.
    Shared,
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
    pub const ALL: [Self; 6] = [
        Self::Register,
        Self::Subgroup,
        Self::Subgroup16x8,
        Self::Subgroup32x4,
        Self::Subgroup64x12,
        Self::Shared,
    ];

    /// Its name in records and in the tuner's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Subgroup => "subgroup",
            Self::Subgroup16x8 => "subgroup-16x8",
            Self::Subgroup32x4 => "subgroup-32x4",
            Self::Subgroup64x12 => "subgroup-64x12",
            Self::Shared => "shared",
        }
    }

    /// Whether the device has what it needs; the largest tile is for software devices, whose registers are memory.
    #[must_use]
    pub fn runs_on(self, gpu: &Gpu) -> bool {
        let fits = self != Self::Subgroup64x12 || gpu.info().is_software();
        fits && (!self.needs_subgroups() || gpu.has_subgroups())
    }

    fn needs_subgroups(self) -> bool {
        !matches!(self, Self::Register | Self::Shared)
    }

    /// The table of tile sizes.
    fn tile(self) -> Tile {
        match self {
            Self::Register => Tile { rows: 4, tokens: 8, row_lanes: 16, token_lanes: 4 },
            Self::Subgroup => Tile { rows: 4, tokens: 16, row_lanes: 64, token_lanes: 1 },
            Self::Subgroup16x8 => Tile { rows: 8, tokens: 16, row_lanes: 32, token_lanes: 1 },
            Self::Subgroup32x4 => Tile { rows: 4, tokens: 32, row_lanes: 64, token_lanes: 1 },
            Self::Subgroup64x12 => Tile { rows: 12, tokens: 64, row_lanes: 32, token_lanes: 1 },
            Self::Shared => Tile { rows: 4, tokens: 8, row_lanes: 16, token_lanes: 8 },
        }
    }

    /// Itself, and the family that takes the tokens that fill no tile of it, if that is another.
    pub(super) fn with_leftovers(self) -> Vec<Self> {
        if self == Self::Subgroup64x12 { vec![self, Self::Subgroup16x8] } else { vec![self] }
    }

    /// Tokens of a workgroup's tile.
    pub(super) fn tokens(self) -> usize {
        let Tile { tokens, token_lanes, .. } = self.tile();
        (tokens * token_lanes) as usize
    }

    /// Its shader: name and text of the file.
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Register => file!("matmul.wgsl"),
            Self::Subgroup => file!("matmul_subgroup.wgsl"),
            Self::Subgroup16x8 => file!("matmul_subgroup_16x8.wgsl"),
            Self::Subgroup32x4 => file!("matmul_subgroup_32x4.wgsl"),
            Self::Subgroup64x12 => file!("matmul_subgroup_64x12.wgsl"),
            Self::Shared => file!("matmul_shared.wgsl"),
        }
    }

    /// Its kernel's name.
    pub(super) fn kernel(self) -> &'static str {
        self.file().0.trim_end_matches(".wgsl")
    }

    /// Every form of its kernel for `scheme`.
    pub(super) fn sources(self, scheme: Scheme) -> Vec<Source> {
        let lanes: &[u32] = if self.needs_subgroups() { &SUBGROUP_LANES } else { &[0] };
        let forms = lanes.iter().flat_map(|lanes| Finish::ALL.map(|finish| (*lanes, finish)));
        forms.map(|(lanes, finish)| self.source(scheme, finish, lanes)).collect()
    }

    /// Its kernel, for subgroups of at least `lanes`.
    fn source(self, scheme: Scheme, finish: Finish, lanes: u32) -> Source {
        let mut name = format!("{}/{scheme}{}", self.kernel(), finish.suffix());
        if self.needs_subgroups() {
            name += &format!(" lanes={lanes}");
        }
        let mut source = plain(name, self.file()).with_format(scheme);
        source.parts.extend([PRODUCT, SILU, file!("common/tile.wgsl")]);
        let Tile { rows, tokens, row_lanes, token_lanes } = self.tile();
        source.consts.extend([
            ("ROWS", rows),
            ("TOKENS", tokens),
            ("ROW_LANES", row_lanes),
            ("TOKEN_LANES", token_lanes),
        ]);
        if self.needs_subgroups() {
            source.needs_subgroups = true;
            source.consts.push(("LANES", lanes));
            // The largest holds less of x at a time.
            source.parts.extend(if self == Self::Subgroup64x12 {
                vec![file!("common/rows.wgsl"), file!("common/row_tile.wgsl")]
            } else {
                vec![file!("common/held.wgsl")]
            });
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
    pub(super) fn grid(self, n: usize, t: usize) -> Grid {
        let Tile { rows, row_lanes, .. } = self.tile();
        Grid::plane(n.div_ceil((rows * row_lanes) as usize), t.div_ceil(self.tokens()))
    }
}
