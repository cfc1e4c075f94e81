//! The forward pass on the GPU, as a list of kernel calls, for many arms in lockstep.
//!
//! A pass goes block by block (half a layer, or rows of the head): a block's weights are loaded once for all arms,
//! applied to every batch of every arm, and kept or let go. So a model runs that does not fit the device, and
//! resident or streamed, many batches or one, it is the same code.

mod answers;
mod block;
mod cache;
mod compare;
mod embedding;
mod head;
mod inputs;
mod job;
mod layout;
mod loader;
mod parts;
mod reader;
mod run;
mod scratch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use self::block::Kernels;
use self::cache::Caches;
use self::head::Head;
use self::job::Pool;
use self::loader::Loader;
use self::scratch::Scratch;
use super::rope::rotary_table;
use super::{Batch, Capacity, Compared, Comparing, Counters, Folded, Lockstep, PAGE, Pass, Room, Work};
use crate::checkpoint::{Checkpoint, Config};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::quant::Precision;

pub use layout::{Layout, Residence, Share, Sizes};

/// A checkpoint at a precision: what one arm is made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// Arms of the same checkpoint share what is read.
    pub checkpoint: Arc<Checkpoint>,
    /// How its matrices are kept.
    pub precision: Precision,
    /// The checkpoint from which its update leads, for roundings that ask for it.
    pub target: Option<Arc<Checkpoint>>,
    /// Names of the tensors that this is true of, the others being kept as stored; all of them if there is no list.
    pub only: Option<Arc<BTreeSet<String>>>,
}

impl Source {
    /// All matrices at one precision.
    #[must_use]
    pub fn new(checkpoint: &Arc<Checkpoint>, precision: Precision) -> Self {
        Self { checkpoint: Arc::clone(checkpoint), precision, target: None, only: None }
    }

    /// With the checkpoint from which its update leads.
    #[must_use]
    pub fn with_target(self, target: &Arc<Checkpoint>) -> Self {
        Self { target: Some(Arc::clone(target)), ..self }
    }

    /// Refuses an arm whose rounding looks at an update and that does not say where it leads from.
    ///
    /// # Errors
    ///
    /// [`Error::Flag`] without a target, [`Error::CheckpointsDiffer`] if that has another architecture.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.precision.rounding().needs_target() {
            return Ok(());
        }
        match &self.target {
            Some(target) => {
                self.checkpoint.must_run_like(target, "the target's, whose update the rounding looks at")
            }
            None => Err(Error::Flag {
                flag: "--keep-from",
                found: "nothing".to_owned(),
                expected: format!(
                    "the checkpoint that {} was made from, for {}",
                    self.checkpoint.path().display(),
                    self.precision
                ),
            }),
        }
    }

    /// All checkpoints that are read for it: its own, and the target if its rounding asks for that.
    pub(crate) fn read(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let target = self.target.as_ref().filter(|_| self.precision.rounding().needs_target());
        std::iter::once(&self.checkpoint).chain(target)
    }

    /// How a tensor is kept.
    #[must_use]
    pub fn precision_of(&self, tensor: &str) -> Precision {
        match &self.only {
            Some(only) if !only.contains(tensor) => Precision::Full,
            _ => self.precision,
        }
    }
}

/// Arms on the GPU, in lockstep.
///
/// A row's bits depend on nothing but the tokens before it and on whether they came as prompt or were generated: not
/// on the batch, the other arms or the layout.
#[derive(Debug)]
pub struct Llama {
    gpu: Arc<Gpu>,
    config: Config,
    arms: usize,
    layout: Layout,
    loader: Loader,
    kernels: Kernels,
    head: Head,
    scratch: Scratch,
    caches: Option<Caches>,
    pool: Pool,
    counters: Counters,
    /// What others' counters said when this model was made: the device and the checkpoints may be shared.
    before: Outside,
}

#[derive(Clone, Copy, Debug)]
struct Outside {
    read: u64,
    uploaded: u64,
    dispatches: u64,
    submissions: u64,
}

impl Outside {
    fn of(gpu: &Gpu, sources: &[Source]) -> Self {
        let mut seen: Vec<&Arc<Checkpoint>> = Vec::new();
        for checkpoint in sources.iter().flat_map(Source::read) {
            if !seen.iter().any(|known| Arc::ptr_eq(known, checkpoint)) {
                seen.push(checkpoint);
            }
        }
        Self {
            read: seen.iter().map(|checkpoint| checkpoint.tensors().bytes_read()).sum(),
            uploaded: gpu.uploaded_bytes(),
            dispatches: gpu.dispatches(),
            submissions: gpu.submissions(),
        }
    }
}

/// Rows of the states that lie side by side, so that every batch's part can be bound.
const STATES_ALIGNED: usize = 16;

