//! Which device to run on.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, did_you_mean};

/// What the user says about the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best adapter there is: discrete before integrated before software.
    #[default]
    Best,
    /// The CPU pass, no adapter.
    Cpu,
    /// The adapter with this number in `undertext devices`.
    Index(usize),
    /// The best adapter of a backend, or its n-th (`vulkan`, `vulkan:1`).
    Backend(String, usize),
    /// The best adapter whose name contains this, whatever the case.
    Name(String),
}

const BACKENDS: [&str; 4] = ["vulkan", "metal", "dx12", "gl"];

impl FromStr for DeviceChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let lower = text.trim().to_lowercase();
        let (head, number) = lower.split_once(':').unwrap_or((&lower, "0"));
        Ok(match (lower.as_str(), lower.parse(), number.parse()) {
            ("auto" | "best" | "", ..) => Self::Best,
            ("cpu", ..) => Self::Cpu,
            (_, Ok(index), _) => Self::Index(index),
            (_, _, Ok(nth)) if BACKENDS.contains(&head) => Self::Backend(head.to_owned(), nth),
            _ => Self::Name(text.trim().to_owned()),
        })
    }
}

impl fmt::Display for DeviceChoice {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("best"),
            Self::Cpu => f.write_str("cpu"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Backend(backend, nth) => write!(f, "{backend}:{nth}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A device, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Number in `undertext devices`; none for the CPU pass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<usize>,
    /// The adapter's own name.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl` or `cpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software`, `other` or `cpu`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Driver and version, as far as the backend says.
    pub driver: String,
    /// Whether shaders may use f16 arithmetic (no kernel needs it).
    pub f16: bool,
    /// Smallest and largest subgroup; zeros where there are none.
    pub subgroups: [u32; 2],
    /// Whether kernels can be timed by the device itself.
    pub timestamps: bool,
    /// Largest single buffer in bytes.
    pub max_buffer_bytes: u64,
    /// Largest buffer range a kernel can see, in bytes.
    pub max_binding_bytes: u64,
    /// Memory that a workgroup shares, in bytes at most.
    pub workgroup_memory_bytes: u64,
    /// Lanes of a workgroup at most.
    pub workgroup_lanes: u32,
}

impl DeviceInfo {
    /// The CPU pass as a device.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            index: None,
            name: "CPU pass".to_owned(),
            backend: "cpu".to_owned(),
            kind: "cpu".to_owned(),
            driver: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            f16: false,
            subgroups: [0, 0],
            timestamps: false,
            max_buffer_bytes: u64::MAX,
            max_binding_bytes: u64::MAX,
            workgroup_memory_bytes: u64::MAX,
            workgroup_lanes: u32::MAX,
        }
    }

    /// Whether it is a GPU emulated on the CPU.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    fn of(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let features = adapter.features();
        let limits = adapter.limits();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let subgroups = if features.contains(wgpu::Features::SUBGROUP) {
            [info.subgroup_min_size, info.subgroup_max_size]
        } else {
            [0, 0]
        };
        Self {
            index: None,
            name: info.name,
            backend: info.backend.to_str().to_owned(),
            kind: kind.to_owned(),
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size.into(),
            workgroup_lanes: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// Sorts better devices first.
    fn rank(&self) -> (usize, usize) {
        let kinds = ["discrete", "integrated", "virtual", "other", "software"];
        let place = |list: &[&str], item: &str| list.iter().position(|x| *x == item).unwrap_or(list.len());
        (place(&kinds, &self.kind), place(&BACKENDS, &self.backend))
    }
}

/// Adapters that can run compute shaders, best first, in a fixed order; looked for once a process.
fn adapters() -> &'static [(DeviceInfo, wgpu::Adapter)] {
    static ADAPTERS: OnceLock<Vec<(DeviceInfo, wgpu::Adapter)>> = OnceLock::new();
    ADAPTERS.get_or_init(find_adapters)
}

fn find_adapters() -> Vec<(DeviceInfo, wgpu::Adapter)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<_> = found
        .into_iter()
        .filter(|adapter| {
            let flags = adapter.get_downlevel_capabilities().flags;
            flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        })
        .map(|adapter| (DeviceInfo::of(&adapter), adapter))
        .collect();
    // Stable: adapters of one rank stay in the driver's order.
    adapters.sort_by_key(|(info, _)| info.rank());
    for (index, (info, _)) in adapters.iter_mut().enumerate() {
        info.index = Some(index);
    }
    adapters
}

/// Every adapter this machine has, best first.
#[must_use]
pub fn list() -> Vec<DeviceInfo> {
    adapters().iter().map(|(info, _)| info.clone()).collect()
}

/// The adapter that `choice` means.
pub(super) fn pick(choice: &DeviceChoice) -> Result<(DeviceInfo, &'static wgpu::Adapter)> {
    let all = adapters();
    let names: Vec<_> = all.iter().map(|(info, _)| format!("{} ({})", info.name, info.backend)).collect();
    let wanted = match choice {
        DeviceChoice::Best => all.first(),
        DeviceChoice::Cpu => None,
        DeviceChoice::Index(index) => all.get(*index),
        DeviceChoice::Backend(backend, nth) => {
            all.iter().filter(|(info, _)| info.backend == *backend).nth(*nth)
        }
        DeviceChoice::Name(part) => {
            let part = part.to_lowercase();
            all.iter().find(|(info, _)| info.name.to_lowercase().contains(&part))
        }
    };
    wanted.map(|(info, adapter)| (info.clone(), adapter)).ok_or_else(|| {
        let there = if names.is_empty() { "no adapter".to_owned() } else { names.join(", ") };
        let asked = match choice {
            DeviceChoice::Best => "any GPU adapter".to_owned(),
            DeviceChoice::Cpu => "a GPU adapter called cpu".to_owned(),
            DeviceChoice::Index(index) => format!("device number {index}"),
            DeviceChoice::Backend(backend, nth) => format!("{backend} adapter number {nth}"),
            DeviceChoice::Name(part) => format!("a device whose name contains {part:?}"),
        };
        let meant = match choice {
            DeviceChoice::Name(part) => {
                let words = all.iter().flat_map(|(info, _)| info.name.split_whitespace());
                did_you_mean(part, BACKENDS.into_iter().chain(["cpu"]).chain(words))
            }
            _ => String::new(),
        };
        Error::NoDevice { reason: format!("asked for {asked}, this machine has {there}{meant}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_documented() {
        let read = |text: &str| text.parse::<DeviceChoice>().unwrap_or_default();
        assert_eq!(read("auto"), DeviceChoice::Best);
        assert_eq!(read("CPU"), DeviceChoice::Cpu);
        assert_eq!(read("2"), DeviceChoice::Index(2));
        assert_eq!(read("vulkan"), DeviceChoice::Backend("vulkan".into(), 0));
        assert_eq!(read("Vulkan:1"), DeviceChoice::Backend("vulkan".into(), 1));
        assert_eq!(read("RTX 4070"), DeviceChoice::Name("RTX 4070".into()));
        assert_eq!(read("vulkan:x"), DeviceChoice::Name("vulkan:x".into()));
    }
}
