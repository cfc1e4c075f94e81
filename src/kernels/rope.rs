//! Rotary position embedding (arXiv 2104.09864, half-split pairs) and the write into the KV cache.

use std::sync::Arc;

use super::case::{ULP, noise};
use super::link::{file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, KvFormat, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;

params!(Params { t: u32, heads: u32, kv_heads: u32, quarter: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "rope", sources: || KvFormat::ALL.map(source).to_vec(), params: Params::layout, cases };

fn source(format: KvFormat) -> Source {
    let mut source = plain(format!("rope/{}", format.name()), file!("rope.wgsl")).with_index();
    format.link(&mut source);
    source.overrides.push(("WG", f64::from(WG)));
    source
}

/// The heads of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, `h`.
    pub queries: usize,
    /// Key and value heads, `g`.
    pub kv: usize,
    /// Head width, `e`, a multiple of 8.
    pub width: usize,
}

impl Heads {
    /// Heads of queries, keys and values together.
    #[must_use]
    pub fn all(self) -> usize {
        self.queries + 2 * self.kv
    }
}

/// Turns queries and keys, and fills the cache.
#[derive(Clone, Debug)]
pub struct Rope {
    format: KvFormat,
    pipeline: Arc<Pipeline>,
}

/// A launch's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[t]` of four u32: position, slot, first table entry, unused.
    pub places: &'a Buffer,
    /// `[positions, e / 2]` cosine and sine.
    pub rotary: &'a Buffer,
    /// `[t, h + 2 g, e]` f32: queries, which are turned in place, keys and values.
    pub qkv: &'a Buffer,
    /// `[slots, g, e]` in the cache format; the tokens' slots are overwritten.
    pub cache_k: &'a Buffer,
    /// `[slots, g, e]` in the cache format; the tokens' slots are overwritten.
    pub cache_v: &'a Buffer,
    /// Tokens.
    pub t: usize,
    /// The heads.
    pub heads: Heads,
}

impl Rope {
    /// Compiles the kernel for a cache in `format`.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu, format: KvFormat) -> Result<Self> {
        Ok(Self { format, pipeline: gpu.pipeline(&source(format))? })
    }

    /// Records one launch.
    pub fn record(&self, commands: &mut Commands, operands: Operands<'_>) {
        let Operands { places, rotary, qkv, cache_k, cache_v, t, heads } = operands;
        let quarter = heads.width / 4;
        let params = Params {
            t: small(t),
            heads: small(heads.queries),
            kv_heads: small(heads.kv),
            quarter: small(quarter),
        };
        let buffers = [
            ("places", places),
            ("rotary", rotary),
            ("qkv", qkv),
            ("cache_k", cache_k),
            ("cache_v", cache_v),
        ];
        let lanes = t * heads.all() * quarter;
        let grid = Grid::flat(lanes.div_ceil(WG as usize));
        commands.dispatch(&self.pipeline, &params, &buffers, grid, moving(bytes(self.format, t, heads)));
    }
}

/// Bytes read and written: q in place, k and v into the cache.
fn bytes(format: KvFormat, t: usize, heads: Heads) -> usize {
    t * heads.width * (8 * heads.queries + 2 * (4 + format.bytes()) * heads.kv)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in KvFormat::ALL {
        for (t, queries, kv, width, timed) in
            [(1, 1, 1, 8, false), (5, 4, 2, 24, false), (19, 6, 3, 64, false), (256, 16, 8, 64, true)]
        {
            let heads = Heads { queries, kv, width };
            cases.push(Case {
                name: format!("rope/{} t={t} h={queries} g={kv} e={width}", format.name()),
                work: Work::Bytes(bytes(format, t, heads) as u64),
                timed,
                prepare: Box::new(move |gpu| prepare(gpu, t, heads, format)),
            });
        }
    }
    cases
}

/// Numbers at the edges of f16: ties of its multiples, its least and its greatest values, and beyond.
const EDGES: [f32; 16] = [
    1.000_488_3,
    -1.001_464_8,
    2047.5,
    -2048.5,
    65_504.0,
    -65_519.0,
    65_536.0,
    1e30,
    6.103_515_6e-5,
    -6.1e-5,
    5.960_464_5e-8,
    2.980_232_2e-8,
    -8.940_697e-8,
    2.9e-8,
    -1e-20,
    3.3e-6,
];

