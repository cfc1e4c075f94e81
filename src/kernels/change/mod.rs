//! What an update does to the codes, on the device. Host twin: [`crate::quant::change()`].
//!
//! Both sides' rows are uploaded once, in the dtype of each, packed with the kernels that a model's weights are packed with,
//! and reduced there: codes never come back.
//!
//! Counts are those of the host exactly. Sums are f32 over [`PIECE`] / [`PARTS`] weights each, added up on the host in f64,
//! in the order of the weights. A term of a product passes at most 3 roundings and [`LEVELS`] of the tree: with rounding to
//! nearest that is 12 * 2^-24, so `update`, `update_from_zero` and `quantized` are within 7.2e-7 of themselves and `kept`
//! within 7.2e-7 of the sum of its terms' magnitudes. A ratio has in addition WGSL's 2.5 ulp of a division: its sums are
//! within 9.6e-7 of themselves, the greatest within 4.2e-7. These are worst cases; errors of many weights mostly cancel.
//!
//! What f32 products cannot hold (a square that underflows, weights of 2^120 and more, beyond which packing promises
//! nothing) is noticed, and left to the host.

mod case;
mod found;

use std::sync::Arc;

use super::link::{HALF, file, params, plain};
use super::pack::{PackKernels, STORED, small};
use super::split::moving;
use super::{Kernel, Matrix, Part, Stored};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};
use crate::quant::{self, Change, Scheme};

use found::Found;

const WG: usize = 128;

/// Eights of a piece that a lane looks at; `change.wgsl` has the same number.
const EIGHTS: usize = 8;
/// Weights that a workgroup reduces at a time.
const PIECE: usize = 8 * EIGHTS * WG;
/// Partial sums of a piece.
const PARTS: usize = 16;
/// Levels of the tree that makes one: within an eight, over a lane's eights, over lanes.
const LEVELS: usize = (PIECE / PARTS).ilog2() as usize;
/// Pieces that a workgroup takes: they share its histogram.
const PIECES: usize = 2;
/// Sums of a part; `change.wgsl` has the same number.
const SUMS: usize = 6;
/// Words of the histogram and of the counts behind it; `change.wgsl` has the same numbers.
const TALLIES: usize = quant::COUNTS + 9;

/// Words that a binding begins at a multiple of, on every device.
const ALIGNED: usize = 64;

/// Pairs of row blocks that are added before their results must be fetched.
const SLOTS: usize = 8;

