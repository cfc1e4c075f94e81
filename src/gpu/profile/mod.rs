//! The device's own time, by kernel.
//!
//! In a submission that is timed, launches of one kernel that follow each other are a pass of their own, and the device
//! notes its clock at the end of every pass, at the beginning of the first as well. A pass is charged with the time
//! since the stamp before it: so the kernels' times add up to what the device was busy, even where passes overlap.
//!
//! A stamp costs the device some microseconds (about 70 on llvmpipe): an empty pass at the end tells how many, and
//! they are taken off. Where launches are so short that stamps would slow the run, only parts of some submissions are
//! timed, by lot, and each kernel's seconds are extrapolated by the work of its launches.

mod lot;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::lot::Lot;
use super::Gpu;
use super::shader::Pipeline;
use crate::error::Result;

/// Stamps that a submission has at most. A forward pass takes about a dozen a layer.
const STAMPS: u32 = 2048;

/// Submissions whose stamps may be under way at a time. Two run, the others wait to be read; Metal has room for 32.
const SETS: usize = 6;

/// Where the device notes its clock in one submission, and how that reaches the host.
#[derive(Debug)]
struct Stamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

/// A submission that notes the clock.
#[derive(Debug)]
pub(super) struct Trace {
    stamps: Stamps,
    passes: Vec<Pass>,
    /// The first launch that may be timed, and the number of passes.
    window: (usize, usize),
    /// Whether an empty pass follows them.
    has_end: bool,
}

/// Launches of one kernel between two stamps.
#[derive(Debug)]
struct Pass {
    pipeline: Arc<Pipeline>,
    launches: u64,
    work: f64,
}

impl Trace {
    /// Whether a pass that begins with launch `first` is to be timed.
    pub(super) fn is_open(&self, first: usize) -> bool {
        let (start, most) = self.window;
        first >= start && self.passes.len() < most.min(STAMPS as usize - 2)
    }

    /// What the pass of `launches` of `pipeline` from launch `first` on, `work` together, has to note; nothing if it is
    /// not to be timed.
    pub(super) fn pass(
        &mut self,
        pipeline: &Arc<Pipeline>,
        first: usize,
        launches: usize,
        work: f64,
    ) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let index = u32::try_from(self.passes.len()).ok().filter(|_| self.is_open(first))?;
        self.passes.push(Pass { pipeline: Arc::clone(pipeline), launches: launches as u64, work });
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.stamps.queries,
            beginning_of_pass_write_index: (index == 0).then_some(0),
            end_of_pass_write_index: Some(index + 1),
        })
    }

    /// Right after the last pass that is timed, an empty one: what it takes is a stamp's own.
    pub(super) fn end(&mut self, encoder: &mut wgpu::CommandEncoder) {
        let ends = !self.has_end && !self.passes.is_empty();
        let Some(index) = u32::try_from(self.passes.len()).ok().filter(|_| ends) else { return };
        self.has_end = true;
        drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.stamps.queries,
                beginning_of_pass_write_index: None,
                end_of_pass_write_index: Some(index + 1),
            }),
        }));
    }

    /// Bytes of its stamps.
    fn bytes(&self) -> u64 {
        8 * (self.passes.len() as u64 + 1 + u64::from(self.has_end))
    }

    /// Ends a submission: the stamps go where the host can read them.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        if self.passes.is_empty() {
            return;
        }
        let Stamps { queries, resolved, staging } = &self.stamps;
        let count = u32::try_from(self.bytes() / 8).unwrap_or(STAMPS);
        encoder.resolve_query_set(queries, 0..count, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, staging, 0, self.bytes());
    }
}

/// Times known so far, and those under way.
#[derive(Debug, Default)]
pub(super) struct Profile {
    on: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sets that exist.
    made: usize,
    free: Vec<Stamps>,
    running: Vec<(Trace, Receiver<bool>)>,
    kernels: BTreeMap<String, Sums>,
    /// Of all empty passes, and their number.
    stamp_seconds: f64,
    ends: f64,
    lot: Lot,
}

/// What is known of one kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Whether one of its launches was timed; the first ones always are.
    traced: bool,
    /// Of all launches.
    work: f64,
    timed_work: f64,
    timed_launches: u64,
    timed_passes: f64,
    /// With the stamps' own.
    seconds: f64,
}

impl Sums {
    /// Of all launches, if a stamp costs `stamp` seconds; `None` if none was timed.
    fn estimate(&self, stamp: f64) -> Option<f64> {
        let own = (self.seconds - self.timed_passes * stamp).max(0.0);
        (self.timed_work > 0.0).then(|| own * self.work / self.timed_work)
    }
}

