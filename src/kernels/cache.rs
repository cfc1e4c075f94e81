//! How keys and values are kept in the cache.

use half::f16;

use super::link::{HALF, file};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Source};

/// The format of the KV cache's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Rounded to nearest, ties to even; magnitudes above 65504 become 65504.
    F16,
    /// As computed.
    #[default]
    F32,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F16, Self::F32];

    /// Its name in flags and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Links `to_cache` and `from_cache`, before the kernel: it declares buffers of their types.
    pub(super) fn link(self, source: &mut Source) {
        let parts = match self {
            Self::F16 => vec![file!("cache/f16.wgsl"), HALF],
            Self::F32 => vec![file!("cache/f32.wgsl")],
        };
        source.parts.splice(0..0, parts);
    }

    /// The words of `values`, an even number, as `to_cache` stores them: the host twin.
    pub(super) fn words(self, values: &[f32]) -> Vec<u32> {
        let half = |value: f32| {
            let sign = u32::from(value.is_sign_negative()) << 15;
            let number = f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits();
            if value.is_nan() { 0x7e00 | sign } else { u32::from(number) }
        };
        match self {
            Self::F16 => values.chunks_exact(2).map(|pair| half(pair[0]) | half(pair[1]) << 16).collect(),
            Self::F32 => bytemuck::cast_slice(values).to_vec(),
        }
    }

    /// What `from_cache` makes of `words`.
    pub(super) fn values(self, words: &[u32]) -> Vec<f32> {
        match self {
            Self::F16 => bytemuck::cast_slice::<u32, f16>(words).iter().map(|half| half.to_f32()).collect(),
            Self::F32 => bytemuck::cast_slice(words).to_vec(),
        }
    }

    /// Uploads `values` as a cache; also gives what the device reads from it.
    pub(super) fn upload(self, gpu: &Gpu, what: &str, values: &[f32]) -> Result<(Buffer, Vec<f32>)> {
        let words = self.words(values);
        Ok((gpu.upload(what, &words)?, self.values(&words)))
    }
}
