//! Causal attention with grouped KV heads over a paged cache (arXiv 1706.03762, 2305.13245).

use std::sync::Arc;

use super::case::{ULP, exp_error, noise, rounding, unwritten};
use super::link::{file, params, plain};
use super::pack::small;
use super::rope::Heads;
use super::split::token_ranges;
use super::{Case, Kernel, KvFormat, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;
/// Lanes that share a query; `attention_decode.wgsl` has the same number.
const DECODE_LANES: usize = 8;
/// Lanes of a decode workgroup; on a software device one query's, since there a workgroup keeps one core busy and
/// a single sequence has few queries. It changes no bits: a query has its own lanes in any case.
const DECODE_WG: u32 = 64;
const DECODE_WG_SOFTWARE: u32 = 8;

/// Lanes of a subgroup that share out a key or a value: the largest number that the device's smallest subgroup has.
const SUBGROUP_LANES: [u32; 2] = [4, 8];

/// Lanes of a subgroup that share the queries of a KV head in decode: the largest number that the device's smallest
/// subgroup has.
const DECODE_SUBGROUP_LANES: [u32; 3] = [4, 8, 32];

/// Queries of one KV head that a workgroup serves at most; more are shared out evenly.
const MOST_QUERIES: usize = 8;

/// A place is four u32.
const PLACE_BYTES: usize = 16;

/// Head widths that tests compile; a model's own is compiled at load.
const WIDTHS: [usize; 5] = [8, 24, 64, 128, 256];

params!(Params { t: u32, heads: u32, kv_heads: u32, scale: f32 });

pub(super) const PREFILL: Kernel = Kernel {
    name: "attention_prefill",
    sources: || forms(prefill_source),
    params: Params::layout,
    cases: || cases("attention_prefill", Variant::Prefill),
};
pub(super) const PREFILL_SUBGROUP: Kernel = Kernel {
    name: "attention_prefill_subgroup",
    sources: || {
        SUBGROUP_LANES
            .into_iter()
            .flat_map(|n| forms(move |e, page, kv| subgroup_source(e, page, kv, n)))
            .collect()
    },
    params: Params::layout,
    cases: || cases("attention_prefill_subgroup", Variant::PrefillSubgroup),
};
pub(super) const DECODE: Kernel = Kernel {
    name: "attention_decode",
    sources: || {
        let lanes = [DECODE_WG, DECODE_WG_SOFTWARE].into_iter();
        lanes.flat_map(|wg| forms(move |e, page, kv| decode_source(e, page, kv, wg))).collect()
    },
    params: Params::layout,
    cases: || cases("attention_decode", Variant::Decode),
};

pub(super) const DECODE_SUBGROUP: Kernel = Kernel {
    name: "attention_decode_subgroup",
    sources: || {
        let lanes =
            DECODE_SUBGROUP_LANES.into_iter().flat_map(|lanes| [1, 3, 8].map(|shared| (lanes, shared)));
        lanes
            .flat_map(|(lanes, shared)| forms(move |e, page, kv| shared_source(e, page, kv, shared, lanes)))
            .collect()
    },
    params: Params::layout,
    cases: || cases("attention_decode_subgroup", Variant::DecodeSubgroup),
};

/// Every width and cache format.
fn forms(source: impl Fn(usize, usize, KvFormat) -> Source + Copy) -> Vec<Source> {
    WIDTHS.into_iter().flat_map(|width| KvFormat::ALL.map(|format| source(width, 16, format))).collect()
}

fn prefill_source(width: usize, page: usize, format: KvFormat) -> Source {
    let name = format!("attention_prefill/{} e={width}", format.name());
    linked(plain(name, file!("attention_prefill.wgsl")), width, page, format)
}

fn subgroup_source(width: usize, page: usize, format: KvFormat, lanes: u32) -> Source {
    let name = format!("attention_prefill_subgroup/{} e={width} lanes={lanes}", format.name());
    let mut source = linked(plain(name, file!("attention_prefill_subgroup.wgsl")), width, page, format);
    source.consts.push(("LANES", lanes));
    source.needs_subgroups = true;
    source
}

fn decode_source(width: usize, page: usize, format: KvFormat, wg: u32) -> Source {
    let name = format!("attention_decode/{} e={width} wg={wg}", format.name());
    let source = plain(name, file!("attention_decode.wgsl")).with_index();
    let mut source = linked(source, width, page, format);
    source.overrides.retain(|(name, _)| *name != "WG");
    source.overrides.push(("WG", f64::from(wg)));
    source
}

fn shared_source(width: usize, page: usize, format: KvFormat, queries: usize, lanes: u32) -> Source {
    let name =
        format!("attention_decode_subgroup/{} e={width} lanes={lanes} queries={queries}", format.name());
    let source = plain(name, file!("attention_decode_subgroup.wgsl")).with_index();
    let mut source = linked(source, width, page, format);
    source.consts.extend([("LANES", lanes), ("QUERIES", small(queries))]);
    source.needs_subgroups = true;
    source
}

/// How many of the queries of a KV head a workgroup serves.
fn shared_queries(heads: Heads) -> usize {
    let group = heads.queries / heads.kv;
    (1..=MOST_QUERIES).rev().find(|count| group.is_multiple_of(*count)).unwrap_or(1)
}

fn linked(mut source: Source, width: usize, page: usize, format: KvFormat) -> Source {
    // Before the kernel: naga 30 panics where an array's type comes before the override of its size.
    source.parts.insert(0, file!("common/attention.wgsl"));
    format.link(&mut source);
    source.consts.push(("QUADS", small(width / 4)));
    source.overrides.extend([("WG", f64::from(WG)), ("PAGE", page as f64)]);
    source
}

/// A launch's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[t, h + 2 g, e]` f32, of which the first h heads are queries, turned.
    pub q: &'a Buffer,
    /// `[slots, g, e]` in the cache format.
    pub cache_k: &'a Buffer,
    /// `[slots, g, e]` in the cache format.
    pub cache_v: &'a Buffer,
    /// Pages of every sequence, u32.
    pub table: &'a Buffer,
    /// `[t]` of four u32: position, slot, first table entry, unused.
    pub places: &'a Buffer,
    /// `[t, h, e]` f32, overwritten.
    pub out: &'a Buffer,
    /// `[t]`, the number of positions that each token looks at: what it takes.
    pub lengths: &'a [u32],
    /// The heads.
    pub heads: Heads,
}