impl Llama {
    /// Prepares arms of one architecture. Weights are read by the first pass.
    ///
    /// The matrices of the layers are quantized; embedding and norms stay as stored, and so does
    /// the head unless `quantize_head` (a tied head is then quantized apart from the embedding).
    ///
    /// # Errors
    ///
    /// [`Error::CheckpointsDiffer`] if the arms are not of one architecture; if an embedding cannot be read or the
    /// device cannot hold the activations.
    pub fn new(gpu: &Arc<Gpu>, sources: &[Source], quantize_head: bool, layout: Layout) -> Result<Self> {
        let start = Instant::now();
        let before = Outside::of(gpu, sources);
        let Some(first) = sources.first() else {
            let expected = "at least one".to_owned();
            return Err(Error::Shape { kernel: "forward", what: "number of arms", got: 0, expected });
        };
        let config = first.checkpoint.config().clone();
        for source in sources {
            source.checkpoint.must_run_like(&first.checkpoint, "the same for all that run in lockstep")?;
            source.check()?;
        }
        let loader = Loader::new(gpu, sources, quantize_head, &layout)?;
        let positions = layout.score.pages.max(layout.generate.pages) * PAGE;
        let rotary = gpu.upload("rotary table", &rotary_table(&config, positions))?;
        let kernels = Kernels::new(gpu, &config, layout.kv, rotary)?;
        let scratch = Scratch::new(gpu, &config, layout.tokens, layout.tokens)?;
        let mut counters = Counters::default();
        counters.seconds.load = start.elapsed().as_secs_f64() - loader.seconds();
        Ok(Self {
            gpu: Arc::clone(gpu),
            arms: sources.len(),
            loader,
            kernels,
            head: Head::new(gpu, &config)?,
            scratch,
            caches: None,
            pool: Pool::new(Sizes::stream(&config, layout.tokens)),
            config,
            layout,
            counters,
            before,
        })
    }

    /// Refuses batches that the buffers, the embedding or the rotary table have no room for.
    fn check(&self, batch: &Batch, work: Work) -> Result<()> {
        let vocab = self.config.vocab_size;
        let ids = batch.tokens.iter().chain(batch.wanted.iter().map(|wanted| &wanted.given));
        if let Some(&id) = ids.into_iter().find(|id| **id as usize >= vocab) {
            let path = self.loader.checkpoints().first().map(|checkpoint| checkpoint.path().to_path_buf());
            return Err(Error::TokenId { path: path.unwrap_or_default(), id, vocab });
        }
        let too_large = |what, got, limit: usize| {
            Err(Error::Shape { kernel: "forward", what, got, expected: format!("at most {limit}") })
        };
        let Capacity { tokens, wanted, pages } = self.room(work).capacity;
        if batch.tokens.len() > tokens {
            return too_large("tokens", batch.tokens.len(), tokens);
        }
        if batch.wanted.len() > wanted {
            return too_large("wanted rows", batch.wanted.len(), wanted);
        }
        let farthest = batch.places.iter().map(|place| place.position.max(place.slot) as usize).max();
        match farthest {
            Some(slot) if slot >= pages * PAGE => too_large("position or slot", slot, pages * PAGE - 1),
            _ => Ok(()),
        }
    }
}

impl Lockstep for Llama {
    fn arms(&self) -> usize {
        self.arms
    }

    fn room(&self, work: Work) -> Room {
        let Share { batches, pages } = self.layout.share(work);
        let tokens = self.layout.tokens;
        Room { capacity: Capacity { tokens, wanted: tokens, pages }, batches, enough: batches }
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>> {
        let (inputs, jobs) = self.start(pass, 1)?;
        let jobs = self.layers(&inputs, jobs)?;
        let answers = self.answers(&inputs, &jobs);
        self.pool.give(jobs);
        answers
    }

    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> Result<Compared> {
        let (inputs, jobs) = self.start(Pass::Score(batches), 2)?;
        let jobs = self.layers(&inputs, jobs)?;
        let compared = self.compared(&inputs, &jobs, what);
        self.pool.give(jobs);
        compared
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        let read = self.loader.read_checkpoints().iter().map(|checkpoint| checkpoint.tensors().bytes_read());
        counters.disk_bytes = read.sum::<u64>() - self.before.read;
        counters.upload_bytes = self.gpu.uploaded_bytes() - self.before.uploaded;
        counters.dispatches = self.gpu.dispatches() - self.before.dispatches;
        counters.submissions = self.gpu.submissions() - self.before.submissions;
        counters.peak_device_bytes = self.gpu.peak_bytes();
        counters.peak_allocated_bytes = self.gpu.peak_allocated_bytes().unwrap_or(0);
        counters.seconds.load += self.loader.seconds();
        counters
    }
}
