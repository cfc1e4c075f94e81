//! Rotary position embedding (arXiv 2104.09864, half-split pairs) and the write into the KV cache.

use std::sync::Arc;

use super::case::{ULP, noise};
use super::link::{file, params, plain};
use super::pack::small;
use super::split::moving;
use super::{Case, Kernel, Output, Prepared, Want, Work};
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu, Grid, Pipeline, Source};

const WG: u32 = 64;

params!(Params { t: u32, heads: u32, kv_heads: u32, half: u32 });

pub(super) const KERNEL: Kernel =
    Kernel { name: "rope", sources: || vec![source()], params: Params::layout, cases };

fn source() -> Source {
    let mut source = plain("rope".to_owned(), file!("rope.wgsl")).with_index();
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

/// Turns queries and keys, and fills the cache.
#[derive(Clone, Debug)]
pub struct Rope {
    pipeline: Arc<Pipeline>,
}

/// A launch's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[t]` of four u32: position, slot, first table entry, unused.
    pub places: &'a Buffer,
    /// `[positions, e / 2]` cosine and sine.
    pub rotary: &'a Buffer,
    /// `[t, h, e]` f32, turned in place.
    pub q: &'a Buffer,
    /// `[t, g, e]` f32.
    pub k: &'a Buffer,
    /// `[t, g, e]` f32.
    pub v: &'a Buffer,
    /// `[slots, g, e]` f32; the tokens' slots are overwritten.
    pub cache_k: &'a Buffer,
    /// `[slots, g, e]` f32; the tokens' slots are overwritten.
    pub cache_v: &'a Buffer,
    /// Tokens.
    pub t: usize,
    /// The heads.
    pub heads: Heads,
}

impl Rope {
    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the shader does not compile.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { pipeline: gpu.pipeline(&source())? })
    }

    /// Records one launch.
    pub fn record(&self, commands: &mut Commands, operands: Operands<'_>) {
        let Operands { places, rotary, q, k, v, cache_k, cache_v, t, heads } = operands;
        let half = heads.width / 2;
        let params =
            Params { t: small(t), heads: small(heads.queries), kv_heads: small(heads.kv), half: small(half) };
        let buffers = [
            ("places", places),
            ("rotary", rotary),
            ("q", q),
            ("k", k),
            ("v", v),
            ("cache_k", cache_k),
            ("cache_v", cache_v),
        ];
        let pairs = t * (heads.queries + 2 * heads.kv) * half;
        let grid = Grid::flat(pairs.div_ceil(WG as usize));
        commands.dispatch(&self.pipeline, &params, &buffers, grid, moving(16 * pairs));
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, queries, kv, width, timed) in
        [(1, 1, 1, 8, false), (5, 4, 2, 24, false), (19, 6, 3, 64, false), (256, 16, 8, 64, true)]
    {
        let heads = Heads { queries, kv, width };
        cases.push(Case {
            name: format!("rope/ t={t} h={queries} g={kv} e={width}"),
            work: Work::Bytes((8 * t * (queries + 2 * kv) * width) as u64),
            timed,
            prepare: Box::new(move |gpu| prepare(gpu, t, heads)),
        });
    }
    cases
}

fn prepare(gpu: &Gpu, t: usize, heads: Heads) -> Result<Prepared> {
    let Heads { queries, kv, width } = heads;
    let q = noise(31, t * queries * width);
    let k = noise(32, t * kv * width);
    let v = noise(33, t * kv * width);
    // Slots out of order, one of two left free; positions start at 3.
    let slots = 2 * t;
    let place = |token: usize| [small(token + 3), small(2 * (t - 1 - token)), 0, 0];
    let places: Vec<[u32; 4]> = (0..t).map(place).collect();
    let turn = |index: usize| {
        let angle = (index / (width / 2)) as f32 * 0.9f32.powf((index % (width / 2)) as f32);
        [angle.cos(), angle.sin()]
    };
    let rotary: Vec<[f32; 2]> = (0..(t + 3) * width / 2).map(turn).collect();

    let places_buffer = gpu.upload("places", &places)?;
    let rotary_buffer = gpu.upload("rotary", &rotary)?;
    let q_buffer = gpu.upload("q", &q)?;
    let k_buffer = gpu.upload("k", &k)?;
    let v_buffer = gpu.upload("v", &v)?;
    let untouched = 7.0f32;
    let cache = vec![untouched; slots * kv * width];
    let cache_k = gpu.upload("cache_k", &cache)?;
    let cache_v = gpu.upload("cache_v", &cache)?;

    let at = places.clone();
    let turns = rotary.clone();
    let turned_q = move || {
        let heads = q.chunks(width).enumerate();
        heads.flat_map(|(index, head)| turned(head, &turns, at[index / queries][0])).collect()
    };
    let (at, turns) = (places.clone(), rotary);
    let keys = move || {
        let mut want = vec![Want::Exactly(untouched.to_bits()); slots * kv * width];
        for (index, head) in k.chunks(width).enumerate() {
            let [position, slot, ..] = at[index / kv];
            let first = (slot as usize * kv + index % kv) * width;
            want[first..][..width].copy_from_slice(&turned(head, &turns, position));
        }
        want
    };
    let values = move || {
        let mut want = vec![Want::Exactly(untouched.to_bits()); slots * kv * width];
        for (index, head) in v.chunks(width).enumerate() {
            let first = (places[index / kv][1] as usize * kv + index % kv) * width;
            for (want, value) in want[first..].iter_mut().zip(head) {
                *want = Want::Exactly(value.to_bits());
            }
        }
        want
    };
    let outputs = vec![
        Output { name: "q", buffer: q_buffer.clone(), want: Box::new(turned_q) },
        Output { name: "cache_k", buffer: cache_k.clone(), want: Box::new(keys) },
        Output { name: "cache_v", buffer: cache_v.clone(), want: Box::new(values) },
    ];
    let kernel = Rope::new(gpu)?;
    let record = move |commands: &mut Commands| {
        let operands = Operands {
            places: &places_buffer,
            rotary: &rotary_buffer,
            q: &q_buffer,
            k: &k_buffer,
            v: &v_buffer,
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
