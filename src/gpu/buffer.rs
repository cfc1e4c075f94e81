//! Device memory: allocation with accounting, upload, readback.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytemuck::Pod;

use super::Gpu;
use crate::error::{Error, Result};

/// Uploads are handed over in pieces of this size, so that the driver's staging memory stays small.
const UPLOAD_PIECE_BYTES: usize = 32 << 20;

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
        for piece in data.chunks(UPLOAD_PIECE_BYTES) {
            self.queue.write_buffer(&buffer.allocation.raw, offset, piece);
            offset += piece.len() as u64;
            if piece.len() == UPLOAD_PIECE_BYTES {
                // Lets the driver copy and free this piece's staging memory now.
                self.submit([]);
            }
        }
        self.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed);
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
