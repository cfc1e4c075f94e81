//! `undertext devices`.

use clap::Args;

use super::args::Common;
use super::device::Device;
use super::output::{Output, notice};
use crate::error::Result;
use crate::gpu::{self, DeviceChoice, DeviceInfo, Gpu, Tuning};
use crate::kernels::peak;
use crate::report::devices::{ListedDevice, Measured};
use crate::report::{Devices, devices_text};

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Measure what each device can do at most: multiply-adds in f32, reading and copying memory. Takes some seconds a
    /// device; nothing else should run on it
    #[arg(long)]
    measure: bool,

    #[command(flatten)]
    common: Common,
}

/// Lists the adapters, or the one that `--device` means.
pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let output = Output::new(args.common.json.clone());
    let choice = args.common.device.as_ref();
    let infos = match choice {
        None => gpu::list(),
        Some(choice) => vec![Device::open(Some(choice), Tuning::Off, false)?.info()],
    };
    if infos.is_empty() {
        notice("no GPU adapter found; --device cpu always works");
    }
    let mut devices = Vec::new();
    for info in &infos {
        let measured = match args.measure.then(|| measure(info)) {
            None => None,
            Some(Ok(measured)) => measured,
            // Of several, the others still can be.
            Some(Err(error)) if choice.is_none() => {
                notice(&format!("{} cannot be measured: {error}", info.name));
                None
            }
            Some(Err(error)) => return Err(error),
        };
        devices.push(ListedDevice { measured, ..info.into() });
    }
    let devices = Devices { devices };
    output.emit(&devices, |style| devices_text(&devices, style))
}

/// What a device can do; nothing is known of the CPU pass.
fn measure(info: &DeviceInfo) -> Result<Option<Measured>> {
    let Some(index) = info.index else {
        notice("only adapters are measured, not the CPU pass");
        return Ok(None);
    };
    let peaks = peak::measure(&Gpu::open(&DeviceChoice::Index(index))?)?;
    Ok(Some(Measured {
        gflops: peaks.flops * 1e-9,
        read_gb_per_s: peaks.read * 1e-9,
        copy_gb_per_s: peaks.copy * 1e-9,
    }))
}
