//! Work recorded as data, then handed to the device at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Pod;

use super::profile::elapsed;
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
    work: u64,
}

impl Dispatch {
    /// A buffer that it writes.
    fn written(&self) -> &Buffer {
        let mut bound = self.pipeline.bindings.iter().zip(&self.buffers);
        let Some((_, buffer)) = bound.find(|(binding, _)| binding.written) else {
            unreachable!("{} writes nothing", self.pipeline.name)
        };
        buffer
    }
}

/// A list of dispatches; nothing runs before [`Commands::submit`].
#[derive(Debug)]
pub struct Commands {
    dispatches: Vec<Dispatch>,
    params: Vec<u8>,
    longest_launch: f64,
}

impl Default for Commands {
    fn default() -> Self {
        Self::with_longest_launch(f64::INFINITY)
    }
}

impl Commands {
    /// An empty list. Kernels are launched whole.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty list. Launches that would take `gpu` longer than about 100 ms are split where a kernel can be.
    #[must_use]
    pub fn paced(gpu: &Gpu) -> Self {
        Self::with_longest_launch(gpu.pace().launch())
    }

    /// An empty list. Launches of more than `work` floating-point operations are split where a kernel can be.
    #[must_use]
    pub fn with_longest_launch(work: f64) -> Self {
        Self { dispatches: Vec::new(), params: Vec::new(), longest_launch: work }
    }

    /// Work above which a kernel splits a launch, in floating-point operations.
    #[must_use]
    pub fn longest_launch(&self) -> f64 {
        self.longest_launch
    }

    /// Launches in the list.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dispatches.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// Whether the list is enough work for a submission on `gpu`.
    #[must_use]
    pub fn is_full(&self, gpu: &Gpu) -> bool {
        self.dispatches.iter().map(|dispatch| dispatch.work as f64).sum::<f64>() >= gpu.pace().piece()
    }

    /// Adds a launch of `pipeline` with its storage buffers by their names in the shader.
    ///
    /// Buffers that the shader does not declare are ignored: a format without scales has none to bind. `work` is
    /// what it takes, about, in floating-point operations; it decides what is submitted together.
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
        work: u64,
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
            work,
        });
    }

    /// Hands the list to the device, in pieces that should take it no longer than 300 ms each. Waits until at most
    /// the last piece is still running.
    ///
    /// # Errors
    ///
    /// If the device refuses it.
    pub fn submit(self, gpu: &Gpu) -> Result<()> {
        let uniform = self.upload_params(gpu)?;
        let mut rest = &self.dispatches[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(piece_length(rest, gpu.pace().piece()));
            encode(gpu, piece, &uniform, None)?;
            gpu.catch_up("a submission", 1)?;
            rest = later;
        }
        Ok(())
    }

    /// Runs the list in one piece and gives the nanoseconds it took on the device's own clock; `None` where the
    /// device has none or its stamps make no sense.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn time(self, gpu: &Gpu) -> Result<Option<u64>> {
        if !gpu.info().timestamps || self.is_empty() {
            self.submit(gpu)?;
            gpu.wait("a timed run")?;
            return Ok(None);
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timing"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        encode(gpu, &self.dispatches, &self.upload_params(gpu)?, Some(&queries))?;
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
        gpu.submit([encoder.finish()]);
        let stamps: Vec<u64> = gpu.read(&stamps, 2)?;
        let ticks = elapsed(stamps[0], stamps[1]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole nanoseconds")]
        Ok(ticks.map(|ticks| (ticks as f64 * f64::from(gpu.queue.get_timestamp_period())) as u64))
    }

    fn upload_params(&self, gpu: &Gpu) -> Result<wgpu::Buffer> {
        // A binding reaches up to 16 bytes past the last launch's own.
        let size = (self.params.len() as u64 + 16).next_multiple_of(256);
        gpu.guarded("launch parameters", size, || {
            let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("params"),
                size,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            gpu.queue.write_buffer(&uniform, 0, &self.params);
            uniform
        })
    }
}

/// How many of the first dispatches fit into a piece of `work`; at least one.
fn piece_length(dispatches: &[Dispatch], work: f64) -> usize {
    let mut sum = 0.0;
    let fits = |dispatch: &&Dispatch| {
        sum += dispatch.work as f64;
        sum <= work
    };
    dispatches.iter().take_while(fits).count().max(1)
}

