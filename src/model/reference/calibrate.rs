//! Second moments of what the matrices multiply, on a text: layer by layer, so that one layer's weights are in memory at a
//! time, with the residual streams of the whole text.

use std::collections::BTreeMap;

use gemm::Parallelism;
use rayon::prelude::*;

use super::super::rope::rotary_table;
use super::super::weights::{EMBEDDING, Linear};
use super::super::{Batch, PAGE, Phase, Place};
use super::{Layer, Packer, in_pool};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::quant::{Moments, Precision};

/// A text on its way through the layers of a model at full precision.
#[derive(Debug)]
pub(crate) struct Calibration<'a> {
    checkpoint: &'a Checkpoint,
    /// A window each, with its residual stream, `[t, d]`.
    windows: Vec<(Batch, Vec<f32>)>,
    rotary: Vec<[f32; 2]>,
    pages: usize,
    next: usize,
}

impl<'a> Calibration<'a> {
    /// Looks up the embeddings of `windows` of tokens, none longer than the context.
    ///
    /// # Errors
    ///
    /// If the embedding cannot be read, or a token has no row in it.
    pub(crate) fn new(checkpoint: &'a Checkpoint, windows: &[Vec<u32>]) -> Result<Self> {
        let config = checkpoint.config();
        let (v, d) = (config.vocab_size, config.hidden_size);
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
        let pages = longest.div_ceil(PAGE);
        let embedding = checkpoint.tensors().read(EMBEDDING, &[v, d])?.to_f32();
        let mut streams = Vec::with_capacity(windows.len());
        for window in windows {
            let mut stream = Vec::with_capacity(window.len() * d);
            for &token in window {
                let row = embedding.get(token as usize * d..(token as usize + 1) * d);
                let path = || checkpoint.path().to_path_buf();
                stream.extend(row.ok_or_else(|| Error::TokenId { path: path(), id: token, vocab: v })?);
            }
            streams.push((whole(window, pages), stream));
        }
        let rotary = rotary_table(config, pages * PAGE);
        Ok(Self { checkpoint, windows: streams, rotary, pages, next: 0 })
    }

    /// Takes the text through the next layer; gives the moments of its matrices' inputs. q, k and v share theirs, and so do
    /// gate and up.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read.
    pub(crate) fn layer(&mut self) -> Result<LayerMoments> {
        let config = self.checkpoint.config();
        let packer = Packer { target: None, precision_of: |_: &str| Precision::Full };
        let mut layer = Layer::load(self.checkpoint, self.next, &packer, self.pages)?;
        let mut sums: BTreeMap<usize, (usize, Vec<f64>)> = BTreeMap::new();
        for (batch, stream) in &mut self.windows {
            let tokens = batch.tokens.len();
            let mut see = |linear: Linear, inputs: &[f32]| {
                let n = inputs.len() / tokens.max(1);
                let (_, sum) = sums.entry(place(linear)).or_insert_with(|| (n, vec![0.0; n * n]));
                add_products(sum, inputs, n);
            };
            in_pool(|| layer.run(stream, batch, config, &self.rotary, false, &mut see));
        }
        self.next += 1;
        let moments = sums.into_iter().map(|(place, (n, mut sum))| {
            mirror(&mut sum, n);
            (place, Moments::new(n, sum))
        });
        Ok(LayerMoments(moments.collect()))
    }
}

/// The moments of one layer's inputs.
#[derive(Debug)]
pub(crate) struct LayerMoments(BTreeMap<usize, Moments>);

impl LayerMoments {
    /// Those of one matrix; `None` if the text had no token.
    pub(crate) fn of(&self, linear: Linear) -> Option<&Moments> {
        self.0.get(&place(linear))
    }
}

/// Which inputs a matrix multiplies.
fn place(linear: Linear) -> usize {
    match linear {
        Linear::Q | Linear::K | Linear::V => 0,
        Linear::O => 1,
        Linear::Gate | Linear::Up => 2,
        Linear::Down => 3,
    }
}