impl State {
    /// Reads the stamps that have arrived, of a clock that ticks every `period` nanoseconds.
    fn harvest(&mut self, period: f64) {
        for (trace, arrived) in std::mem::take(&mut self.running) {
            match arrived.try_recv() {
                Ok(true) => self.take(trace, period),
                Err(TryRecvError::Empty) => self.running.push((trace, arrived)),
                // It will never arrive: the device is failing, which others notice and report.
                Ok(false) | Err(TryRecvError::Disconnected) => self.made -= 1,
            }
        }
    }

    fn take(&mut self, trace: Trace, period: f64) {
        let bytes = trace.bytes();
        let Trace { stamps, passes, has_end, .. } = trace;
        if let Ok(view) = stamps.staging.get_mapped_range(..bytes) {
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
            let mut busy = 0.0;
            for (pass, ticks) in passes.iter().zip(ticks.windows(2)) {
                let Some(ticks) = elapsed(ticks[0], ticks[1]) else { continue };
                let seconds = ticks as f64 * period * 1e-9;
                busy += seconds;
                let sums = self.sums(pass.pipeline.kernel());
                sums.seconds += seconds;
                sums.timed_work += pass.work;
                sums.timed_launches += pass.launches;
                sums.timed_passes += 1.0;
            }
            if has_end {
                // A device whose stamps cost nothing gives equal ones.
                let last = ticks.last_chunk().and_then(|[from, to]| elapsed(*from, *to)).unwrap_or(0);
                self.stamp_seconds += last as f64 * period * 1e-9;
                self.ends += 1.0;
            }
            self.lot.observe(passes.len(), busy);
        }
        stamps.staging.unmap();
        self.free.push(stamps);
    }

    /// Counts launches and gives the number of all, and of the first of a kernel that nothing is known of yet.
    fn count<'a>(
        &mut self,
        launches: impl IntoIterator<Item = (&'a Pipeline, f64)>,
    ) -> (usize, Option<usize>) {
        let (mut count, mut unknown) = (0, None);
        for (pipeline, work) in launches {
            let sums = self.sums(pipeline.kernel());
            sums.work += work;
            if !sums.traced && unknown.is_none() {
                unknown = Some(count);
            }
            count += 1;
        }
        (count, unknown)
    }

    fn sums(&mut self, kernel: &str) -> &mut Sums {
        self.kernels.entry(kernel.to_owned()).or_default()
    }
}

/// Ticks between two stamps. Some drivers write zeros or equal stamps: treat those as missing.
pub(super) fn elapsed(from: u64, to: u64) -> Option<u64> {
    to.checked_sub(from).filter(|ticks| from > 0 && *ticks > 0)
}

impl Gpu {
    /// Whether the device's time is added up by kernel, where it has a clock; see [`Gpu::kernel_seconds`].
    #[must_use]
    pub fn with_profile(mut self, on: bool) -> Self {
        self.profile = Profile { on: on && self.info().timestamps, state: Mutex::default() };
        self
    }

    /// Seconds that launches took by the device's own clock, by the name of the kernel's shader ("matmul_subgroup"),
    /// without those that prove submissions. Empty unless opened [`with_profile`] on a device that has a clock.
    ///
    /// Of [`Gpu::timed_dispatches`] they are measured, those of the others are taken to last as long for the same work.
    /// A kernel of which no launch was timed is left out.
    ///
    /// [`with_profile`]: Gpu::with_profile
    #[must_use]
    pub fn kernel_seconds(&self) -> BTreeMap<String, f64> {
        self.harvest();
        let state = self.profile_state();
        let stamp = state.stamp_seconds / state.ends.max(1.0);
        let known = state.kernels.iter().filter_map(|(name, sums)| Some((name, sums.estimate(stamp)?)));
        known.map(|(name, seconds)| (name.clone(), seconds)).collect()
    }

    /// Launches so far that were timed; the others were left out, still run, or the device's stamps made no sense.
    #[must_use]
    pub fn timed_dispatches(&self) -> u64 {
        self.harvest();
        self.profile_state().kernels.values().map(|sums| sums.timed_launches).sum()
    }

    fn profile_state(&self) -> MutexGuard<'_, State> {
        self.profile.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the stamps that have arrived.
    pub(super) fn harvest(&self) {
        if self.profile.on {
            self.profile_state().harvest(f64::from(self.queue.get_timestamp_period()));
        }
    }

    /// Stamps for a submission of launches, each a kernel's and of some work; `None` if it is not to be timed, or too
    /// many are under way.
    pub(super) fn trace<'a>(
        &self,
        launches: impl IntoIterator<Item = (&'a Pipeline, f64)>,
    ) -> Result<Option<Trace>> {
        if !self.profile.on {
            return Ok(None);
        }
        let mut state = self.profile_state();
        let drawn = state.lot.draw();
        let (count, unknown) = state.count(launches);
        let (start, most) = match (unknown, drawn) {
            (None, false) => return Ok(None),
            (None, true) => state.lot.window(count),
            (Some(first), _) => (first, state.lot.window(count).1),
        };
        let stamps = match state.free.pop() {
            Some(stamps) => stamps,
            None if state.made < SETS => {
                let stamps = self.make_stamps()?;
                state.made += 1;
                stamps
            }
            None => return Ok(None),
        };
        Ok(Some(Trace { stamps, passes: Vec::new(), window: (start, most), has_end: false }))
    }