impl Operands<'_> {
    /// Records the launch on the `grid` for a number of tokens; several launches if one would be too long.
    fn record(self, commands: &mut Commands, pipeline: &Arc<Pipeline>, grid: impl Fn(usize) -> Grid) {
        let Self { q, cache_k, cache_v, table, places, out, lengths, heads } = self;
        let scale = 1.0 / (heads.width as f32).sqrt();
        let row = 4 * heads.queries * heads.width;
        let q_row = 4 * heads.all() * heads.width;
        let work = |token: usize| u64::from(lengths[token]) * (4 * heads.queries * heads.width) as u64;
        for (tokens, work) in token_ranges(commands, lengths.len(), &[q_row, row, PLACE_BYTES], work) {
            let part = |buffer: &Buffer, row: usize| {
                buffer.slice((tokens.start * row) as u64, (tokens.len() * row) as u64)
            };
            let params = Params {
                t: small(tokens.len()),
                heads: small(heads.queries),
                kv_heads: small(heads.kv),
                scale,
            };
            let buffers = [
                ("q", &part(q, q_row)),
                ("cache_k", cache_k),
                ("cache_v", cache_v),
                ("table", table),
                ("places", &part(places, PLACE_BYTES)),
                ("out", &part(out, row)),
            ];
            commands.dispatch(pipeline, &params, &buffers, grid(tokens.len()), work);
        }
    }
}

