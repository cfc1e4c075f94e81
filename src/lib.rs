//! Does quantization bring back what a language model was made to unlearn?
//!
//! undertext runs a transformer's forward pass at full precision, int8 and int4 through WGSL
//! compute shaders, asks the unlearning benchmark's questions at each precision, and says how much
//! of the forgotten knowledge is back.
//!
//! # Rooms
//!
//! Each module may use only those above it in this list.
//!
//! | room | what it holds |
//! |---|---|
//! | [`error`] | typed errors, each with its exit code |
//! | [`quant`] | schemes: how weights are stored; host encode and decode, the oracle of the GPU's; codes and survival between two checkpoints; roundings that keep an update; what a precision is |
//! | [`metrics`] | pure functions: ROUGE, membership, memorization, recovery, divergence, agreement, bootstrap, permutation tests |
//! | [`checkpoint`] | what is on disk: config, tensors (also packed ones), tokenizer |
//! | [`gpu`] | the only place that says `wgpu::Device`: device choice, buffers, shader linking |
//! | [`kernels`] | one file a kernel: parameters, wrapper, twin on the host, cases; matrices packed and rounded on the device |
//! | [`model`] | the forward pass as a list of kernel calls, for many arms in lockstep, resident or streamed; the same pass on the CPU |
//! | [`engine`] | tasks in, observations out: memory plan, passes, batching, paged cache, shared prefixes, arms held against each other |
//! | [`suite`] | MUSE and plain text: files to tasks, observations to metric values |
//! | [`audit`] | plan to tasks to observations (stored, resumable) to findings to verdicts; doses and repairs; logits compared, recovery localized; two checkpoints' weights compared, rounded and written |
//! | [`report`] | the result's schema, as tables, as JSON, as an HTML page and as other tools' files |
//! | [`cli`] | flags or a file to a validated plan; a run's folder |
//!
//! # Letters
//!
//! Shapes are written in brackets, slowest dimension first, always row-major:
//! `t` tokens, `s` sequences, `d` model width, `h` heads, `g` KV heads, `e` head width,
//! `f` feed-forward width, `v` vocabulary, `n`, `k` rows and columns of a weight matrix.
//!
//! # Where to add things
//!
//! A scheme: one file in `shaders/formats`, one host codec in [`quant`], one variant of
//! [`quant::Scheme`]. A kernel: one file in `shaders`, one in [`kernels`], one line in
//! [`kernels::registry`]. A suite: one file in [`suite`].

pub mod audit;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod error;
pub mod gpu;
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod quant;
pub mod report;
pub mod suite;

pub use error::{Error, Result};