params!(Params { octs: u32, k: u32, unused_0: u32, unused_1: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "change", sources, params: Params::layout, cases: case::cases };

fn sources() -> Vec<Source> {
    let quantizing = Scheme::ALL.into_iter().filter(|scheme| !scheme.is_full());
    let pairs = || STORED.into_iter().flat_map(|t| STORED.map(|u| [t, u]));
    quantizing.flat_map(|scheme| pairs().map(move |dtypes| source(scheme, dtypes))).collect()
}

/// The form for `scheme` between a target and an unlearned checkpoint of these dtypes.
fn source(scheme: Scheme, dtypes: [Scheme; 2]) -> Source {
    const WIDTHS: [&str; 16] = [
        "WIDTH_0", "WIDTH_1", "WIDTH_2", "WIDTH_3", "WIDTH_4", "WIDTH_5", "WIDTH_6", "WIDTH_7", "WIDTH_8",
        "WIDTH_9", "WIDTH_10", "WIDTH_11", "WIDTH_12", "WIDTH_13", "WIDTH_14", "WIDTH_15",
    ];
    let [t, u] = dtypes;
    let name = format!("change/{scheme} from {t} to {u}");
    let mut source = plain(name, file!("change.wgsl")).with_index().with_decoding(scheme);
    source.parts.extend([HALF, file!("pairs/weights.wgsl"), file!("pairs/place.wgsl")]);
    source.parts.push(match scheme.bits() {
        8 => file!("pairs/two_words.wgsl"),
        _ => file!("pairs/one_word.wgsl"),
    });
    let widths = quant::widths(scheme);
    source.parts.push(if widths.is_some() { file!("widths/table.wgsl") } else { file!("widths/one.wgsl") });
    source.consts = vec![
        ("BINS", small(quant::COUNTS)),
        ("SHARE_BITS", quant::SHARE_BITS),
        ("OCTAVES_BELOW", quant::OCTAVES_BELOW),
        ("NEGLIGIBLE", quant::NEGLIGIBLE.to_bits()),
    ];
    let dtype = |dtype| STORED.iter().position(|stored| *stored == dtype).unwrap_or_default() as f64;
    let minus_zero = if scheme == Scheme::Fp4B64 { quant::FP4_MINUS_ZERO } else { 256 };
    source.overrides.extend([
        ("WG", WG as f64),
        ("PIECES", PIECES as f64),
        ("PARTS", PARTS as f64),
        ("DTYPE_T", dtype(t)),
        ("DTYPE_U", dtype(u)),
        ("BITS", f64::from(scheme.bits())),
        ("MINUS_ZERO", f64::from(minus_zero)),
    ]);
    source.overrides.extend(widths.iter().flat_map(|widths| WIDTHS.into_iter().zip(*widths)));
    source
}

/// Compares row blocks of two checkpoints, for some schemes.
///
/// Holds the memory that blocks pass through: both sides as stored, the codes of one scheme at a time, and the results of
/// a few blocks.
#[derive(Debug)]
pub struct Comparer {
    schemes: Vec<Scheme>,
    sides: [Side; 2],
    /// Results on the device, of the blocks added since they were fetched.
    slots: Vec<Slot>,
    used: usize,
}

/// Memory of the target's or the unlearned checkpoint's rows; grows as it has to.
#[derive(Debug, Default)]
struct Side {
    raw: Option<Buffer>,
    codes: Option<Buffer>,
    scales: Option<Buffer>,
}

/// Results of one block: for each scheme its tallies, then for each scheme its sums.
#[derive(Debug)]
struct Slot {
    buffer: Buffer,
    weights: usize,
}

impl Slot {
    /// Words of a scheme's tallies, and of its sums over `weights`.
    fn words(weights: usize) -> [usize; 2] {
        let sums = weights.div_ceil(PIECE) * PARTS * SUMS;
        [TALLIES.next_multiple_of(ALIGNED), sums.next_multiple_of(ALIGNED)]
    }
}

impl Comparer {
    /// For quantizing `schemes`.
    #[must_use]
    pub fn new(schemes: &[Scheme]) -> Self {
        Self { schemes: schemes.to_vec(), sides: Default::default(), slots: Vec::new(), used: 0 }
    }

    /// Whether [`Self::finish`] must come before the next [`Self::add`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used == SLOTS
    }

    /// Uploads rows of both checkpoints, `[n, k]` of any two dtypes, and compares them in every scheme.
    ///
    /// Submits; does not wait for the results.
    ///
    /// # Errors
    ///
    /// If a shader does not compile, or the device cannot hold the rows or cannot bind them at once.
    ///
    /// # Panics
    ///
    /// If the two have other shapes than each other, `n k` is not a multiple of 64 where more rows of the same matrix
    /// follow (then a table's block would be cut), or the comparer is full: bugs in the caller.
    pub fn add(&mut self, gpu: &Gpu, target: Stored<'_>, unlearned: Stored<'_>) -> Result<()> {
        let (n, k) = (target.n, target.k);
        assert!((n, k) == (unlearned.n, unlearned.k), "{}: two shapes", target.name);
        assert!(!self.is_full(), "the results of {SLOTS} blocks wait");
        if n * k == 0 {
            // Nothing to launch; the slot still has an answer.
            return self.open_slot(gpu, 0).map(|_| ());
        }
        let stored = [target, unlearned];
        let mut raws = Vec::with_capacity(2);
        for (side, stored) in self.sides.iter_mut().zip(&stored) {
            let raw = reserve(gpu, &mut side.raw, "stored weights", stored.bytes.len() as u64)?;
            gpu.write(&raw, stored.bytes);
            raws.push(raw);
        }
        let slot = self.open_slot(gpu, n * k)?;
        let [tally_words, sum_words] = Slot::words(n * k);
        let mut commands = Commands::new();
        for (index, &scheme) in self.schemes.iter().enumerate() {
            let mut packed = Vec::with_capacity(2);
            for ((side, stored), raw) in self.sides.iter_mut().zip(&stored).zip(&raws) {
                let matrix = side.matrix(gpu, scheme, n, k)?;
                let kernels = PackKernels::new(gpu, scheme, stored.dtype)?;
                kernels.record(&mut commands, raw, &matrix, 0..n);
                packed.push(matrix);
            }
            let pipeline = gpu.pipeline(&source(scheme, stored.map(|stored| stored.dtype)))?;
            let words = |first: usize, count: usize| slot.slice(4 * first as u64, 4 * count as u64);
            let operands = Operands {
                raw: [&raws[0], &raws[1]],
                packed: [&packed[0].parts[0], &packed[1].parts[0]],
                tallies: &words(index * tally_words, TALLIES),
                sums: &words(self.schemes.len() * tally_words + index * sum_words, sum_words),
            };
            record(&mut commands, &pipeline, operands, n, k);
        }
        commands.submit(gpu)
    }

    /// Takes the next slot and clears its tallies.
    fn open_slot(&mut self, gpu: &Gpu, weights: usize) -> Result<Buffer> {
        let [tallies, sums] = Slot::words(weights).map(|words| 4 * words * self.schemes.len());
        let mut held = self.slots.get(self.used).map(|slot| slot.buffer.clone());
        let buffer = reserve(gpu, &mut held, "changes", (tallies + sums) as u64)?;
        let slot = Slot { buffer: held.unwrap_or_else(|| buffer.clone()), weights };
        if self.used < self.slots.len() {
            self.slots[self.used] = slot;
        } else {
            self.slots.push(slot);
        }
        self.used += 1;
        gpu.write(&buffer.slice(0, tallies as u64), &vec![0u8; tallies]);
        Ok(buffer)
    }

    /// Waits for the blocks added since the last call and gives, in their order, the changes of each in every scheme;
    /// `None` for a block that the host must compare, because f32 products do not hold its figures.
    ///
    /// # Errors
    ///
    /// If any work since the device was opened failed.
    pub fn finish(&mut self, gpu: &Gpu) -> Result<Vec<Option<Vec<Change>>>> {
        let schemes = self.schemes.len();
        let mut blocks = Vec::with_capacity(self.used);
        for slot in &self.slots[..self.used] {
            let [tally_words, sum_words] = Slot::words(slot.weights);
            let words: Vec<u32> = gpu.read(&slot.buffer, schemes * (tally_words + sum_words))?;
            let (tallies, sums) = words.split_at(schemes * tally_words);
            let used = slot.weights.div_ceil(PIECE) * PARTS * SUMS;
            let changes = (0..schemes).map(|scheme| {
                let found = Found {
                    weights: slot.weights as u64,
                    tallies: &tallies[scheme * tally_words..][..TALLIES],
                    sums: &sums[scheme * sum_words..][..used],
                };
                found.change()
            });
            blocks.push(changes.collect());
        }
        self.used = 0;
        Ok(blocks)
    }
}

