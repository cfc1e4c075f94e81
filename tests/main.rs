//! All integration tests in one binary: with wgpu each further one is another slow link.

mod checkpoint;
mod engine;
mod metrics;
mod quant;
mod reference;
mod suite;
