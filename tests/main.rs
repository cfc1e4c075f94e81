//! All integration tests in one binary: with wgpu each further one is another slow link.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, and what only tests call, fails by panicking"
)]

mod adapters;
mod audit;
mod checkpoint;
mod cli;
mod codes;
mod compare;
mod demo;
mod engine;
mod export;
mod family;
mod golden;
mod keep;
mod kernels;
mod llama;
mod localize;
mod lockstep;
mod metrics;
mod quant;
mod reference;
mod released;
mod repair;
mod report;
mod report_html;
mod report_maps;
mod run_folder;
mod shaders;
mod shard;
mod statistics;
mod store;
mod suite;
mod support;
mod survival;
mod tune;
mod verdict;
