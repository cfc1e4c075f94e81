//! The device that the user means, and models opened on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::output::notice;
use crate::audit::Needs;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::gpu::{self, DeviceChoice, DeviceInfo, Gpu, Tuning};
use crate::model::{Forward, Llama, PAGE, Reference};
use crate::quant::Precision;

/// Most bytes that a model's cache may take, unless one task alone needs more.
const CACHE_BYTES: usize = 512 << 20;

/// What the forward passes run on.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU pass.
    Cpu,
    /// An adapter.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// Opens the device that `choice` means. Without a choice it is the best adapter, or the CPU pass if there is none;
    /// what is slow about it is said on stderr. Kernels are chosen as `tuning` says, remembered in the user's cache folder.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NoDevice`] if there is no such device, [`crate::Error::Device`] if it cannot be opened.
    pub fn open(choice: Option<&DeviceChoice>, tuning: Tuning) -> Result<Self> {
        let choice = match choice {
            Some(DeviceChoice::Cpu) => return Ok(Self::Cpu),
            None | Some(DeviceChoice::Best) if gpu::list().is_empty() => {
                notice("no GPU adapter found; running on the CPU");
                return Ok(Self::Cpu);
            }
            None => &DeviceChoice::Best,
            Some(choice) => choice,
        };
        let gpu = Gpu::open(choice)?.with_tuning(tuning, gpu::cache_folder().as_deref()).with_profile(true);
        let info = gpu.info();
        if info.is_software() && *choice == DeviceChoice::Best {
            notice(&format!("{} is a software adapter: right, but slow", info.name));
        }
        Ok(Self::Gpu(Arc::new(gpu)))
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> DeviceInfo {
        match self {
            Self::Cpu => DeviceInfo::cpu(),
            Self::Gpu(gpu) => gpu.info().clone(),
        }
    }

    /// The kernels chosen so far, by class of problem.
    #[must_use]
    pub fn kernels(&self) -> BTreeMap<String, String> {
        match self {
            Self::Cpu => BTreeMap::new(),
            Self::Gpu(gpu) => gpu.chosen_kernels(),
        }
    }

    /// The device's own seconds by kernel so far, and the launches that these were measured on; none for the CPU pass
    /// and for an adapter without a clock.
    #[must_use]
    pub fn seconds(&self) -> (BTreeMap<String, f64>, u64) {
        match self {
            Self::Cpu => (BTreeMap::new(), 0),
            Self::Gpu(gpu) => (gpu.kernel_seconds(), gpu.timed_dispatches()),
        }
    }

    /// Loads a checkpoint at a precision.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read or is not finite, or if the device fails or is too small.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        precision: Precision,
        needs: Needs,
    ) -> Result<Box<dyn Forward>> {
        let tokens = cache_tokens(checkpoint, needs);
        match self {
            Self::Cpu => Ok(Box::new(Reference::load(checkpoint, precision, needs.quantize_head, tokens)?)),
            Self::Gpu(gpu) => {
                Ok(Box::new(Llama::load(gpu, checkpoint, precision, needs.quantize_head, tokens)?))
            }
        }
    }
}

/// Tokens of a cache that holds all tasks if [`CACHE_BYTES`] allow it, and the longest one in any case.
fn cache_tokens(checkpoint: &Checkpoint, needs: Needs) -> usize {
    let config = checkpoint.config();
    let token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * size_of::<f32>();
    let affordable = CACHE_BYTES / token_bytes.max(1) / PAGE * PAGE;
    needs.all.min(affordable).max(needs.longest)
}