impl Side {
    /// Room for the codes of a `[n, k]` matrix.
    fn matrix(&mut self, gpu: &Gpu, scheme: Scheme, n: usize, k: usize) -> Result<Matrix> {
        let codes = (n * k / scheme.per_word() * 4) as u64;
        let scales = Matrix::bytes_of(scheme, n, k) - codes;
        let weights = reserve(gpu, &mut self.codes, "codes", codes)?;
        let scales = reserve(gpu, &mut self.scales, "scales", scales)?;
        Ok(Matrix { scheme, n, k, parts: vec![Part { rows: 0..n, weights, scales }] })
    }
}

/// The first `bytes` of `held`, which is made anew if it is too small.
fn reserve(gpu: &Gpu, held: &mut Option<Buffer>, what: &str, bytes: u64) -> Result<Buffer> {
    let buffer = match held.take().filter(|buffer| buffer.bytes() >= bytes) {
        Some(buffer) => buffer,
        None => gpu.alloc(what, bytes)?,
    };
    Ok(held.insert(buffer).slice(0, bytes))
}

/// What a launch reads and writes; the target's first.
#[derive(Clone, Copy, Debug)]
struct Operands<'a> {
    /// `[n, k]` as stored.
    raw: [&'a Buffer; 2],
    /// The same in the scheme.
    packed: [&'a Part; 2],
    /// `[TALLIES]` u32, zeros.
    tallies: &'a Buffer,
    /// `[pieces, PARTS, SUMS]` f32, overwritten.
    sums: &'a Buffer,
}

/// Records one comparison.
fn record(commands: &mut Commands, pipeline: &Arc<Pipeline>, operands: Operands<'_>, n: usize, k: usize) {
    let Operands { raw: [raw_t, raw_u], packed: [t, u], tallies, sums } = operands;
    let params = Params { octs: small(n * k / 8), k: small(k), unused_0: 0, unused_1: 0 };
    let read = [raw_t, raw_u, &t.weights, &u.weights];
    let bytes: u64 = read.iter().map(|buffer| buffer.bytes()).sum();
    let buffers = [
        ("raw_t", raw_t),
        ("raw_u", raw_u),
        ("codes_t", &t.weights),
        ("codes_u", &u.weights),
        ("scales_t", &t.scales),
        ("scales_u", &u.scales),
        ("tallies", tallies),
        ("sums", sums),
    ];
    let grid = Grid::flat((n * k).div_ceil(PIECE * PIECES));
    commands.dispatch(
        pipeline,
        &params,
        &buffers,
        grid,
        moving(usize::try_from(bytes).unwrap_or(usize::MAX)),
    );
}
