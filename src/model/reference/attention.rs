//! One layer's keys and values, and attention over them.

use std::ops::Range;

use rayon::prelude::*;

use super::math::{Product, floats, softmax, vectorized};
use crate::checkpoint::Config;
use crate::model::{Batch, PAGE, Phase, Place};

/// Keys in one product of a prefill: whole pages, and what `gemm`'s widest kernel takes.
const KEYS: usize = 3 * PAGE;

/// Rows of queries in one product of a prefill, where heads allow it; the heads of a KV head count as rows.
const QUERIES: usize = 48;

/// The largest f16.
const F16_MAX: f32 = 65504.0;

/// One layer's part of the cache.
///
/// Pages are kept as attention reads them: keys turned, so that a row of queries meets [`PAGE`] keys at once.
#[derive(Debug)]
pub(super) struct Cache {
    /// `[pages, g, e, PAGE]`.
    keys: Vec<f32>,
    /// `[pages, g, PAGE, e]`.
    values: Vec<f32>,
    heads: usize,
    kv_heads: usize,
    /// `e`.
    width: usize,
}

/// What one task of a prefill works in.
#[derive(Default)]
struct Scratch {
    /// `[rows, e]`.
    queries: Vec<f32>,
    /// `[rows, keys]`.
    scores: Vec<f32>,
    /// Keys, `[e, KEYS]`, or values, `[KEYS, e]`.
    block: Vec<f32>,
    /// `[rows, e]`.
    out: Vec<f32>,
}

impl Cache {
    pub(super) fn new(config: &Config, pages: usize) -> Self {
        let floats = pages * PAGE * config.kv_heads * config.head_dim;
        Self {
            keys: vec![0.0; floats],
            values: vec![0.0; floats],
            heads: config.heads,
            kv_heads: config.kv_heads,
            width: config.head_dim,
        }
    }