/// What a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Prefill,
    PrefillSubgroup,
    Decode,
    DecodeSubgroup,
}

impl Variant {
    fn is_decode(self) -> bool {
        matches!(self, Self::Decode | Self::DecodeSubgroup)
    }
}

/// Attention of many tokens a sequence.
///
/// Where the device has subgroups, their lanes hold keys and values for each other; elsewhere a lane loads what
/// it needs. The two differ in the last bits; a device always runs the same one.
#[derive(Clone, Debug)]
pub struct AttentionPrefill {
    subgroups: bool,
    pipeline: Arc<Pipeline>,
}

impl AttentionPrefill {
    /// Compiles the kernel for heads of `width`, pages of `page` tokens and a cache in `format`.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, width: usize, page: usize, format: KvFormat) -> Result<Self> {
        Self::in_form(gpu, width, page, format, gpu.has_subgroups())
    }

    fn in_form(gpu: &Gpu, width: usize, page: usize, format: KvFormat, subgroups: bool) -> Result<Self> {
        let smallest = gpu.info().subgroups[0];
        let lanes = SUBGROUP_LANES.into_iter().rev().find(|lanes| *lanes <= smallest);
        let source = match lanes {
            Some(lanes) if subgroups => subgroup_source(width, page, format, lanes),
            _ => prefill_source(width, page, format),
        };
        Ok(Self { subgroups, pipeline: gpu.pipeline(&source)? })
    }

    /// Records one launch.
    pub fn record(&self, commands: &mut Commands, operands: Operands<'_>) {
        let Heads { queries, kv, .. } = operands.heads;
        let grid = |t: usize| {
            if self.subgroups {
                Grid::plane((t * (queries / kv)).div_ceil(WG as usize), kv)
            } else {
                Grid::plane(t.div_ceil(WG as usize), queries)
            }
        };
        operands.record(commands, &self.pipeline, grid);
    }
}

/// Attention of one new token a sequence.
///
/// Where the device has subgroups, the queries of a KV head share what is read of the cache; elsewhere each reads it.
/// The two differ in the last bits; a device always runs the same one.
#[derive(Clone, Debug)]
pub struct AttentionDecode {
    /// Queries, heads of tokens, that a workgroup serves.
    queries: usize,
    pipeline: Arc<Pipeline>,
}

impl AttentionDecode {
    /// Compiles the kernel for `heads`, pages of `page` tokens and a cache in `format`.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, heads: Heads, page: usize, format: KvFormat) -> Result<Self> {
        Self::in_form(gpu, heads, page, format, gpu.has_subgroups())
    }

    fn in_form(gpu: &Gpu, heads: Heads, page: usize, format: KvFormat, subgroups: bool) -> Result<Self> {
        let smallest = gpu.info().subgroups[0];
        let lanes = DECODE_SUBGROUP_LANES.into_iter().rev().find(|lanes| *lanes <= smallest);
        let (per_workgroup, source) = match lanes {
            Some(lanes) if subgroups => {
                let queries = shared_queries(heads);
                (queries, shared_source(heads.width, page, format, queries, lanes))
            }
            _ => {
                let wg = if gpu.info().is_software() { DECODE_WG_SOFTWARE } else { DECODE_WG };
                (wg as usize / DECODE_LANES, decode_source(heads.width, page, format, wg))
            }
        };
        Ok(Self { queries: per_workgroup, pipeline: gpu.pipeline(&source)? })
    }

    /// Records one launch.
    pub fn record(&self, commands: &mut Commands, operands: Operands<'_>) {
        let queries = operands.heads.queries;
        operands.record(commands, &self.pipeline, |t| Grid::flat((t * queries).div_ceil(self.queries)));
    }
}

