//! All integration tests in one binary: with wgpu each further one is another slow link.

mod adapters;
mod audit;
mod checkpoint;
mod cli;
mod engine;
mod family;
mod golden;
mod kernels;
mod llama;
mod metrics;
mod quant;
mod reference;
mod report;
mod shaders;
mod suite;
