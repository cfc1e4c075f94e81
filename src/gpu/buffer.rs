//! Device memory: allocation with accounting, upload, readback.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, mpsc};
use std::time::Duration;

use bytemuck::Pod;

use super::Gpu;
use crate::error::{Error, Result};

/// Uploads are handed over in pieces of this size.
const UPLOAD_PIECE_BYTES: u64 = 4 << 20;

/// Uploads that may be on their way at a time unless said otherwise: the driver's staging memory.
const UPLOADS_BYTES: u64 = 64 << 20;

/// Uploads that were handed over and may not be done.
#[derive(Debug)]
pub(super) struct Uploads {
    limit: u64,
    /// Written, but not handed over.
    waiting: u64,
    running: VecDeque<(wgpu::SubmissionIndex, u64)>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { limit: UPLOADS_BYTES, waiting: 0, running: VecDeque::new() }
    }
}

/// The longest that a callback may come after its work is done.
const CALLBACK_PATIENCE: Duration = Duration::from_secs(60);

/// Device memory held now and at most.
#[derive(Debug, Default)]
pub(super) struct Memory {
    held: AtomicU64,
    peak: AtomicU64,
}

impl Memory {
    fn take(&self, bytes: u64) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Allocation {
    raw: wgpu::Buffer,
    bytes: u64,
    memory: Arc<Memory>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A storage buffer, or a range of one. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    allocation: Arc<Allocation>,
    offset: u64,
    bytes: u64,
}

impl Buffer {
    /// Size of the range in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of this range.
    ///
    /// # Panics
    ///
    /// If the part does not lie inside.
    #[must_use]
    pub fn slice(&self, offset: u64, bytes: u64) -> Self {
        assert!(offset + bytes <= self.bytes, "{offset}+{bytes} bytes of a buffer of {}", self.bytes);
        Self { allocation: Arc::clone(&self.allocation), offset: self.offset + offset, bytes }
    }

    /// This part and `next` as one, if that follows it in the same memory.
    #[must_use]
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows =
            Arc::ptr_eq(&self.allocation, &next.allocation) && self.offset + self.bytes == next.offset;
        follows.then(|| Self { bytes: self.bytes + next.bytes, ..self.clone() })
    }

    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding {
            buffer: &self.allocation.raw,
            offset: self.offset,
            size: std::num::NonZeroU64::new(self.bytes),
        }
    }
}

impl Gpu {
    /// Allocates a storage buffer of at least `bytes`, rounded up to 16; the contents are zero.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device cannot bind that much, [`Error::OutOfMemory`] if it has not got it.
    pub fn alloc(&self, what: &str, bytes: u64) -> Result<Buffer> {
        let bytes = bytes.max(16).next_multiple_of(16);
        let limits = &self.limits;
        let limit = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        if bytes > limit {
            let device = self.info().name.clone();
            return Err(Error::DeviceLimit { what: what.to_owned(), needed: bytes, limit, device });
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let raw = self.guarded(what, bytes, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        })?;
        self.memory.take(bytes);
        self.watch_memory();
        let allocation = Allocation { raw, bytes, memory: Arc::clone(&self.memory) };
        Ok(Buffer { allocation: Arc::new(allocation), offset: 0, bytes })
    }