fn cases(kernel: &'static str, variant: Variant) -> Vec<Case> {
    let decode = variant.is_decode();
    // Tokens in the cache of each sequence; all of them are queries in prefill, the last in decode.
    let lengths: [&[usize]; 4] = [&[1], &[5, 17, 1], &[70, 3, 129], &[33, 64]];
    let heads = [(1, 1, 8), (4, 2, 24), (6, 3, 64), (2, 1, 256)];
    let mut cases = Vec::new();
    for format in KvFormat::ALL {
        let case = |lengths, queries, kv, width, timed| {
            case(kernel, lengths, Heads { queries, kv, width }, format, variant, timed)
        };
        for (lengths, (queries, kv, width)) in lengths.into_iter().zip(heads) {
            cases.push(case(lengths.to_vec(), queries, kv, width, false));
        }
        // More sequences than a split launch has.
        cases.push(case((1..=19).collect(), 4, 2, 24, false));
        cases.push(case(if decode { vec![500; 8] } else { vec![512] }, 9, 3, 64, true));
    }
    cases
}

fn case(
    kernel: &str,
    lengths: Vec<usize>,
    heads: Heads,
    format: KvFormat,
    variant: Variant,
    timed: bool,
) -> Case {
    let decode = variant.is_decode();
    let pairs: usize = lengths.iter().map(|n| if decode { *n } else { n * (n + 1) / 2 }).sum();
    let Heads { queries, kv, width } = heads;
    // Keys and values once for all queries of a group, q and out.
    let kept: usize = lengths.iter().sum();
    let asked = if decode { lengths.len() } else { kept };
    Case {
        name: format!("{kernel}/{} lengths={lengths:?} h={queries} g={kv} e={width}", format.name()),
        work: Work::Both {
            flops: (4 * pairs * queries * width) as u64,
            bytes: (2 * width * (format.bytes() * kv * kept + 4 * queries * asked)) as u64,
        },
        timed,
        prepare: Box::new(move |gpu| prepare(gpu, &lengths, heads, format, variant)),
    }
}

/// A small page makes block tables matter.
const PAGE: usize = 4;

