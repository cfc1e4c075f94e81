//! The only place that says `wgpu::Device`: device choice, buffers, shader linking, dispatch, tuning.

mod buffer;
mod choice;
mod commands;
mod device;
mod line;
mod memory;
mod pace;
mod profile;
mod shader;
mod tune;

pub use buffer::Buffer;
pub use choice::{DeviceChoice, DeviceInfo, list};
pub use commands::{Commands, GRID_X, Grid};
pub use device::Gpu;
pub(crate) use line::sentinel_source;
pub use shader::{Pipeline, Source};
pub use tune::{Tuning, cache_folder};
