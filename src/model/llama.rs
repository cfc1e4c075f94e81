//! The forward pass on the GPU, as a list of kernel calls, for many arms in lockstep.
//!
//! A pass goes block by block (half a layer, or rows of the head): a block's weights are loaded once for all arms,
//! applied to every batch of every arm, and kept or let go. So a model runs that does not fit the device, and
//! resident or streamed, many batches or one, it is the same code.

mod block;
mod cache;
mod embedding;
mod head;
mod inputs;
mod job;
mod layout;
mod loader;
mod parts;
mod reader;
mod scratch;

use std::sync::Arc;
use std::time::Instant;

use self::block::{Block, Blocks, HeadRows, Kernels};
use self::cache::Caches;
use self::head::Head;
use self::inputs::Inputs;
use self::job::{Job, Pool, Stream};
use self::loader::Loader;
use self::scratch::Scratch;
use super::rope::rotary_table;
use super::{Batch, Capacity, Counters, Folded, Lockstep, PAGE, Pass, Room, Work};
use crate::checkpoint::{Checkpoint, Config};
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu};
use crate::kernels::FoldState;
use crate::quant::Precision;

pub use layout::{Layout, Residence, Share, Sizes};

/// A checkpoint at a precision: what one arm is made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// Arms of the same checkpoint share what is read.
    pub checkpoint: Arc<Checkpoint>,
    /// How its matrices are kept.
    pub precision: Precision,
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
        for source in sources {
            if !seen.iter().any(|known| Arc::ptr_eq(known, &source.checkpoint)) {
                seen.push(&source.checkpoint);
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
            if !source.checkpoint.config().runs_like(&config) {
                return Err(Error::CheckpointsDiffer {
                    path: source.checkpoint.path().to_path_buf(),
                    target: first.checkpoint.path().to_path_buf(),
                    what: "the architecture in config.json".to_owned(),
                    found: "another".to_owned(),
                    expected: "the same for all that run in lockstep".to_owned(),
                });
            }
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

    /// The logits of every wanted row in every arm, `[wanted, v]`, for tests; the given tokens do not matter.
    ///
    /// # Errors
    ///
    /// As [`Lockstep::run`].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let batches = std::slice::from_ref(batch);
        let (inputs, jobs) = self.start(Pass::Score(batches))?;
        let jobs = self.layers(&inputs, jobs)?;
        let (rows, vocab) = (batch.wanted.len(), self.config.vocab_size);
        let mut logits = vec![vec![0.0; rows * vocab]; self.arms];
        for block in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(block)?;
            for job in &jobs {
                for arm in &job.arms {
                    let head = head_of(&blocks, *arm);
                    for (input, stream) in &job.streams {
                        let Stream::Device(h) = stream else { continue };
                        for (first, n) in Head::chunks(head) {
                            let mut commands = Commands::paced(&self.gpu);
                            self.head.norm(&mut commands, head, &self.scratch, &inputs[*input], h);
                            Head::chunk(&mut commands, head, &self.scratch, &inputs[*input], (first, n));
                            commands.submit(&self.gpu)?;
                            let chunk: Vec<f32> = self.gpu.read(&self.scratch.logits, rows * n)?;
                            for (row, chunk) in logits[*arm].chunks_mut(vocab).zip(chunk.chunks(n)) {
                                row[head.first + first..][..n].copy_from_slice(chunk);
                            }
                        }
                    }
                }
            }
            self.loader.release(block);
        }
        self.pool.give(jobs);
        Ok(logits)
    }

    /// Checks the pass, uploads its batches, and makes a job for each set of arms that begin alike.
    fn start<'a>(&mut self, pass: Pass<'a>) -> Result<(Vec<Inputs<'a>>, Vec<Job>)> {
        let work = match pass {
            Pass::Score(_) => Work::Score,
            Pass::Generate(_) => Work::Generate,
        };
        if self.caches.as_ref().is_none_or(|caches| caches.work() != work) {
            // What the other kind of work needed goes first.
            self.caches = None;
            self.pool.clear();
            self.gpu.wait("a change of work")?;
            let pages = self.layout.share(work).pages;
            self.caches = Some(Caches::new(&self.gpu, &self.config, self.layout.kv, work, pages, self.arms)?);
        }
        let batches: Vec<&'a Batch> = match pass {
            Pass::Score(batches) => batches.iter().collect(),
            Pass::Generate(arms) => arms.iter().flatten().collect(),
        };
        batches.iter().try_for_each(|batch| self.check(batch, work))?;
        let inputs = batches.iter().map(|batch| Inputs::new(&self.gpu, batch)).collect::<Result<Vec<_>>>()?;
        let jobs = match pass {
            Pass::Score(_) => self.shared_jobs(&batches)?,
            Pass::Generate(arms) => {
                let mut first = 0;
                let mut jobs = Vec::new();
                for (arm, batches) in arms.iter().enumerate() {
                    let checkpoint = self.loader.checkpoint_of(arm);
                    let mut streams = Vec::new();
                    for (offset, batch) in batches.iter().enumerate() {
                        let rows = self.loader.embed(checkpoint, &batch.tokens)?;
                        streams.push((first + offset, self.stream(rows)?));
                    }
                    first += batches.len();
                    jobs.push(Job { arms: vec![arm], streams });
                }
                jobs
            }
        };
        self.loader.begin()?;
        Ok((inputs, jobs))
    }

    /// One job for all arms whose checkpoints have the same rows in the embedding.
    fn shared_jobs(&mut self, batches: &[&Batch]) -> Result<Vec<Job>> {
        let mut seen: Vec<(Vec<Vec<f32>>, Vec<usize>)> = Vec::new();
        for checkpoint in 0..self.loader.checkpoints().len() {
            let rows = batches.iter().map(|batch| self.loader.embed(checkpoint, &batch.tokens));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let arms = (0..self.arms).filter(|arm| self.loader.checkpoint_of(*arm) == checkpoint);
            match seen.iter_mut().find(|(known, _)| *known == rows) {
                Some((_, known)) => known.extend(arms),
                None => seen.push((rows, arms.collect())),
            }
        }
        let mut jobs = Vec::new();
        for (rows, arms) in seen {
            let streams = rows.into_iter().enumerate().map(|(input, rows)| Ok((input, self.stream(rows)?)));
            jobs.push(Job { arms, streams: streams.collect::<Result<_>>()? });
        }
        Ok(jobs)
    }

    /// Where a residual stream that begins as `rows` waits.
    fn stream(&mut self, rows: Vec<f32>) -> Result<Stream> {
        if self.layout.spill {
            return Ok(Stream::Host(rows));
        }
        let buffer = self.pool.take(&self.gpu)?;
        self.gpu.write(&buffer, &rows);
        Ok(Stream::Device(buffer))
    }

    /// Runs all layers of all jobs; there may be more jobs afterwards.
    fn layers(&mut self, inputs: &[Inputs<'_>], mut jobs: Vec<Job>) -> Result<Vec<Job>> {
        self.counters.weight_passes += 1;
        let mut commands = Commands::paced(&self.gpu);
        for number in 0..2 * self.config.layers {
            let blocks = self.loader.take(number)?;
            if jobs.iter().any(|job| job.arms.len() > 1) {
                // Copies come after what is recorded.
                std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
                jobs = self.fork(jobs, &blocks)?;
            }
            for job in &mut jobs {
                let Some(&arm) = job.arms.first() else { continue };
                for (input, stream) in &mut job.streams {
                    commands =
                        self.run_block(commands, &blocks[arm], &inputs[*input], arm, number / 2, stream)?;
                    self.loader.ahead(number)?;
                }
            }
            if self.loader.is_streamed() {
                commands.submit(&self.gpu)?;
                commands = Commands::paced(&self.gpu);
                self.gpu.wait("a block")?;
                drop(blocks);
                self.loader.release(number);
            }
        }
        commands.submit(&self.gpu)?;
        Ok(jobs)
    }

    /// Records one block of one batch, handing over what is enough for the device.
    fn run_block(
        &mut self,
        mut commands: Commands,
        block: &Block,
        inputs: &Inputs<'_>,
        arm: usize,
        layer: usize,
        stream: &mut Stream,
    ) -> Result<Commands> {
        let spilled = match stream {
            Stream::Host(values) => {
                let buffer = self.pool.take(&self.gpu)?;
                self.gpu.write(&buffer, values);
                Some(buffer)
            }
            Stream::Device(_) => None,
        };
        let h = match (&spilled, &*stream) {
            (Some(buffer), _) | (None, Stream::Device(buffer)) => buffer,
            (None, Stream::Host(_)) => return Ok(commands),
        };
        let Some(caches) = &self.caches else { unreachable!("made at the start of the pass") };
        match block {
            Block::Attention(attention) => {
                let kv = caches.of(arm, layer);
                attention.record(&mut commands, &self.kernels, &self.scratch, inputs, kv, h);
            }
            Block::FeedForward(feed_forward) => {
                feed_forward.record(&mut commands, &self.kernels, &self.scratch, inputs, h);
            }
            Block::Head(_) => unreachable!("the layers' blocks come first"),
        }
        if commands.is_full(&self.gpu) || spilled.is_some() {
            std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
        }
        if let (Some(buffer), Stream::Host(values)) = (spilled, stream) {
            *values = self.gpu.read(&buffer, values.len())?;
            self.pool.give_back(buffer);
        }
        Ok(commands)
    }

    /// Parts the arms of each job whose weights differ from here on.
    fn fork(&mut self, jobs: Vec<Job>, blocks: &Blocks) -> Result<Vec<Job>> {
        let mut parted = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            let mut others: Vec<Vec<usize>> = Vec::new();
            let Some(&first) = job.arms.first() else { continue };
            let alike = |a: usize, b: usize| Arc::ptr_eq(&blocks[a], &blocks[b]);
            let (same, different): (Vec<_>, Vec<_>) = job.arms.iter().partition(|arm| alike(**arm, first));
            for arm in different {
                match others.iter_mut().find(|arms| alike(arms[0], arm)) {
                    Some(arms) => arms.push(arm),
                    None => others.push(vec![arm]),
                }
            }
            let forks = others.into_iter().map(|arms| job.fork(&self.gpu, arms, &mut self.pool));
            let forks = forks.collect::<Result<Vec<_>>>()?;
            job.arms = same;
            parted.push(job);
            parted.extend(forks);
        }
        Ok(parted)
    }

    /// Runs the head on all wanted rows; the answers by arm.
    fn answers(&mut self, inputs: &[Inputs<'_>], jobs: &[Job]) -> Result<Vec<Vec<Folded>>> {
        // A job's arms may still differ in the head: each different head has states of its own.
        let mut ends: Vec<End<'_>> = Vec::new();
        let mut rows = 0;
        for number in 2 * self.config.layers..self.loader.blocks() {
            let blocks = self.loader.take(number)?;
            if ends.is_empty() {
                for job in jobs.iter().filter(|job| job.wanted(inputs) > 0) {
                    rows += ends_of(job, inputs, &blocks, rows, &mut ends);
                }
                if rows == 0 {
                    break;
                }
                self.reserve_states(rows)?;
            }
            let mut commands = Commands::paced(&self.gpu);
            for end in &ends {
                let head = head_of(&blocks, end.arms[0]);
                for ((input, stream), first) in end.job.streams.iter().zip(&end.firsts) {
                    let inputs = &inputs[*input];
                    if inputs.batch.wanted.is_empty() {
                        continue;
                    }
                    let Some(all) = &self.scratch.states else { unreachable!("reserved above") };
                    let size = size_of::<FoldState>();
                    let states = all.slice((first * size) as u64, (inputs.batch.wanted.len() * size) as u64);
                    let spilled = match stream {
                        Stream::Device(_) => None,
                        Stream::Host(values) => {
                            let buffer = self.pool.take(&self.gpu)?;
                            self.gpu.write(&buffer, values);
                            Some(buffer)
                        }
                    };
                    let h = match (&spilled, stream) {
                        (Some(buffer), _) | (None, Stream::Device(buffer)) => buffer,
                        (None, Stream::Host(_)) => continue,
                    };
                    self.head.record(&mut commands, head, &self.scratch, inputs, h, &states);
                    if commands.is_full(&self.gpu) || spilled.is_some() {
                        std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
                    }
                    if let Some(buffer) = spilled {
                        // The next one writes to the same memory after this work: the queue keeps the order.
                        self.pool.give_back(buffer);
                    }
                    self.loader.ahead(number)?;
                }
            }
            commands.submit(&self.gpu)?;
            if self.loader.is_streamed() {
                self.gpu.wait("rows of the head")?;
                drop(blocks);
                self.loader.release(number);
            }
        }
        let states: Vec<FoldState> = match &self.scratch.states {
            Some(states) if rows > 0 => self.gpu.read(states, rows)?,
            _ => Vec::new(),
        };
        let mut answers = vec![Vec::new(); self.arms];
        for end in &ends {
            let mut folded = Vec::new();
            for ((input, _), first) in end.job.streams.iter().zip(&end.firsts) {
                let count = inputs[*input].batch.wanted.len();
                folded.extend(states[*first..first + count].iter().copied().map(head::folded));
            }
            for arm in &end.arms {
                answers[*arm].clone_from(&folded);
            }
        }
        Ok(answers)
    }

    fn reserve_states(&mut self, rows: usize) -> Result<()> {
        let bytes = (rows * size_of::<FoldState>()) as u64;
        if self.scratch.states.as_ref().is_none_or(|states| states.bytes() < bytes) {
            self.scratch.states = None;
            self.scratch.states = Some(self.gpu.alloc("statistics", bytes.next_power_of_two())?);
        }
        Ok(())
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

/// Arms that have the same logits: a job's, with the same head.
#[derive(Debug)]
struct End<'a> {
    job: &'a Job,
    arms: Vec<usize>,
    /// By batch of the job: the first of its rows in the states.
    firsts: Vec<usize>,
}

/// Adds a job's ends, their states from `first` on; gives the number of rows that they take.
fn ends_of<'a>(
    job: &'a Job,
    inputs: &[Inputs<'_>],
    blocks: &Blocks,
    first: usize,
    ends: &mut Vec<End<'a>>,
) -> usize {
    let mut next = first;
    let own = ends.len();
    for &arm in &job.arms {
        let known = ends[own..].iter_mut().find(|end| Arc::ptr_eq(&blocks[end.arms[0]], &blocks[arm]));
        if let Some(end) = known {
            end.arms.push(arm);
            continue;
        }
        let firsts = job.streams.iter().map(|(input, _)| {
            let first = next;
            next += inputs[*input].batch.wanted.len().next_multiple_of(STATES_ALIGNED);
            first
        });
        let firsts = firsts.collect();
        ends.push(End { job, arms: vec![arm], firsts });
    }
    next - first
}

fn head_of(blocks: &Blocks, arm: usize) -> &HeadRows {
    match &*blocks[arm] {
        Block::Head(head) => head,
        _ => unreachable!("the head's blocks come last"),
    }
}

impl Lockstep for Llama {
    fn arms(&self) -> usize {
        self.arms
    }

    fn room(&self, work: Work) -> Room {
        let Share { batches, pages } = self.layout.share(work);
        let tokens = self.layout.tokens;
        Room { capacity: Capacity { tokens, wanted: tokens, pages }, batches }
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>> {
        let (inputs, jobs) = self.start(pass)?;
        let jobs = self.layers(&inputs, jobs)?;
        let answers = self.answers(&inputs, &jobs);
        self.pool.give(jobs);
        answers
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        let read = self.loader.checkpoints().iter().map(|checkpoint| checkpoint.tensors().bytes_read());
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
