//! The `undertext` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_device_select();
    ExitCode::from(undertext::cli::run(std::env::args_os()))
}

/// Keeps Mesa's device-select layer from looking for a Wayland compositor where there can be none: without
/// `XDG_RUNTIME_DIR` (containers, SLURM jobs) libwayland writes "error: ..." to stderr for each look. The layer only puts
/// the compositor's adapter first, and adapters are ranked by undertext itself; who configured it keeps it.
fn quiet_device_select() {
    let configured = ["XDG_RUNTIME_DIR", "NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT"];
    if cfg!(target_os = "linux") && configured.iter().all(|name| std::env::var_os(name).is_none()) {
        #[expect(unsafe_code, reason = "the layer can be told in no other way")]
        // SAFETY: this is the first thing that the program does, so that no other thread reads the environment.
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}