    fn make_stamps(&self) -> Result<Stamps> {
        let size = 8 * u64::from(STAMPS);
        let buffer = |usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("stamps"),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        self.guarded("stamps", 3 * size, || Stamps {
            queries: self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("stamps"),
                ty: wgpu::QueryType::Timestamp,
                count: STAMPS,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        })
    }

    /// Has the stamps of a submission, which was just handed over, read as soon as it is done.
    pub(super) fn follow(&self, trace: Trace) {
        if trace.passes.is_empty() {
            self.profile_state().free.push(trace.stamps);
            return;
        }
        let (sender, arrived) = mpsc::channel();
        trace.stamps.staging.map_async(wgpu::MapMode::Read, ..trace.bytes(), move |result| {
            // Nobody listens once the device is closed.
            let _ = sender.send(result.is_ok());
        });
        let mut state = self.profile_state();
        for pass in &trace.passes {
            state.sums(pass.pipeline.kernel()).traced = true;
        }
        state.running.push((trace, arrived));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Commands, DeviceChoice, list};
    use crate::kernels::{NormOperands, RmsNorm, RmsNormForm, Swiglu};

    #[test]
    fn senseless_stamps_are_missing() {
        assert_eq!(elapsed(5, 9), Some(4));
        assert_eq!(elapsed(9, 5), None);
        assert_eq!(elapsed(5, 5), None);
        assert_eq!(elapsed(0, 9), None);
        assert_eq!(elapsed(5, 0), None);
    }

    #[test]
    fn seconds_are_extrapolated_by_work_without_the_stamps_own() {
        let sums = Sums { work: 30.0, timed_work: 10.0, timed_passes: 2.0, seconds: 0.5, ..Sums::default() };
        assert_eq!(sums.estimate(0.125), Some(0.75));
        // Stamps that cost more than what they time.
        assert_eq!(sums.estimate(1.0), Some(0.0));
        assert_eq!(Sums { work: 30.0, ..Sums::default() }.estimate(0.125), None);
    }

    /// As many launches of two kernels as `repeats` says, in one submission each.
    fn run(gpu: &Gpu, repeats: usize) {
        let count = 1 << 16;
        let gate = gpu.upload("gate", &vec![1.0f32; count]).unwrap();
        let y = gpu.alloc("y", 4 * count as u64).unwrap();
        let swiglu = Swiglu::new(gpu).unwrap();
        let norm = RmsNorm::new(gpu, RmsNormForm::Plain, 1024).unwrap();
        for _ in 0..repeats {
            let mut commands = Commands::new();
            swiglu.record(&mut commands, &gate, &gate, &y, count);
            swiglu.record(&mut commands, &gate, &gate, &y, count);
            let operands =
                NormOperands { h: &gate, rows: None, gain: &gate, y: &y, count: 64, d: 1024, eps: 1e-5 };
            norm.record(&mut commands, operands);
            commands.submit(gpu).unwrap();
        }
    }

    #[test]
    fn kernels_are_charged_where_the_device_has_a_clock() {
        for index in 0..list().len() {
            let gpu = Gpu::open(&DeviceChoice::Index(index)).unwrap().with_profile(true);
            let start = std::time::Instant::now();
            run(&gpu, 20);
            gpu.wait("profiled work").unwrap();
            let wall = start.elapsed().as_secs_f64();
            let seconds = gpu.kernel_seconds();
            if !gpu.info().timestamps {
                assert!(seconds.is_empty() && gpu.timed_dispatches() == 0);
                continue;
            }
            // The first submission is always timed, and there are no more sets than allowed.
            assert!((3..=60).contains(&gpu.timed_dispatches()), "{}", gpu.timed_dispatches());
            assert!(gpu.profile_state().made <= SETS);
            let names: Vec<_> = seconds.keys().map(String::as_str).collect();
            assert_eq!(names, ["rms_norm", "swiglu"], "{}", gpu.info().name);
            // What was timed took no longer than the clock on the wall says; the estimate for the launches that
            // were not (19 of 20 submissions, if the device was slow to answer) can multiply that by 20.
            let sum: f64 = seconds.values().sum();
            assert!(sum > 0.0 && sum <= 21.0 * wall, "{sum} s of {wall} s");
        }
    }

    #[test]
    fn nothing_is_noted_without_being_asked() {
        let gpu = Gpu::open(&DeviceChoice::Index(0)).unwrap();
        run(&gpu, 2);
        gpu.wait("work").unwrap();
        assert!(gpu.kernel_seconds().is_empty());
        assert_eq!(gpu.profile_state().made, 0);
    }
}
