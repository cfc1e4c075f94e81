//! The line of submissions: numbered, paced, and proven to be finished.
//!
//! A device may drop work without a word: to wgpu's Metal backend a killed command buffer is a finished one
//! (gfx-rs/wgpu#9545). So every submission ends with a launch that notes its number (`sentinel.wgsl`), and what is
//! read back is believed only if the last number has arrived.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Gpu;
use super::buffer::Buffer;
use super::pace::Pace;
use super::shader::{Pipeline, Source};
use crate::error::{Error, Result};

/// A device that has not answered for this long is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is noted before any submission. Not 0, so that a copy that was dropped is not taken for it.
const NONE: u32 = 1;

/// The kernel that notes numbers. It is launched here, at the end of every submission; `kernels` tests it.
pub(crate) fn sentinel_source() -> Source {
    Source {
        name: "sentinel".to_owned(),
        parts: vec![("sentinel.wgsl", include_str!("../../shaders/sentinel.wgsl"))],
        consts: vec![],
        overrides: vec![],
        needs_subgroups: false,
    }
}

/// What notes numbers.
#[derive(Debug)]
pub(super) struct Sentinel {
    pub(super) pipeline: Arc<Pipeline>,
    /// The number of the last submission that is finished with all before it.
    pub(super) finished: Buffer,
    /// The number to note, written before each submission.
    pub(super) params: wgpu::Buffer,
}