/// A window as a batch of its own.
fn whole(tokens: &[u32], pages: usize) -> Batch {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let place =
        |position: usize| Place { position: number(position), slot: number(position), table: 0, pad: 0 };
    Batch {
        phase: Phase::Prefill,
        tokens: tokens.to_vec(),
        places: (0..tokens.len()).map(place).collect(),
        table: (0..number(pages)).collect(),
        wanted: Vec::new(),
    }
}

/// Columns whose products are made together.
const PRODUCTS: usize = 128;

/// Adds `inputs' inputs` of `[t, n]` to `[n, n]`: what is above the diagonal, and of what is below only what is in a block with
/// it ([`mirror`]).
fn add_products(sum: &mut [f64], inputs: &[f32], n: usize) {
    let wide: Vec<f64> = inputs.par_iter().map(|&value| f64::from(value)).collect();
    let (rows, columns) = (n.cast_signed(), 1);
    for first in (0..n).step_by(PRODUCTS) {
        let (some, rest) = (PRODUCTS.min(n - first), n - first);
        #[expect(unsafe_code, reason = "gemm takes pointers")]
        // SAFETY: `sum` is [n, n], `wide` is [t, n]; both are row-major and live, and do not overlap. Of both only the columns
        // from `first < n` on are used, of `sum` in the rows from `first` on.
        unsafe {
            gemm::gemm(
                some,
                rest,
                wide.len() / n,
                sum.as_mut_ptr().add(first * (n + 1)),
                columns,
                rows,
                true,
                wide.as_ptr().add(first),
                rows,
                columns,
                wide.as_ptr().add(first),
                columns,
                rows,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
        }
    }
}

/// Copies what is above the diagonal of `[n, n]` to below it.
fn mirror(sum: &mut [f64], n: usize) {
    for row in 0..n {
        for column in 0..row {
            sum[row * n + column] = sum[column * n + row];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::Norm;

    /// The first matrices multiply the normed embeddings.
    #[test]
    fn the_first_moments_are_those_of_the_normed_embedding() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model/tiny_llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = checkpoint.config();
        let d = config.hidden_size;
        let read = |name: &str, shape: &[usize]| checkpoint.tensors().read(name, shape).unwrap().to_f32();
        let embedding = read(EMBEDDING, &[config.vocab_size, d]);
        let norm = read(&Norm::Attention.name(0), &[d]);
        let windows = [vec![3, 17, 5, 9], vec![1, 2]];
        let mut sums = vec![0.0; d * d];
        for &token in windows.iter().flatten() {
            let row: Vec<f64> = embedding[token as usize * d..][..d].iter().map(|&x| f64::from(x)).collect();
            let mean = row.iter().map(|x| x * x).sum::<f64>() / d as f64;
            let scale = 1.0 / (mean + f64::from(config.rms_norm_eps)).sqrt();
            let x: Vec<f64> = row.iter().zip(&norm).map(|(x, &norm)| x * scale * f64::from(norm)).collect();
            for (i, a) in x.iter().enumerate() {
                x.iter().enumerate().for_each(|(j, b)| sums[i * d + j] += a * b);
            }
        }
        let mut calibration = Calibration::new(&checkpoint, &windows).unwrap();
        let found = calibration.layer().unwrap();
        let (got, want) = (found.of(Linear::Q).unwrap(), Moments::new(d, sums));
        assert!(got.distance(&want) < 1e-6, "{}", got.distance(&want));
        assert_eq!(found.of(Linear::V), found.of(Linear::Q));
        assert_eq!(found.of(Linear::Down).unwrap().inputs(), config.intermediate_size);
        // The stream goes on: the next layer sees other inputs.
        let next = calibration.layer().unwrap();
        assert!(next.of(Linear::Q).unwrap().distance(&want) > 1e-3);
        let error = Calibration::new(&checkpoint, &[vec![u32::MAX]]).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
    }
}
