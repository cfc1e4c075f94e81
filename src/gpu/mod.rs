//! The only place that says `wgpu::Device`.