    /// Writes `data` to the front of `buffer`, before any work submitted later.
    ///
    /// # Panics
    ///
    /// If it does not fit, or its size is not a multiple of 4 bytes.
    pub fn write<T: Pod>(&self, buffer: &Buffer, data: &[T]) {
        let data: &[u8] = bytemuck::cast_slice(data);
        assert!(data.len() as u64 <= buffer.bytes, "{} bytes into {}", data.len(), buffer.bytes);
        let mut offset = buffer.offset;
        for piece in data.chunks(usize::try_from(UPLOAD_PIECE_BYTES).unwrap_or(usize::MAX)) {
            self.queue.write_buffer(&buffer.allocation.raw, offset, piece);
            offset += piece.len() as u64;
            self.pace_uploads(piece.len() as u64);
        }
        self.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed);
    }

    /// Lets no more than `bytes` of uploads be on their way at a time.
    pub fn limit_uploads(&self, bytes: u64) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).limit = bytes.max(UPLOAD_PIECE_BYTES);
    }

    /// Counts an upload of `bytes`, and waits while too many are on their way: each holds memory of the driver's
    /// until the device comes to it.
    fn pace_uploads(&self, bytes: u64) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.waiting += bytes;
        if uploads.waiting < UPLOAD_PIECE_BYTES {
            return;
        }
        let index = self.submit([]);
        let handed_over = std::mem::take(&mut uploads.waiting);
        uploads.running.push_back((index, handed_over));
        self.watch_memory();
        while uploads.running.iter().map(|(_, bytes)| bytes).sum::<u64>() > uploads.limit {
            let Some((index, _)) = uploads.running.pop_front() else { return };
            // What fails here fails again, and is reported, when results are read.
            let _ = self.poll("an upload", Some(&index), CALLBACK_PATIENCE);
        }
    }

    /// Copies the whole of `from` to the front of `to` on the device, after all work submitted before.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn copy(&self, from: &Buffer, to: &Buffer) {
        assert!(from.bytes <= to.bytes, "{} bytes into {}", from.bytes, to.bytes);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let (source, target) = (&from.allocation.raw, &to.allocation.raw);
        encoder.copy_buffer_to_buffer(source, from.offset, target, to.offset, from.bytes);
        self.submit([encoder.finish()]);
    }

    /// Allocates a buffer that holds `data`; a tail short of 4 bytes is filled with zeros.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc`].
    pub fn upload<T: Pod>(&self, what: &str, data: &[T]) -> Result<Buffer> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = self.alloc(what, bytes.len() as u64)?;
        let whole = bytes.len() / 4 * 4;
        self.write(&buffer, &bytes[..whole]);
        if whole < bytes.len() {
            let mut tail = [0; 4];
            tail[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.write(&buffer.slice(whole as u64, 4), &tail);
        }
        Ok(buffer)
    }

    /// Waits for all submitted work and reads the first `count` values of `buffer`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if any work since the device was opened failed or was dropped.
    ///
    /// # Panics
    ///
    /// If the buffer is shorter.
    pub fn read<T: Pod>(&self, buffer: &Buffer, count: usize) -> Result<Vec<T>> {
        let length = count * size_of::<T>();
        let bytes = length as u64;
        assert!(bytes <= buffer.bytes, "{bytes} bytes from {}", buffer.bytes);
        let mut values = vec![T::zeroed(); count];
        if bytes == 0 {
            self.wait("an empty readback")?;
            return Ok(values);
        }
        let range = Some((buffer, bytes.next_multiple_of(4)));
        self.fetch("a readback", range, |data| {
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(&data[..length]);
        })?;
        Ok(values)
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device does not answer, is lost, dropped work, or reported a failure since it
    /// was opened.
    pub fn wait(&self, during: &str) -> Result<()> {
        if self.is_proven() { self.settle(during) } else { self.fetch(during, None, |_| ()) }
    }

    /// Copies `range` to the host with the proof that everything before is done, and shows it to `see`.
    fn fetch(&self, during: &str, range: Option<(&Buffer, u64)>, see: impl FnOnce(&[u8])) -> Result<()> {
        let size = range.map_or(0, |(_, bytes)| bytes) + 4;
        let staging = self.guarded(during, size, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        let expected = self.copy_out(self.sentinel()?, range, &staging);
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if this function already failed.
            let _ = sender.send(result);
        });
        self.settle(during)?;
        let failed = |report: String| Error::Device { during: during.to_owned(), report };
        // Another thread that waits on the same device may be the one that calls back, a moment later.
        match receiver.recv_timeout(CALLBACK_PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(error) => return Err(failed(error.to_string())),
        }
        let view = staging.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
        let (data, number) = view.split_at(view.len() - 4);
        self.prove(during, expected, bytemuck::pod_read_unaligned(number))?;
        see(data);
        Ok(())
    }
}