fn prepare(
    gpu: &Gpu,
    lengths: &[usize],
    heads: Heads,
    format: KvFormat,
    variant: Variant,
) -> Result<Prepared> {
    let decode = variant.is_decode();
    // Pages of the sequences interleaved and in reverse.
    let pages: usize = lengths.iter().map(|n| n.div_ceil(PAGE)).sum();
    let mut free: Vec<u32> = (0..pages).map(small).collect();
    let (mut table, mut places) = (Vec::new(), Vec::new());
    for length in lengths {
        let first = table.len();
        for page in 0..length.div_ceil(PAGE) {
            table.push(free.swap_remove(page * 7 % free.len()));
        }
        let positions = if decode { length - 1..*length } else { 0..*length };
        places.extend(positions.map(|position| [small(position), 0, small(first), 0]));
    }
    let t = places.len();
    let Heads { queries, kv, width } = heads;
    // Peaky: the largest scores are near 10.
    let q: Vec<f32> = noise(51, t * queries * width).iter().map(|x| 2.5 * x).collect();
    let (k_buffer, cache_k) = format.upload(gpu, "cache_k", &noise(52, pages * PAGE * kv * width))?;
    let (v_buffer, cache_v) = format.upload(gpu, "cache_v", &noise(53, pages * PAGE * kv * width))?;
    // What is beside the queries must not matter.
    let beside = vec![f32::NAN; 2 * kv * width];
    let beside: Vec<f32> = q.chunks(queries * width).flat_map(|q| [q, &beside].concat()).collect();
    let q_buffer = gpu.upload("q", &beside)?;
    let table_buffer = gpu.upload("table", &table)?;
    let places_buffer = gpu.upload("places", &places)?;
    let attended: Vec<u32> = places.iter().map(|place| place[0] + 1).collect();
    let out = unwritten(gpu, "out", t * queries * width)?;

    let want = move || {
        let slot =
            |place: &[u32; 4], p: usize| table[place[2] as usize + p / PAGE] as usize * PAGE + p % PAGE;
        let mut want = Vec::new();
        for (index, query) in q.chunks(width).enumerate() {
            let (place, kv_head) = (&places[index / queries], index % queries / (queries / kv));
            let rows: Vec<_> =
                (0..=place[0] as usize).map(|p| (slot(place, p) * kv + kv_head) * width).collect();
            want.extend(reference(query, &cache_k, &cache_v, &rows));
        }
        want
    };
    let outputs = vec![Output { name: "out", buffer: out.clone(), want: Box::new(want) }];
    let prefill = AttentionPrefill::in_form(gpu, width, PAGE, format, variant == Variant::PrefillSubgroup)?;
    let decoder = AttentionDecode::in_form(gpu, heads, PAGE, format, variant == Variant::DecodeSubgroup)?;
    let record = move |commands: &mut Commands| {
        let operands = Operands {
            q: &q_buffer,
            cache_k: &k_buffer,
            cache_v: &v_buffer,
            table: &table_buffer,
            places: &places_buffer,
            out: &out,
            lengths: &attended,
            heads,
        };
        if decode { decoder.record(commands, operands) } else { prefill.record(commands, operands) }
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin: one query against the keys and values that start at `rows` of the cache.
///
/// The bound follows a value's way. A score `s_j` passes the scaling of q, products and sums over the
/// quads of a head and the sum of four: `error_j = rounding(2 + e/4 + 4) sum|q k|`. The device's own
/// maximum cancels in the quotient, so each weight `exp(s_j - top)` is off by `error_j`, by its own
/// exp, and by an exp and a product for every later rise of the maximum; the exponents of those add up
/// to no more than the spread of the scores. Decode brings eight lanes to their joint maximum with one
/// more. Summing n weights and n products adds n roundings to each sum, the division 2.5 ulp.
fn reference(query: &[f32], keys: &[f32], values: &[f32], rows: &[usize]) -> Vec<Want> {
    let width = query.len();
    let scale = 1.0 / (width as f64).sqrt();
    let scores: Vec<(f64, f64)> = rows
        .iter()
        .map(|row| {
            let products =
                query.iter().zip(&keys[*row..]).map(|(q, k)| f64::from(*q) * f64::from(*k) * scale);
            let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p: f64| (s + p, m + p.abs()));
            (sum, rounding(2 + width / 4 + 4) * magnitude)
        })
        .collect();
    let top = scores.iter().fold(f64::MIN, |top, (s, _)| top.max(*s));
    let low = scores.iter().fold(f64::MAX, |low, (s, _)| low.min(*s));
    let mut rises = 0;
    let mut running = f64::MIN;
    for (s, error) in &scores {
        rises += usize::from(*s + 2.0 * error >= running);
        running = running.max(*s);
    }
    let n = rows.len() as f64;
    let weights: Vec<(f64, f64)> = scores
        .iter()
        .map(|(s, error)| {
            let shrinks = 2.0 * exp_error(top - low) + (rises + 1) as f64 * 4.0 * ULP;
            ((s - top).exp(), error + exp_error(s - top) + shrinks)
        })
        .collect();
    let total: f64 = weights.iter().map(|(w, _)| w).sum();
    let total_error = weights.iter().map(|(w, e)| w * e).sum::<f64>() / total + (n + 2.5) * ULP;
    (0..width)
        .map(|i| {
            let (mut sum, mut bound) = (0.0, 0.0);
            for ((weight, error), row) in weights.iter().zip(rows) {
                let product = weight / total * f64::from(values[row + i]);
                sum += product;
                bound += product.abs() * (error + (n + 1.0) * ULP);
            }
            Want::Near { value: sum, bound: bound + sum.abs() * total_error }
        })
        .collect()
}
