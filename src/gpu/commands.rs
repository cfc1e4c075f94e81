//! Work recorded as data, then handed to the device at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Pod;

use super::{Buffer, Gpu, Pipeline};
use crate::error::{Error, Result};

/// Workgroups in the first dimension of a flat grid; `common/index.wgsl` knows the same number.
///
/// Devices may allow no more than 65535 in a dimension, so a long list is folded into rows of this.
pub const GRID_X: u32 = 32_768;

/// How many workgroups to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// In each dimension.
    pub size: [u32; 3],
}

impl Grid {
    /// `x` by `y` workgroups.
    ///
    /// # Panics
    ///
    /// If one is larger than a device can launch or than 65535.
    #[must_use]
    pub fn plane(x: usize, y: usize) -> Self {
        let fits = |n: usize| u32::try_from(n).ok().filter(|n| *n <= 65_535);
        let (Some(x), Some(y)) = (fits(x), fits(y)) else { unreachable!("a grid of {x} x {y} workgroups") };
        Self { size: [x, y, 1] }
    }

    /// At least `count` workgroups in a row, folded; the kernel finds its number with
    /// `flat_workgroup` and leaves when it is past the end.
    #[must_use]
    pub fn flat(count: usize) -> Self {
        let x = GRID_X as usize;
        Self::plane(count.min(x), count.div_ceil(x))
    }
}

#[derive(Debug)]
struct Dispatch {
    pipeline: Arc<Pipeline>,
    /// In the order of the pipeline's bindings.
    buffers: Vec<Buffer>,
    params_offset: u32,
    params_bytes: u64,
    grid: Grid,
}

/// A list of dispatches; nothing runs before [`Commands::submit`].
#[derive(Debug, Default)]
pub struct Commands {
    dispatches: Vec<Dispatch>,
    params: Vec<u8>,
}

impl Commands {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a launch of `pipeline` with its storage buffers by their names in the shader.
    ///
    /// Buffers that the shader does not declare are ignored: a format without scales has none to bind.
    ///
    /// # Panics
    ///
    /// If one of the shader's buffers is not given: a bug in the kernel's wrapper.
    pub fn dispatch<P: Pod>(
        &mut self,
        pipeline: &Arc<Pipeline>,
        params: &P,
        buffers: &[(&str, &Buffer)],
        grid: Grid,
    ) {
        if grid.size.contains(&0) {
            return;
        }
        let bound = pipeline
            .bindings
            .iter()
            .map(|binding| {
                let found = buffers.iter().find(|(name, _)| *name == binding.name);
                let Some((_, buffer)) = found else {
                    unreachable!("{}: no buffer for {}", pipeline.name, binding.name)
                };
                (*buffer).clone()
            })
            .collect();
        let bytes = bytemuck::bytes_of(params);
        // 256 is the largest alignment of dynamic offsets that a device may ask for.
        self.params.resize(self.params.len().next_multiple_of(256), 0);
        let params_offset = u32::try_from(self.params.len()).unwrap_or(u32::MAX);
        self.params.extend_from_slice(bytes);
        self.dispatches.push(Dispatch {
            pipeline: Arc::clone(pipeline),
            buffers: bound,
            params_offset,
            params_bytes: bytes.len().next_multiple_of(16) as u64,
            grid,
        });
    }

    /// Hands the list to the device; does not wait.
    ///
    /// # Errors
    ///
    /// If the device refuses it.
    pub fn submit(self, gpu: &Gpu) -> Result<()> {
        self.encode(gpu, None)
    }

    /// Runs the list and gives the nanoseconds it took on the device's own clock; `None` where the
    /// device has none or its stamps make no sense.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn time(self, gpu: &Gpu) -> Result<Option<u64>> {
        if !gpu.info().timestamps {
            self.submit(gpu)?;
            gpu.wait("a timed run")?;
            return Ok(None);
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timing"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        self.encode(gpu, Some(&queries))?;
        let resolved = gpu.guarded("timing", 16, || {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timing"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })?;
        let stamps = gpu.alloc("timing", 16)?;
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.resolve_query_set(&queries, 0..2, &resolved, 0);
        let binding = stamps.binding();
        encoder.copy_buffer_to_buffer(&resolved, 0, binding.buffer, binding.offset, 16);
        gpu.queue.submit([encoder.finish()]);
        let stamps: Vec<u64> = gpu.read(&stamps, 2)?;
        // Some drivers write zeros or equal stamps: treat those as missing.
        let ticks = stamps[1].checked_sub(stamps[0]).filter(|ticks| stamps[0] > 0 && *ticks > 0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole nanoseconds")]
        Ok(ticks.map(|ticks| (ticks as f64 * f64::from(gpu.queue.get_timestamp_period())) as u64))
    }

    fn encode(self, gpu: &Gpu, queries: Option<&wgpu::QuerySet>) -> Result<()> {
        let Self { dispatches, mut params } = self;
        if dispatches.is_empty() {
            return Ok(());
        }
        params.resize(params.len().next_multiple_of(256), 0);
        let count = dispatches.len() as u64;
        gpu.guarded("a submission", params.len() as u64, || {
            let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("params"),
                size: params.len() as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            gpu.queue.write_buffer(&uniform, 0, &params);
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: queries.map(|query_set| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            });
            for dispatch in &dispatches {
                let bind_group = bind(gpu, dispatch, &uniform);
                pass.set_pipeline(&dispatch.pipeline.raw);
                pass.set_bind_group(0, &bind_group, &[dispatch.params_offset]);
                let [x, y, z] = dispatch.grid.size;
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            gpu.queue.submit([encoder.finish()]);
        })
        .map_err(|error| match error {
            Error::Device { report, .. } => {
                let names: Vec<_> = dispatches.iter().map(|d| d.pipeline.name.as_str()).collect();
                Error::Device { during: format!("a submission of {}", names.join(", ")), report }
            }
            other => other,
        })?;
        gpu.dispatches.fetch_add(count, Ordering::Relaxed);
        gpu.submissions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn bind(gpu: &Gpu, dispatch: &Dispatch, uniform: &wgpu::Buffer) -> wgpu::BindGroup {
    let params = wgpu::BufferBinding {
        buffer: uniform,
        offset: 0,
        size: std::num::NonZeroU64::new(dispatch.params_bytes),
    };
    let storage = dispatch.pipeline.bindings.iter().zip(&dispatch.buffers);
    let entries: Vec<_> = std::iter::once((0, params))
        .chain(storage.map(|(binding, buffer)| (binding.slot, buffer.binding())))
        .map(|(binding, range)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(range),
        })
        .collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &dispatch.pipeline.layout,
        entries: &entries,
    })
}
