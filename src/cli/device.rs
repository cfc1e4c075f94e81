//! The device that the user means.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::output::notice;
use crate::error::Result;
use crate::gpu::{self, DeviceChoice, DeviceInfo, Gpu, Tuning};

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
    /// With `watched` the driver's allocator is looked at, for the record.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NoDevice`] if there is no such device, [`crate::Error::Device`] if it cannot be opened.
    pub fn open(choice: Option<&DeviceChoice>, tuning: Tuning, watched: bool) -> Result<Self> {
        let choice = match choice {
            Some(DeviceChoice::Cpu) => return Ok(Self::cpu()),
            None | Some(DeviceChoice::Best) if gpu::list().is_empty() => {
                notice("no GPU adapter found; running on the CPU");
                return Ok(Self::cpu());
            }
            None => &DeviceChoice::Best,
            Some(choice) => choice,
        };
        let gpu = Gpu::open(choice)?.with_tuning(tuning, gpu::cache_folder().as_deref()).with_profile(true);
        let gpu = if watched { gpu.with_watched_memory() } else { gpu };
        let info = gpu.info();
        told(info);
        if info.is_software() && *choice == DeviceChoice::Best {
            notice(&format!("{} is a software adapter: right, but slow", info.name));
        }
        Ok(Self::Gpu(Arc::new(gpu)))
    }

    fn cpu() -> Self {
        told(&DeviceInfo::cpu());
        Self::Cpu
    }

    /// Opens the device that `choice` means, for work that the host does faster than an adapter emulated on it: without a
    /// choice such an adapter is not taken. No kernel is tuned.
    ///
    /// # Errors
    ///
    /// As [`Device::open`].
    pub fn open_unless_software(choice: Option<&DeviceChoice>) -> Result<Self> {
        match choice {
            None | Some(DeviceChoice::Best) if gpu::list().first().is_none_or(DeviceInfo::is_software) => {
                Ok(Self::cpu())
            }
            choice => Self::open(choice, Tuning::Off, false),
        }
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> DeviceInfo {
        match self {
            Self::Cpu => DeviceInfo::cpu(),
            Self::Gpu(gpu) => gpu.info().clone(),
        }
    }

    /// What of the device answers may depend on: its name and driver, and what the CPU can do, which the CPU pass and
    /// software adapters compute with.
    #[must_use]
    pub fn identity(&self) -> String {
        let DeviceInfo { name, backend, driver, .. } = self.info();
        #[cfg(target_arch = "x86_64")]
        let features = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let features: [(&str, bool); 0] = [];
        let features = features.iter().filter(|(_, there)| *there).map(|(name, _)| format!(" {name}"));
        format!("{name} ({backend}), {driver}{}", features.collect::<String>())
    }

    /// Goes on with the kernels that the file holds, and keeps in it which are chosen from now on; nothing for the CPU pass.
    pub fn keep_choices(&self, path: &Path) {
        if let Self::Gpu(gpu) = self {
            gpu.keep_choices(path);
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
}

/// Says what device is used to those who ask.
fn told(info: &DeviceInfo) {
    let DeviceInfo { name, backend, kind, driver, .. } = info;
    log::debug!(
        device = name.as_str(), backend = backend.as_str(), kind = kind.as_str(), driver = driver.as_str();
        "device: {name} ({backend}, {kind}), {driver}"
    );
}