/// Submits `dispatches`, whose parameters are in `uniform`, and the sentinel's after them.
fn encode(
    gpu: &Gpu,
    dispatches: &[Dispatch],
    uniform: &wgpu::Buffer,
    queries: Option<&wgpu::QuerySet>,
) -> Result<()> {
    let Some(last) = dispatches.last() else { return Ok(()) };
    let sentinel = gpu.sentinel()?;
    let launches = dispatches.iter().map(|d| (&*d.pipeline, d.work as f64));
    let mut trace = if queries.is_none() { gpu.trace(launches)? } else { None };
    gpu.guarded("a submission", 0, || {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let whole = queries.map(|query_set| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let split = trace.is_some();
        // One pass, or one for each kernel if they are timed apart.
        for run in dispatches.chunk_by(|a, b| !split || a.pipeline.kernel() == b.pipeline.kernel()) {
            let work = run.iter().map(|d| d.work as f64).sum();
            let own = trace.as_mut().and_then(|trace| trace.pass(&run[0].pipeline, run.len(), work));
            let timestamp_writes = own.or_else(|| whole.clone());
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            for dispatch in run {
                let bind_group =
                    bind(gpu, &dispatch.pipeline, &dispatch.buffers, uniform, dispatch.params_bytes);
                pass.set_pipeline(&dispatch.pipeline.raw);
                pass.set_bind_group(0, &bind_group, &[dispatch.params_offset]);
                let [x, y, z] = dispatch.grid.size;
                pass.dispatch_workgroups(x, y, z);
            }
        }
        if let Some(trace) = &mut trace {
            trace.end(&mut encoder);
        }
        // The sentinel is not timed.
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let buffers = [sentinel.finished.clone(), last.written().clone()];
        pass.set_pipeline(&sentinel.pipeline.raw);
        pass.set_bind_group(0, &bind(gpu, &sentinel.pipeline, &buffers, &sentinel.params, 16), &[0]);
        pass.dispatch_workgroups(1, 1, 1);
        drop(pass);
        if let Some(trace) = &trace {
            trace.resolve(&mut encoder);
        }
        gpu.hand_over(sentinel, [encoder.finish()], dispatches.iter().map(|d| d.work as f64).sum());
        if let Some(trace) = trace {
            gpu.follow(trace);
        }
    })
    .map_err(|error| match error {
        Error::Device { report, .. } => {
            let names: Vec<_> = dispatches.iter().map(|d| d.pipeline.name.as_str()).collect();
            Error::Device { during: format!("a submission of {}", names.join(", ")), report }
        }
        other => other,
    })?;
    gpu.dispatches.fetch_add(dispatches.len() as u64, Ordering::Relaxed);
    Ok(())
}

fn bind(
    gpu: &Gpu,
    pipeline: &Pipeline,
    buffers: &[Buffer],
    uniform: &wgpu::Buffer,
    params_bytes: u64,
) -> wgpu::BindGroup {
    let size = std::num::NonZeroU64::new(params_bytes);
    let params = wgpu::BufferBinding { buffer: uniform, offset: 0, size };
    let storage = pipeline.bindings.iter().zip(buffers);
    let entries: Vec<_> = std::iter::once((0, params))
        .chain(storage.map(|(binding, buffer)| (binding.slot, buffer.binding())))
        .map(|(binding, range)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(range),
        })
        .collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{DeviceChoice, list};
    use crate::kernels::Swiglu;

    #[test]
    fn a_long_list_goes_in_pieces_of_the_pace() {
        for index in 0..list().len() {
            let gpu = Gpu::open(&DeviceChoice::Index(index)).unwrap();
            let gate = gpu.upload("gate", &[1000.0f32; 8]).unwrap();
            let up = gpu.upload("up", &[3.0f32; 8]).unwrap();
            let y = gpu.alloc("y", 32).unwrap();
            let mut commands = Commands::new();
            for _ in 0..5 {
                Swiglu::new(&gpu).unwrap().record(&mut commands, &gate, &up, &y, 8);
            }
            // Two fit, the one that is too long alone goes alone, and so does the last.
            let half = gpu.pace().piece() / 2.0;
            for (dispatch, share) in commands.dispatches.iter_mut().zip([0.9, 0.9, 3.0, 0.1, 0.1]) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a test's number"
                )]
                let work = (half * share) as u64;
                dispatch.work = work;
            }
            let lengths: Vec<_> =
                [0, 1, 2, 3].map(|first| piece_length(&commands.dispatches[first..], 2.0 * half)).into();
            assert_eq!(lengths, [2, 1, 1, 2]);
            assert!(commands.is_full(&gpu));
            commands.submit(&gpu).unwrap();
            assert_eq!(gpu.read::<f32>(&y, 8).unwrap(), [3000.0; 8]);
            assert_eq!(gpu.dispatches(), 5);
            assert!(gpu.submissions() >= 2, "{}", gpu.submissions());
        }
    }
}