fn prepare(gpu: &Gpu, t: usize, heads: Heads, format: KvFormat) -> Result<Prepared> {
    let Heads { queries, kv, width } = heads;
    let halves = format == KvFormat::F16;
    let q = noise(31, t * queries * width);
    let mut k = noise(32, t * kv * width);
    let mut v = noise(33, t * kv * width);
    if halves {
        for (index, edge) in EDGES.into_iter().enumerate() {
            let at = index * 5 % v.len();
            (k[at], v[at]) = (edge, -edge);
        }
        (v[1], v[2], v[3]) = (f32::INFINITY, f32::NEG_INFINITY, f32::NAN);
    }
    // Slots out of order, one of two left free; positions start at 3.
    let slots = 2 * t;
    let place = |token: usize| [small(token + 3), small(2 * (t - 1 - token)), 0, 0];
    let places: Vec<[u32; 4]> = (0..t).map(place).collect();
    let turn = |index: usize| {
        if halves {
            // Quarter turns: exact, so that what is rounded to f16 is known.
            return [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]][index % 5 % 4];
        }
        let angle = (index / (width / 2)) as f32 * 0.9f32.powf((index % (width / 2)) as f32);
        [angle.cos(), angle.sin()]
    };
    let rotary: Vec<[f32; 2]> = (0..(t + 3) * width / 2).map(turn).collect();

    let places_buffer = gpu.upload("places", &places)?;
    let rotary_buffer = gpu.upload("rotary", &rotary)?;
    let side_by_side = |q: &[f32]| {
        let tokens = q.chunks(queries * width).zip(k.chunks(kv * width)).zip(v.chunks(kv * width));
        tokens.flat_map(|((q, k), v)| [q, k, v].concat()).collect::<Vec<_>>()
    };
    let qkv = side_by_side(&q);
    let qkv_buffer = gpu.upload("qkv", &qkv)?;
    let cache = format.words(&vec![7.0; slots * kv * width]);
    let cache_k = gpu.upload("cache_k", &cache)?;
    let cache_v = gpu.upload("cache_v", &cache)?;
    let untouched: Vec<Want> = cache.into_iter().map(Want::Exactly).collect();
    // Of a token's slot and a head.
    let words = width * format.bytes() / 4;
    let place_words = move |place: [u32; 4], head: usize| (place[1] as usize * kv + head % kv) * words;

    let at = places.clone();
    let turns = rotary.clone();
    let turned_q = move || {
        let heads_of = qkv.chunks(width).enumerate();
        let want = |(index, head): (usize, &[f32])| {
            if index % heads.all() < queries {
                turned(head, &turns, at[index / heads.all()][0])
            } else {
                head.iter().map(|value| Want::Exactly(value.to_bits())).collect()
            }
        };
        heads_of.flat_map(want).collect()
    };
    let (at, turns, before) = (places.clone(), rotary, untouched.clone());
    let keys = move || {
        let mut want = before.clone();
        for (index, head) in k.chunks(width).enumerate() {
            let place = at[index / kv];
            let turned = turned(head, &turns, place[0]);
            let turned = if halves { rounded(format, &turned) } else { turned };
            want[place_words(place, index)..][..words].copy_from_slice(&turned);
        }
        want
    };
    let values = move || {
        let mut want = untouched.clone();
        for (index, head) in v.chunks(width).enumerate() {
            let kept = format.words(head).into_iter().map(Want::Exactly);
            for (want, value) in want[place_words(places[index / kv], index)..].iter_mut().zip(kept) {
                *want = value;
            }
        }
        want
    };
    let outputs = vec![
        Output { name: "qkv", buffer: qkv_buffer.clone(), want: Box::new(turned_q) },
        Output { name: "cache_k", buffer: cache_k.clone(), want: Box::new(keys) },
        Output { name: "cache_v", buffer: cache_v.clone(), want: Box::new(values) },
    ];
    let kernel = Rope::new(gpu, format)?;
    let record = move |commands: &mut Commands| {
        let operands = Operands {
            places: &places_buffer,
            rotary: &rotary_buffer,
            qkv: &qkv_buffer,
            cache_k: &cache_k,
            cache_v: &cache_v,
            t,
            heads,
        };
        kernel.record(commands, operands);
    };
    Ok(Prepared { record: Box::new(record), outputs })
}

/// The f64 twin: one head turned to `position`. Two products and a sum round once each.
fn turned(head: &[f32], rotary: &[[f32; 2]], position: u32) -> Vec<Want> {
    let half = head.len() / 2;
    let element = |i: usize| {
        let [cos, sin] = rotary[position as usize * half + i % half].map(f64::from);
        let (own, other) = (f64::from(head[i]), f64::from(head[(i + half) % head.len()]));
        let other = if i < half { -other } else { other };
        let bound = 3.0 * ULP * ((own * cos).abs() + (other * sin).abs());
        Want::Near { value: own * cos + other * sin, bound }
    };
    (0..head.len()).map(element).collect()
}

/// What the cache holds of values that are exact.
fn rounded(format: KvFormat, exact: &[Want]) -> Vec<Want> {
    #[expect(clippy::cast_possible_truncation, reason = "quarter turns of f32 values are f32 values")]
    let value = |want: &Want| match want {
        Want::Near { value, .. } => *value as f32,
        Want::Exactly(bits) => f32::from_bits(*bits),
    };
    let values: Vec<f32> = exact.iter().map(value).collect();
    format.words(&values).into_iter().map(Want::Exactly).collect()
}
