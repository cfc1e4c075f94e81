//! Problems for a kernel. Tests check them, benches time them.

use std::fmt;

use crate::error::Result;
use crate::gpu::{Buffer, Commands, Gpu};

/// Puts a case on a device.
pub type Prepare = Box<dyn Fn(&Gpu) -> Result<Prepared>>;

/// One problem for one kernel.
pub struct Case {
    /// "matmul/int4-g128 t=33 n=65 k=256".
    pub name: String,
    /// What it takes, for throughput.
    pub work: Work,
    /// Whether benches time it; the others are there for their awkward shapes.
    pub timed: bool,
    /// Uploads the inputs and compiles the shader.
    pub prepare: Prepare,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a case takes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Bound by memory: bytes read and written.
    Bytes(u64),
    /// Bound by arithmetic: floating-point operations.
    Flops(u64),
    /// Bound by either, as the device has it.
    Both {
        /// Floating-point operations.
        flops: u64,
        /// Bytes read and written, each operand once.
        bytes: u64,
    },
}

/// A case with its inputs on the device.
pub struct Prepared {
    /// Records the launches.
    pub record: Box<dyn Fn(&mut Commands)>,
    /// What must be there afterwards. Buffers that are only written start as 0xff bytes.
    pub outputs: Vec<Output>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}

/// A buffer that the kernel writes.
pub struct Output {
    /// Its name in the shader.
    pub name: &'static str,
    /// The buffer.
    pub buffer: Buffer,
    /// What the f64 twin says, word by word; called by tests only.
    pub want: Box<dyn Fn() -> Vec<Want>>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What one word of an output must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// An f32 within `bound` of `value`.
    Near {
        /// The twin's value.
        value: f64,
        /// The derived bound on the device's rounding.
        bound: f64,
    },
    /// These bits.
    Exactly(u32),
}

/// One f32 rounding, relative. A whole ulp: WGSL leaves the direction of rounding open.
pub(super) const ULP: f64 = f32::EPSILON as f64;

/// Higham's bound for a value that passed `depth` roundings: `d u / (1 - d u)`, relative to the sum
/// of magnitudes.
pub(super) fn rounding(depth: usize) -> f64 {
    let du = depth as f64 * ULP;
    du / (1.0 - du)
}

/// Relative error of `exp(x)` on a device, with the rounding of `x` itself: WGSL allows `3 + 2 |x|` ulp.
pub(super) fn exp_error(x: f64) -> f64 {
    (3.0 + 3.0 * x.abs()) * ULP
}

/// Deterministic noise: about normal, mean 0, deviation 1 (sum of four uniforms of splitmix64).
pub(super) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0 - 0.5
    };
    let deviation = (4.0f32 / 12.0).sqrt();
    (0..count).map(|_| (uniform() + uniform() + uniform() + uniform()) / deviation).collect()
}

/// A buffer of `count` words, all bits set: NaN where nothing is written.
pub(super) fn unwritten(gpu: &Gpu, what: &str, count: usize) -> Result<Buffer> {
    gpu.upload(what, &vec![u32::MAX; count])
}
