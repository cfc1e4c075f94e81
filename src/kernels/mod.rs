//! One file a kernel: its parameters, its wrapper, its f64 twin and its cases.
//!
//! A wrapper is made once for a device (that compiles the shader) and then records launches into a
//! [`crate::gpu::Commands`]. Tests check every [`Case`] of [`registry`] against the twin, benches time it.

mod attention;
mod cache;
mod case;
mod change;
mod divergence;
mod entropy;
mod family;
mod fold;
mod keep;
mod link;
mod matmul;
mod matrix;
mod matvec;
mod pack;
pub mod peak;
mod rms_norm;
mod rope;
mod round;
mod sentinel;
mod split;
mod swiglu;
mod top;
mod trial;
mod tune;
mod tune_decode;
mod tune_norm;

pub use attention::{AttentionDecode, AttentionPrefill, Operands as AttentionOperands};
pub use cache::KvFormat;
pub use case::{Case, Output, Prepare, Prepared, Want, Work};
pub use change::Comparer;
pub use divergence::{Diverge, DivergenceState, Operands as DivergeOperands};
pub use entropy::{Entropy, EntropyState, Operands as EntropyOperands};
pub use family::Family;
pub use fold::{FOLD_CHUNK, Fold, FoldState};
pub use link::ParamsLayout;
pub use matmul::{Finish, Matmul, Operands as MatOperands};
pub use matrix::{Matrix, Part};
pub use matvec::{Matvec, MatvecFamily};
pub use pack::{Packer, Stored};
pub use rms_norm::{Norm, Operands as NormOperands, RmsNorm, RmsNormForm};
pub use rope::{Heads, Operands as RopeOperands, Rope};
pub use swiglu::Swiglu;
pub use top::{TOP, Top, TopEntry};

use crate::gpu::{Gpu, Source};

/// A kernel, as tests and benches see it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The shader's file name without its ending.
    pub name: &'static str,
    /// Every form that is ever compiled.
    pub sources: fn() -> Vec<Source>,
    /// How the Rust side lays out `Params`.
    pub params: fn() -> ParamsLayout,
    /// Problems to check and to time.
    pub cases: fn() -> Vec<Case>,
}

impl Kernel {
    /// Whether the device has what every form of it needs.
    #[must_use]
    pub fn runs_on(&self, gpu: &Gpu) -> bool {
        gpu.has_subgroups() || !(self.sources)().iter().any(|source| source.needs_subgroups)
    }
}

/// All kernels.
#[must_use]
pub fn registry() -> Vec<Kernel> {
    let mut kernels = vec![pack::SCALES, pack::CODES, change::KERNEL, keep::KERNEL];
    kernels.extend(matmul::KERNELS);
    kernels.extend([
        matvec::WORKGROUP,
        matvec::LANE,
        matvec::SUBGROUP,
        matvec::BROADCAST,
        matvec::RUN,
        rms_norm::KERNEL,
        rope::KERNEL,
        attention::PREFILL,
        attention::PREFILL_SUBGROUP,
        attention::DECODE,
        attention::DECODE_SUBGROUP,
        swiglu::KERNEL,
        fold::KERNEL,
        top::KERNEL,
        entropy::KERNEL,
        divergence::KERNEL,
        sentinel::KERNEL,
        peak::FMA,
        peak::READ,
        peak::COPY,
    ]);
    kernels
}
