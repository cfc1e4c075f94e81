//! Single arms for tests that need no more, and rooms smaller than a model has.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use undertext::checkpoint::Checkpoint;
use undertext::engine::{Engine, Finished, Observation, Options, Task};
use undertext::gpu::Gpu;
use undertext::kernels::{FOLD_CHUNK, KvFormat};
use undertext::model::{
    Batch, Capacity, Compared, Comparing, Counters, Each, Folded, Forward, Layout, Llama, Lockstep, PAGE,
    Pass, Residence, Room, Share, Source, Work,
};
use undertext::quant::Precision;

/// Room for `tokens` in the caches, everything resident.
pub(crate) fn layout(tokens: usize) -> Layout {
    let share = Share { batches: 4, pages: tokens.div_ceil(PAGE) };
    Layout {
        tokens: 1024,
        score: share,
        generate: share,
        residence: Residence::Resident,
        kv: KvFormat::F32,
        spill: false,
        head_rows: 1 << 20,
    }
}

/// A checkpoint at a precision.
pub(crate) fn source(checkpoint: &Arc<Checkpoint>, precision: Precision) -> Source {
    Source::new(checkpoint, precision)
}

/// One arm on a GPU.
pub(crate) fn llama(
    gpu: &Arc<Gpu>,
    checkpoint: &Arc<Checkpoint>,
    precision: Precision,
    quantize_head: bool,
    cache_tokens: usize,
) -> Llama {
    Llama::new(gpu, &[source(checkpoint, precision)], quantize_head, layout(cache_tokens)).unwrap()
}

/// What the arms of `model` answer.
pub(crate) fn observe_all<L: Lockstep>(model: L, options: Options, tasks: &[Task]) -> Vec<Vec<Observation>> {
    let names = (0..model.arms()).map(|arm| format!("arm {arm}")).collect();
    let mut engine = Engine::new(names, model, options);
    engine.run(tasks, &mut |_| Ok(())).unwrap().into_iter().map(Result::unwrap).collect()
}

/// What the one arm of `engine` answers.
pub(crate) fn run_one<L: Lockstep>(
    engine: &mut Engine<L>,
    tasks: &[Task],
    tell: &mut dyn FnMut(Finished<'_>) -> undertext::Result<()>,
) -> undertext::Result<Vec<Observation>> {
    let mut arms = engine.run(tasks, tell)?;
    assert_eq!(arms.len(), 1);
    arms.remove(0)
}

/// An engine on a single arm.
pub(crate) fn engine_of<F: Forward>(forward: F, options: Options) -> Engine<Each<F>> {
    Engine::new(vec!["arm".to_owned()], Each(vec![forward]), options)
}

/// Arms that pretend to have less room than they have.
pub(crate) struct SmallRoom<L>(pub(crate) L, pub(crate) Room);

impl<L> SmallRoom<L> {
    /// Of batches of `tokens` with `wanted` rows, as many as make a scored text whole.
    pub(crate) fn new(model: L, tokens: usize, wanted: usize, pages: usize) -> Self {
        let batches = (pages * PAGE).div_ceil(tokens.min(wanted));
        Self(model, Room { capacity: Capacity { tokens, wanted, pages }, batches, enough: batches })
    }
}

impl<L: Lockstep> Lockstep for SmallRoom<L> {
    fn arms(&self) -> usize {
        self.0.arms()
    }

    fn room(&self, _: Work) -> Room {
        self.1
    }

    fn run(&mut self, pass: Pass<'_>) -> undertext::Result<Vec<Vec<Folded>>> {
        self.0.run(pass)
    }

    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> undertext::Result<Compared> {
        self.0.compare(batches, what)
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }
}

/// A streamed layout: the head in rows of one chunk.
pub(crate) fn streamed(overlap: bool, spill: bool, cache_tokens: usize) -> Layout {
    Layout {
        residence: Residence::Streamed { overlap },
        spill,
        head_rows: FOLD_CHUNK,
        ..layout(cache_tokens)
    }
}
