//! The last norm and the head: logits of wanted rows, folded chunk by chunk of the vocabulary.

use super::layer::Projection;
use super::scratch::Scratch;
use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernels::{FOLD_CHUNK, Fold, FoldState, Matrix, NormOperands, RmsNorm, RmsNormForm};
use crate::model::{Batch, Folded};

/// The head's weights and kernels.
#[derive(Debug)]
pub(super) struct Head {
    norm: Buffer,
    projection: Projection,
    gather: RmsNorm,
    fold: Fold,
}

impl Head {
    pub(super) fn new(gpu: &Gpu, matrix: Matrix, norm: Buffer) -> Result<Self> {
        let gather = RmsNorm::new(gpu, RmsNormForm::Gather, matrix.k)?;
        let launched = matrix.n.min(FOLD_CHUNK);
        let projection = Projection::new(gpu, matrix, None, false, launched)?;
        Ok(Self { norm, projection, gather, fold: Fold::new(gpu)? })
    }

    /// Chunks of the vocabulary: first row and count.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let vocab = self.projection.matrix.n;
        (0..vocab).step_by(FOLD_CHUNK).map(move |first| (first, FOLD_CHUNK.min(vocab - first)))
    }

    fn record_norm(&self, commands: &mut Commands, scratch: &Scratch, config: &Config, batch: &Batch) {
        let operands = NormOperands {
            h: &scratch.h,
            rows: Some(&scratch.rows),
            gain: &self.norm,
            y: &scratch.hidden,
            count: batch.wanted.len(),
            d: config.hidden_size,
            eps: config.rms_norm_eps,
        };
        self.gather.record(commands, operands);
    }

    fn record_chunk(
        &self,
        commands: &mut Commands,
        scratch: &Scratch,
        batch: &Batch,
        first: usize,
        n: usize,
    ) {
        let (x, y) = (&scratch.hidden, &scratch.logits);
        self.projection.record_rows(commands, batch.phase, x, y, batch.wanted.len(), first, n);
    }

    /// Records everything from the last layer's output to the statistics.
    pub(super) fn record(&self, commands: &mut Commands, scratch: &Scratch, config: &Config, batch: &Batch) {
        self.record_norm(commands, scratch, config, batch);
        let (logits, given, states) = (&scratch.logits, &scratch.given, &scratch.states);
        for (first, n) in self.chunks() {
            self.record_chunk(commands, scratch, batch, first, n);
            self.fold.record(commands, logits, given, states, batch.wanted.len(), n, first);
        }
    }

    /// Waits, and reads the statistics of every wanted row.
    pub(super) fn read(&self, gpu: &Gpu, scratch: &Scratch, batch: &Batch) -> Result<Vec<Folded>> {
        let states: Vec<FoldState> = gpu.read(&scratch.states, batch.wanted.len())?;
        let folded = |state: FoldState| Folded {
            log_sum_exp: state.log_sum_exp(),
            argmax: state.argmax,
            max_logit: state.top,
            given_logit: state.given_logit,
        };
        Ok(states.into_iter().map(folded).collect())
    }

    /// The logits themselves, `[wanted, v]`, a chunk at a time: for tests.
    pub(super) fn logits(
        &self,
        gpu: &Gpu,
        scratch: &Scratch,
        config: &Config,
        batch: &Batch,
    ) -> Result<Vec<f32>> {
        let (rows, vocab) = (batch.wanted.len(), config.vocab_size);
        let mut logits = vec![0.0; rows * vocab];
        let mut commands = Commands::paced(gpu);
        self.record_norm(&mut commands, scratch, config, batch);
        for (first, n) in self.chunks() {
            self.record_chunk(&mut commands, scratch, batch, first, n);
            std::mem::replace(&mut commands, Commands::paced(gpu)).submit(gpu)?;
            let chunk: Vec<f32> = gpu.read(&scratch.logits, rows * n)?;
            for (row, chunk) in logits.chunks_mut(vocab).zip(chunk.chunks(n)) {
                row[first..first + n].copy_from_slice(chunk);
            }
        }
        Ok(logits)
    }
}
