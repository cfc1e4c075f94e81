//! A pass through the layers: every block of weights applied to every batch of every arm.

use std::sync::Arc;

use super::Llama;
use super::block::{Block, Blocks};
use super::cache::Caches;
use super::inputs::Inputs;
use super::job::{Job, Stream};
use crate::error::Result;
use crate::gpu::{Buffer, Commands};
use crate::model::{Batch, Pass, Work};

impl Llama {
    /// Checks the pass, uploads its batches, and makes a job for each set of arms that begin alike. The pass will run
    /// through the head `heads` times.
    pub(super) fn start<'a>(&mut self, pass: Pass<'a>, heads: usize) -> Result<(Vec<Inputs<'a>>, Vec<Job>)> {
        let work = match pass {
            Pass::Score(_) => Work::Score,
            Pass::Generate(_) => Work::Generate,
        };
        if self.caches.as_ref().is_none_or(|caches| caches.work() != work) {
            // What the other kind of work needed goes first.
            self.caches = None;
            self.pool.clear();
            self.scratch.clear();
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
        self.loader.begin(heads)?;
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
    pub(super) fn layers(&mut self, inputs: &[Inputs<'_>], mut jobs: Vec<Job>) -> Result<Vec<Job>> {
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
        let h = self.on_device(stream)?;
        let Some(caches) = &self.caches else { unreachable!("made at the start of the pass") };
        match block {
            Block::Attention(attention) => {
                let kv = caches.of(arm, layer);
                attention.record(&mut commands, &self.kernels, &self.scratch, inputs, kv, &h);
            }
            Block::FeedForward(feed_forward) => {
                feed_forward.record(&mut commands, &self.kernels, &self.scratch, inputs, &h);
            }
            Block::Head(_) => unreachable!("the layers' blocks come first"),
        }
        let spilled = matches!(stream, Stream::Host(_));
        if commands.is_full(&self.gpu) || spilled {
            std::mem::replace(&mut commands, Commands::paced(&self.gpu)).submit(&self.gpu)?;
        }
        if let Stream::Host(values) = stream {
            *values = self.gpu.read(&h, values.len())?;
            self.pool.give_back(h);
        }
        Ok(commands)
    }

    /// A stream where kernels find it: one that waits on the host is written to a buffer of the pool, which the caller
    /// gives back.
    pub(super) fn on_device(&mut self, stream: &Stream) -> Result<Buffer> {
        match stream {
            Stream::Device(buffer) => Ok(buffer.clone()),
            Stream::Host(values) => {
                let buffer = self.pool.take(&self.gpu)?;
                self.gpu.write(&buffer, values);
                Ok(buffer)
            }
        }
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
}
