//! The devices of a machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::schema::Device;
use super::style::{Meaning, Style};
use super::table::number;
use crate::gpu::DeviceInfo;

/// What `undertext devices --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Devices {
    /// Best first; without the CPU pass, which is always there.
    pub devices: Vec<ListedDevice>,
}

/// A device of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListedDevice {
    /// What it is.
    #[serde(flatten)]
    pub device: Device,
    /// What kernels may ask of it; absent for the CPU pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What it can do; absent unless it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What kernels may ask of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Largest buffer range that a kernel can see, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Memory that a workgroup shares, in bytes.
    pub workgroup_memory_bytes: u64,
    /// Lanes of a workgroup.
    pub workgroup_lanes: u32,
}

/// What a device can do at most, through WGSL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// 1e9 operations of fused multiply-adds in f32 in a second, two each.
    pub gflops: f64,
    /// 1e9 bytes read from storage buffers in a second.
    pub read_gb_per_s: f64,
    /// 1e9 bytes read and written in a second by a copy: twice the bytes of the buffer.
    pub copy_gb_per_s: f64,
}

impl From<&DeviceInfo> for ListedDevice {
    fn from(info: &DeviceInfo) -> Self {
        let limits = Limits {
            max_binding_bytes: info.max_binding_bytes,
            max_buffer_bytes: info.max_buffer_bytes,
            workgroup_memory_bytes: info.workgroup_memory_bytes,
            workgroup_lanes: info.workgroup_lanes,
        };
        Self { device: info.into(), limits: info.index.is_some().then_some(limits), measured: None }
    }
}

/// The adapters of this machine.
#[must_use]
pub fn devices_text(devices: &Devices, style: Style) -> String {
    let mut header =
        ["index", "name", "backend", "type", "driver", "f16", "subgroups"].map(str::to_owned).to_vec();
    let texts = header.len();
    let measured = devices.devices.iter().any(|listed| listed.measured.is_some());
    if measured {
        header.extend(["GFLOP/s", "read GB/s", "copy GB/s"].map(str::to_owned));
    }
    let mut table = Grid::new(style, &header, texts);
    for listed in &devices.devices {
        let Device { index, name, backend, kind, driver, f16, subgroups: [least, most] } = &listed.device;
        let subgroups = match (least, most) {
            (0, 0) => "no".to_owned(),
            (least, most) if least == most => least.to_string(),
            (least, most) => format!("{least} to {most}"),
        };
        let index = index.map_or_else(|| "cpu".to_owned(), |index| index.to_string());
        let f16 = if *f16 { "yes" } else { "no" };
        let mut row = [&index, name, backend, kind, driver, f16, &subgroups].map(str::to_owned).to_vec();
        if measured {
            let peaks = listed.measured.as_ref().map(|m| [m.gflops, m.read_gb_per_s, m.copy_gb_per_s]);
            row.extend([0, 1, 2].map(|place| number(peaks.map(|peaks| peaks[place]))));
        }
        table.add(&row);
        if kind == "software" {
            table.mark(3, Meaning::Unsure);
        }
    }
    format!("{}\n", table.text())
}
