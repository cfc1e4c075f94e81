//! An open device and its health.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::buffer::{Memory, Uploads};
use super::choice::{self, DeviceChoice, DeviceInfo};
use super::line::{Line, Sentinel};
use super::memory;
use super::profile::Profile;
use super::shader::Pipeline;
use super::tune::Tuner;
use crate::error::{Error, Result};

/// An open GPU: the one owner of a `wgpu::Device`.
#[derive(Debug)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: wgpu::Limits,
    pub(super) memory: Arc<Memory>,
    pub(super) memory_size: Option<u64>,
    pub(super) uploaded: AtomicU64,
    pub(super) uploads: Mutex<Uploads>,
    /// What the driver's allocator held at most, as far as it was looked at; `None` unless it is watched.
    allocated: Option<AtomicU64>,
    pub(super) dispatches: AtomicU64,
    pub(super) submissions: AtomicU64,
    pub(super) pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    pub(super) tuner: Tuner,
    pub(super) line: Mutex<Line>,
    pub(super) profile: Profile,
    /// Held while the queue is handed work or waited for: wgpu-core 30 panics if one thread submits while
    /// another one's wait ends ("the current submission index should be at least the wait submission index").
    turn: Mutex<()>,
    pub(super) sentinel: OnceLock<Sentinel>,
    info: DeviceInfo,
    /// The first failure that no error scope caught.
    failure: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the device that `choice` means, with all the limits it offers, and subgroups and timestamps
    /// where it has them; no kernel is without a form that needs neither.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if there is none, [`Error::Device`] if it cannot be opened.
    pub fn open(choice: &DeviceChoice) -> Result<Self> {
        let (info, adapter) = choice::pick(choice)?;
        let limits = adapter.limits();
        Self::open_adapter(info, adapter, limits)
    }

    /// As [`Self::open`], with no more than the limits that every WebGPU device has: for tests of what
    /// must work on the smallest device.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_with_floor_limits(choice: &DeviceChoice) -> Result<Self> {
        let (info, adapter) = choice::pick(choice)?;
        Self::open_adapter(info, adapter, wgpu::Limits::default())
    }

    fn open_adapter(info: DeviceInfo, adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("undertext"),
            // Timestamps only for measuring, subgroups for some families of kernels.
            required_features: adapter.features()
                & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP),
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| {
            Error::Device { during: format!("opening {}", info.name), report: error.to_string() }
        })?;
        let failure = Arc::new(Mutex::new(None));
        let note = |what: &'static str| {
            let failure = Arc::clone(&failure);
            move |report: String| {
                let mut slot = failure.lock().unwrap_or_else(PoisonError::into_inner);
                slot.get_or_insert_with(|| format!("{what}: {report}"));
            }
        };
        let uncaptured = note("uncaptured error");
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| uncaptured(error.to_string())));
        let lost = note("device lost");
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost(message);
            }
        });
        Ok(Self {
            device,
            queue,
            limits,
            memory: Arc::default(),
            memory_size: memory::of(adapter),
            uploaded: AtomicU64::new(0),
            uploads: Mutex::default(),
            allocated: None,
            dispatches: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            pipelines: Mutex::default(),
            tuner: Tuner::default(),
            line: Mutex::default(),
            profile: Profile::default(),
            turn: Mutex::default(),
            sentinel: OnceLock::new(),
            info,
            failure,
        })
    }

    /// Hands work to the queue, never while another thread waits for it.
    pub(super) fn submit(
        &self,
        work: impl IntoIterator<Item = wgpu::CommandBuffer>,
    ) -> wgpu::SubmissionIndex {
        let _turn = self.turn();
        self.queue.submit(work)
    }

    /// The right to submit or to wait.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this device is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether kernels may use subgroups here, of four lanes or more as WebGPU promises.
    #[must_use]
    pub fn has_subgroups(&self) -> bool {
        self.device.features().contains(wgpu::Features::SUBGROUP) && self.info.subgroups[0] >= 4
    }

    /// Largest buffer in bytes that a kernel can see.
    #[must_use]
    pub fn max_binding_bytes(&self) -> u64 {
        self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size)
    }

    /// Bytes uploaded so far.
    #[must_use]
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    /// Kernel launches so far, without those that only prove the submissions.
    #[must_use]
    pub fn dispatches(&self) -> u64 {
        self.dispatches.load(Ordering::Relaxed)
    }

    /// Command buffers handed over so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    /// Most device memory held at one time, in bytes, by our own accounting.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.memory.peak()
    }

    /// Looks at wgpu's allocator after every allocation, which costs some microseconds each time.
    #[must_use]
    pub fn with_watched_memory(mut self) -> Self {
        self.allocated = Some(AtomicU64::new(0));
        self
    }

    /// Most bytes that wgpu's allocator held, staging included; `None` if it was not watched or does not tell.
    #[must_use]
    pub fn peak_allocated_bytes(&self) -> Option<u64> {
        self.allocated.as_ref().map(|peak| peak.load(Ordering::Relaxed)).filter(|peak| *peak > 0)
    }

    pub(super) fn watch_memory(&self) {
        if let Some(peak) = &self.allocated
            && let Some(report) = self.device.generate_allocator_report()
        {
            peak.fetch_max(report.total_allocated_bytes, Ordering::Relaxed);
        }
    }

    /// The first failure that no error scope caught.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `create` inside error scopes, so that its failure is a typed error and not a panic.
    pub(super) fn guarded<T>(&self, what: &str, bytes: u64, create: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let created = create();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        if let Some(error) = pollster::block_on(memory.pop()) {
            let report = error.to_string();
            return Err(Error::OutOfMemory { what: what.to_owned(), bytes, report });
        }
        // A device that was lost makes nothing, and says of that only that things are invalid.
        match self.failure().or_else(|| internal.or(validation).map(|error| error.to_string())) {
            Some(report) => Err(Error::Device { during: what.to_owned(), report }),
            None => Ok(created),
        }
    }
}