    /// Query heads that share a KV head.
    fn sharing(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Where a page of one KV head begins, in keys and in values.
    fn page(&self, page: usize, kv_head: usize) -> Range<usize> {
        let floats = PAGE * self.width;
        let start = (page * self.kv_heads + kv_head) * floats;
        start..start + floats
    }

    /// Writes keys and values, `[t, g, e]`, to their slots; rounded to f16 and back if `as_f16`.
    pub(super) fn store(&mut self, k: &[f32], v: &[f32], places: &[Place], as_f16: bool) {
        let width = self.width;
        let kept = |value: f32| if as_f16 { round_to_f16(value) } else { value };
        let rows =
            k.chunks_exact(self.kv_heads * width).zip(v.chunks_exact(self.kv_heads * width)).zip(places);
        for ((k, v), place) in rows {
            let (page, slot) = (place.slot as usize / PAGE, place.slot as usize % PAGE);
            for (kv_head, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
                let page = self.page(page, kv_head);
                let keys = self.keys[page.clone()].as_chunks_mut::<PAGE>().0;
                keys.iter_mut().zip(k).for_each(|(keys, key)| keys[slot] = kept(*key));
                let values = &mut self.values[page][slot * width..][..width];
                values.iter_mut().zip(v).for_each(|(kept_value, value)| *kept_value = kept(*value));
            }
        }
    }

    /// Causal attention, `[t, h, e]`; query head `i` reads KV head `i / (h / g)`.
    pub(super) fn attend(&self, q: &[f32], batch: &Batch) -> Vec<f32> {
        match batch.phase {
            Phase::Prefill => self.attend_in_blocks(q, batch),
            Phase::Decode => self.attend_by_rows(q, batch),
        }
    }

    /// A task takes a few rows that follow each other in a sequence, and one KV head.
    ///
    /// Every product has the same shape wherever it stands, blocks of keys begin at the sequence's start, and what lies
    /// beyond a row's position has weight 0: a row's bits do not depend on the rows it is taken with.
    fn attend_in_blocks(&self, q: &[f32], batch: &Batch) -> Vec<f32> {
        let (sharing, width) = (self.sharing(), self.width);
        let groups = groups(&batch.places, (QUERIES / sharing).max(1));
        let tasks: Vec<_> = groups
            .into_iter()
            .flat_map(|rows| (0..self.kv_heads).map(move |kv_head| (rows.clone(), kv_head)))
            .collect();
        let parts = tasks.par_iter().map_init(Scratch::default, |scratch, (rows, kv_head)| {
            self.attend_block(scratch, q, batch, rows.clone(), *kv_head);
            scratch.out[..rows.len() * sharing * width].to_vec()
        });
        let parts: Vec<_> = parts.collect();
        let mut out = floats(q.len());
        for ((rows, kv_head), part) in tasks.into_iter().zip(parts) {
            for (row, part) in rows.zip(part.chunks_exact(sharing * width)) {
                out[(row * self.kv_heads + kv_head) * sharing * width..][..part.len()].copy_from_slice(part);
            }
        }
        out
    }

    /// Attention of `rows` for one KV head, `[rows, h / g, e]`, into the beginning of `scratch.out`.
    fn attend_block(
        &self,
        scratch: &mut Scratch,
        q: &[f32],
        batch: &Batch,
        rows: Range<usize>,
        kv_head: usize,
    ) {
        let (sharing, e) = (self.sharing(), self.width);
        let m = (QUERIES / sharing).max(1) * sharing;
        let Scratch { queries, scores, block, out } = scratch;
        let keys = batch.places[rows.end - 1].position as usize + 1;
        let padded = keys.next_multiple_of(KEYS);
        queries.resize(m * e, 0.0);
        scores.resize(scores.len().max(m * padded), 0.0);
        block.resize(KEYS * e, 0.0);
        out.resize(m * e, 0.0);
        let scores = &mut scores[..m * padded];

        for (row, queries) in rows.clone().zip(queries.chunks_exact_mut(sharing * e)) {
            queries.copy_from_slice(&q[(row * self.kv_heads + kv_head) * sharing * e..][..sharing * e]);
        }
        queries[rows.len() * sharing * e..].fill(0.0);
        let table = &batch.table[batch.places[rows.start].table as usize..];
        let scale = 1.0 / (e as f32).sqrt();
        for first in (0..padded).step_by(KEYS) {
            self.gather_keys(block, table, first, keys, kv_head);
            let product = Product { x: queries, x_step: e, w: block, shape: [m, KEYS, e], scale };
            product.run(&mut scores[first..], padded, false);
        }
        vectorized(
            #[inline(always)]
            || {
                for (index, scores) in scores.chunks_exact_mut(padded).enumerate() {
                    // A row that is only there to fill up has the last one's keys, and is not looked at.
                    let row = (rows.start + index / sharing).min(rows.end - 1);
                    let (scores, beyond) = scores.split_at_mut(batch.places[row].position as usize + 1);
                    softmax(scores);
                    beyond.fill(0.0);
                }
            },
        );
        for first in (0..padded).step_by(KEYS) {
            self.gather_values(block, table, first, keys, kv_head);
            let product =
                Product { x: &scores[first..], x_step: padded, w: block, shape: [m, e, KEYS], scale: 1.0 };
            product.run(out, e, first > 0);
        }
    }

    /// Keys of positions `first..first + KEYS` as `[e, KEYS]`; zeros for pages that have none of the `count` keys.
    fn gather_keys(&self, block: &mut [f32], table: &[u32], first: usize, count: usize, kv_head: usize) {
        for page in 0..KEYS / PAGE {
            let columns =
                block.as_chunks_mut::<KEYS>().0.iter_mut().map(|keys| &mut keys[page * PAGE..][..PAGE]);
            let position = first + page * PAGE;
            if position < count {
                let page = self.page(table[position / PAGE] as usize, kv_head);
                let keys = self.keys[page].as_chunks::<PAGE>().0;
                columns.zip(keys).for_each(|(column, keys)| column.copy_from_slice(keys));
            } else {
                columns.for_each(|column| column.fill(0.0));
            }
        }
    }

    /// Values of positions `first..first + KEYS` as `[KEYS, e]`; zeros from position `count` on, since a weight of 0
    /// would not hide what another sequence has left there if it is not finite.
    fn gather_values(&self, block: &mut [f32], table: &[u32], first: usize, count: usize, kv_head: usize) {
        for (page, block) in block.chunks_exact_mut(PAGE * self.width).enumerate() {
            let position = first + page * PAGE;
            let floats = count.saturating_sub(position).min(PAGE) * self.width;
            let (block, beyond) = block.split_at_mut(floats);
            if floats > 0 {
                let page = self.page(table[position / PAGE] as usize, kv_head);
                block.copy_from_slice(&self.values[page][..floats]);
            }
            beyond.fill(0.0);
        }
    }

    /// A task takes one row and one KV head.
    fn attend_by_rows(&self, q: &[f32], batch: &Batch) -> Vec<f32> {
        let (sharing, e) = (self.sharing(), self.width);
        let mut out = vec![0.0; q.len()];
        let tasks = out.par_chunks_exact_mut(sharing * e).zip(q.par_chunks_exact(sharing * e)).enumerate();
        tasks.for_each_init(Vec::new, |scores, (index, (out, q))| {
            let (place, kv_head) = (&batch.places[index / self.kv_heads], index % self.kv_heads);
            let pages = &batch.table[place.table as usize..][..=place.position as usize / PAGE];
            scores.resize(pages.len() * PAGE, 0.0);
            vectorized(
                #[inline(always)]
                || {
                    for (out, q) in out.chunks_exact_mut(e).zip(q.chunks_exact(e)) {
                        self.attend_row(out, q, scores, pages, place.position as usize + 1, kv_head);
                    }
                },
            );
        });
        out
    }

    /// Attention of one head of one row over the first `count` positions. `out` comes as zeros.
    #[inline(always)]
    fn attend_row(
        &self,
        out: &mut [f32],
        q: &[f32],
        scores: &mut [f32],
        pages: &[u32],
        count: usize,
        kv_head: usize,
    ) {
        let scale = 1.0 / (self.width as f32).sqrt();
        for (scores, &page) in scores.as_chunks_mut::<PAGE>().0.iter_mut().zip(pages) {
            let keys = self.keys[self.page(page as usize, kv_head)].as_chunks::<PAGE>().0;
            let mut sums = [0.0; PAGE];
            for (q, keys) in q.iter().zip(keys) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum += q * key;
                }
            }
            *scores = sums.map(|sum| sum * scale);
        }
        let scores = &mut scores[..count];
        softmax(scores);
        for (weights, &page) in scores.chunks(PAGE).zip(pages) {
            let values = self.values[self.page(page as usize, kv_head)].chunks_exact(self.width);
            for (weight, values) in weights.iter().zip(values) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}

/// Cuts the rows into runs of at most `most` that follow each other in one sequence.
fn groups(places: &[Place], most: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (row, place) in places.iter().enumerate() {
        match groups.last_mut() {
            Some(group)
                if group.len() < most
                    && places[row - 1].table == place.table
                    && places[row - 1].position.checked_add(1) == Some(place.position) =>
            {
                group.end = row + 1;
            }
            _ => groups.push(row..row + 1),
        }
    }
    groups
}

/// The nearest f16, half to even; what is beyond them, infinity too, becomes the largest. NaN stays.
fn round_to_f16(value: f32) -> f32 {
    half::f16::from_f32(value.clamp(-F16_MAX, F16_MAX)).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_halves_are_rounded_to_even_and_saturate() {
        for (value, want) in [
            (0.1, 0.099_975_586),
            (1.0 + 1.0 / 2048.0, 1.0),
            (1.0 + 3.0 / 2048.0, 1.0 + 2.0 / 1024.0),
            (65519.0, F16_MAX),
            (-7e4, -F16_MAX),
            (f32::INFINITY, F16_MAX),
            (2f32.powi(-25), 0.0),
            (3.0 * 2f32.powi(-26), 2f32.powi(-24)),
        ] {
            assert_eq!(round_to_f16(value), want, "{value}");
        }
        assert!(round_to_f16(f32::NAN).is_nan());
    }

    #[test]
    fn groups_are_runs_of_one_sequence() {
        let place = |table, position| Place { position, slot: 0, table, pad: 0 };
        let places = [
            place(0, 5),
            place(0, 6),
            place(0, 7),
            place(0, 8),
            place(4, 0),
            place(4, 1),
            place(4, 3),
            place(0, 4),
        ];
        assert_eq!(groups(&places, 3), [0..3, 3..4, 4..6, 6..7, 7..8]);
        assert_eq!(groups(&places, 1).len(), 8);
        assert!(groups(&[], 3).is_empty());
    }
}