impl Sentinel {
    fn new(gpu: &Gpu) -> Result<Self> {
        let params = gpu.guarded("sentinel", 16, || {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("sentinel"),
                size: 16,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        let finished = gpu.upload("sentinel", &[NONE])?;
        Ok(Self { pipeline: gpu.pipeline(&sentinel_source())?, finished, params })
    }
}

/// A submission that may still run.
#[derive(Debug)]
struct Piece {
    index: wgpu::SubmissionIndex,
    work: f64,
    since: Instant,
}

/// What was handed over and what came of it.
#[derive(Debug)]
pub(super) struct Line {
    /// The last submission's number.
    number: u32,
    /// The last one that was proven.
    proven: u32,
    running: VecDeque<Piece>,
    /// When the last one that was waited for was done.
    done: Option<Instant>,
    pace: Pace,
}

impl Default for Line {
    fn default() -> Self {
        Self { number: NONE, proven: NONE, running: VecDeque::new(), done: None, pace: Pace::default() }
    }
}

impl Gpu {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What notes numbers on this device, made at first use.
    pub(super) fn sentinel(&self) -> Result<&Sentinel> {
        if let Some(sentinel) = self.sentinel.get() {
            return Ok(sentinel);
        }
        let made = Sentinel::new(self)?;
        Ok(self.sentinel.get_or_init(|| made))
    }

    /// How much to hand over at once on this device, as known now.
    pub(super) fn pace(&self) -> Pace {
        self.line().pace
    }

    /// Hands over a submission of `work`, which must end with the sentinel's launch.
    pub(super) fn hand_over(
        &self,
        sentinel: &Sentinel,
        commands: impl IntoIterator<Item = wgpu::CommandBuffer>,
        work: f64,
    ) {
        // Held over the submission: numbers must reach the device in order.
        let mut line = self.line();
        line.number = line.number.wrapping_add(1);
        self.queue.write_buffer(&sentinel.params, 0, bytemuck::bytes_of(&[line.number, 0, 0, 0]));
        let since = Instant::now();
        let index = self.submit(commands);
        line.running.push_back(Piece { index, work, since });
        drop(line);
        self.submissions.fetch_add(1, Ordering::Relaxed);
    }

    /// Submits a copy of `range`, if any, and of the sentinel's number to the front of `staging`, number last.
    /// Gives the number that must be there.
    pub(super) fn copy_out(
        &self,
        sentinel: &Sentinel,
        range: Option<(&Buffer, u64)>,
        staging: &wgpu::Buffer,
    ) -> u32 {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let copied = range.map_or(0, |(_, bytes)| bytes);
        for (buffer, bytes, to) in range.map(|(buffer, bytes)| (buffer, bytes, 0)).into_iter().chain([(
            &sentinel.finished,
            4,
            copied,
        )]) {
            let from = buffer.binding();
            encoder.copy_buffer_to_buffer(from.buffer, from.offset, staging, to, bytes);
        }
        let line = self.line();
        self.submit([encoder.finish()]);
        line.number
    }

    /// Whether all submissions so far are proven.
    pub(super) fn is_proven(&self) -> bool {
        let line = self.line();
        line.proven == line.number
    }

    /// Compares the number that was read back with the one that must be there.
    pub(super) fn prove(&self, during: &str, expected: u32, found: u32) -> Result<()> {
        if found != expected {
            // A number that was never noted is the sign of a copy that was dropped.
            let last = found.checked_sub(NONE).map_or("none".to_owned(), |last| last.to_string());
            let report = format!(
                "the device dropped work without reporting it: of {} submissions, the last one finished is {last}",
                expected.wrapping_sub(NONE)
            );
            return Err(Error::Device { during: during.to_owned(), report });
        }
        self.line().proven = expected;
        Ok(())
    }

    /// Waits until no more than `allowed` submissions run, learning from each how fast the device is.
    pub(super) fn catch_up(&self, during: &str, allowed: usize) -> Result<()> {
        loop {
            let mut line = self.line();
            if line.running.len() <= allowed {
                return Ok(());
            }
            let Some(piece) = line.running.pop_front() else { return Ok(()) };
            drop(line);
            let late = self.poll(during, Some(&piece.index), Duration::ZERO)?;
            if !late && !self.poll(during, Some(&piece.index), PATIENCE)? {
                let report = format!("no answer for {} seconds", PATIENCE.as_secs());
                return Err(Error::Device { during: during.to_owned(), report });
            }
            let now = Instant::now();
            let mut line = self.line();
            let start = line.done.map_or(piece.since, |done| done.max(piece.since));
            line.pace.observe(piece.work, now.saturating_duration_since(start), late);
            line.done = Some(now);
            drop(line);
            self.harvest();
        }
    }

    /// Waits for a submission, or all; `false` if it is not done in `patience`.
    pub(super) fn poll(
        &self,
        during: &str,
        index: Option<&wgpu::SubmissionIndex>,
        patience: Duration,
    ) -> Result<bool> {
        let poll = wgpu::PollType::Wait { submission_index: index.cloned(), timeout: Some(patience) };
        let _turn = self.turn();
        match self.device.poll(poll) {
            Ok(_) => Ok(true),
            Err(wgpu::PollError::Timeout) => Ok(false),
            Err(error) => Err(Error::Device { during: during.to_owned(), report: error.to_string() }),
        }
    }

    /// Waits until the device has answered everything, whether or not it did the work.
    pub(super) fn settle(&self, during: &str) -> Result<()> {
        self.catch_up(during, 0)?;
        let failed = |report: String| Error::Device { during: during.to_owned(), report };
        if !self.poll(during, None, PATIENCE)? {
            return Err(failed(format!("no answer for {} seconds", PATIENCE.as_secs())));
        }
        self.failure().map_or(Ok(()), |report| Err(failed(report)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Commands, DeviceChoice, list};
    use crate::kernels::Swiglu;

    /// `y = 1000 up`.
    fn swiglu(gpu: &Gpu, up: f32, y: &Buffer) -> Commands {
        let gate = gpu.upload("gate", &[1000.0f32; 8]).unwrap();
        let up = gpu.upload("up", &[up; 8]).unwrap();
        let mut commands = Commands::new();
        Swiglu::new(gpu).unwrap().record(&mut commands, &gate, &up, y, 8);
        commands
    }

    fn assert_dropped<T: std::fmt::Debug>(gpu: &Gpu, result: Result<T>) {
        let error = result.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 4, "{text}");
        assert!(text.contains("dropped work"), "{}: {text}", gpu.info().name);
    }

    #[test]
    fn work_that_the_device_drops_is_an_error_and_not_old_numbers() {
        for index in 0..list().len() {
            let gpu = Gpu::open(&DeviceChoice::Index(index)).unwrap();
            let y = gpu.alloc("y", 32).unwrap();
            gpu.wait("nothing").unwrap();
            swiglu(&gpu, 3.0, &y).submit(&gpu).unwrap();
            assert_eq!(gpu.read::<f32>(&y, 8).unwrap(), [3000.0; 8]);
            swiglu(&gpu, 4.0, &y).submit(&gpu).unwrap();
            gpu.wait("a wait that proves").unwrap();

            // What Metal makes of a command buffer that it kills: nothing runs, nothing is said.
            gpu.hand_over(gpu.sentinel().unwrap(), [], 1.0);
            assert_dropped(&gpu, gpu.read::<f32>(&y, 8));
            assert_dropped(&gpu, gpu.wait("a wait"));
            // Later work does not hide it: it may have read what the lost work should have written.
            swiglu(&gpu, 5.0, &y).submit(&gpu).unwrap();
            assert_dropped(&gpu, gpu.read::<f32>(&y, 8));
            assert_dropped(&gpu, gpu.wait("a later wait"));
        }
    }

    #[test]
    fn a_copy_that_is_dropped_is_an_error() {
        for index in 0..list().len() {
            let gpu = Gpu::open(&DeviceChoice::Index(index)).unwrap();
            // A fresh staging buffer holds zeros.
            assert_dropped(&gpu, gpu.prove("a readback", NONE, 0));
        }
    }
}
