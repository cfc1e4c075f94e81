//! The last norm and the head: logits of wanted rows, folded chunk by chunk of the vocabulary.

use super::block::HeadRows;
use super::inputs::Inputs;
use super::scratch::Scratch;
use crate::checkpoint::Config;
use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};
use crate::kernels::{
    Diverge, Entropy, FOLD_CHUNK, Fold, FoldState, MatOperands, NormOperands, RmsNorm, RmsNormForm, Top,
};
use crate::model::Folded;

/// The head's kernels; its weights come as [`HeadRows`].
#[derive(Debug)]
pub(super) struct Head {
    gather: RmsNorm,
    fold: Fold,
    top: Top,
    pub(super) entropy: Entropy,
    pub(super) diverge: Diverge,
    d: usize,
    eps: f32,
}

impl Head {
    pub(super) fn new(gpu: &Gpu, config: &Config) -> Result<Self> {
        let gather = RmsNorm::new(gpu, RmsNormForm::Gather, config.hidden_size)?;
        Ok(Self {
            gather,
            fold: Fold::new(gpu)?,
            top: Top::new(gpu)?,
            entropy: Entropy::new(gpu)?,
            diverge: Diverge::new(gpu)?,
            d: config.hidden_size,
            eps: config.rms_norm_eps,
        })
    }

    /// Records the norm of the wanted rows of `h`, into `y`.
    pub(super) fn norm(
        &self,
        commands: &mut Commands,
        head: &HeadRows,
        inputs: &Inputs<'_>,
        h: &Buffer,
        y: &Buffer,
    ) {
        let (rows, gain) = (Some(&inputs.rows), &head.norm);
        let count = inputs.batch.wanted.len();
        self.gather.record(commands, NormOperands { h, rows, gain, y, count, d: self.d, eps: self.eps });
    }

    /// Chunks of the head's rows: the first of each, and their number.
    pub(super) fn chunks(head: &HeadRows) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = head.rows.matrix.n;
        (0..count).step_by(FOLD_CHUNK).map(move |first| (first, FOLD_CHUNK.min(count - first)))
    }

    /// Records a chunk of the logits of the normed rows `x`, into `y`.
    pub(super) fn chunk(
        commands: &mut Commands,
        head: &HeadRows,
        inputs: &Inputs<'_>,
        (first_row, n): (usize, usize),
        [x, y]: [&Buffer; 2],
    ) {
        let t = inputs.batch.wanted.len();
        let operands = MatOperands { x, bias: None, y, t, first_row, n, stride: n, first_column: 0 };
        head.rows.record_rows(commands, inputs.batch.phase, operands);
    }

    /// Records what these rows of the head add to the `states` of the wanted rows, and to the `best` tokens if they
    /// are asked for.
    #[expect(clippy::too_many_arguments, reason = "what is read, and what is written")]
    pub(super) fn record(
        &self,
        commands: &mut Commands,
        head: &HeadRows,
        scratch: &Scratch,
        inputs: &Inputs<'_>,
        h: &Buffer,
        states: &Buffer,
        best: Option<&Buffer>,
    ) {
        self.norm(commands, head, inputs, h, &scratch.normed);
        for (first, n) in Self::chunks(head) {
            let (logits, count) = (&scratch.logits, inputs.batch.wanted.len());
            Self::chunk(commands, head, inputs, (first, n), [&scratch.normed, logits]);
            self.fold.record(commands, logits, &inputs.given, states, count, n, head.first + first);
            if let Some(best) = best {
                self.top.record(commands, logits, best, count, n, head.first + first);
            }
        }
    }
}

/// The statistics of a row as they are asked for.
pub(super) fn folded(state: FoldState) -> Folded {
    Folded {
        log_sum_exp: state.log_sum_exp(),
        argmax: state.argmax,
        max_logit: state.top,
        given_logit: state.given_logit,
    }
}
