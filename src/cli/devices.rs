//! `undertext devices`.

use clap::Args;

use super::args::Common;
use super::device::Device;
use super::output::{Output, notice};
use crate::error::Result;
use crate::gpu::{self, Tuning};
use crate::report::{devices_text, schema};

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    #[command(flatten)]
    common: Common,
}

/// Lists the adapters, or the one that `--device` means.
pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let output = Output::new(args.common.json.clone());
    let infos = match &args.common.device {
        None => gpu::list(),
        Some(choice) => vec![Device::open(Some(choice), Tuning::Off, false)?.info()],
    };
    if infos.is_empty() {
        notice("no GPU adapter found; --device cpu always works");
    }
    let devices = schema::Devices { devices: infos.iter().map(Into::into).collect() };
    output.emit(&devices, |style| devices_text(&devices, style))
}
