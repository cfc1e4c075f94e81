//! The `undertext` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    no_desktop();
    ExitCode::from(undertext::cli::run(std::env::args_os()))
}

/// Where there is no desktop session (containers, SLURM jobs) says so in `XDG_RUNTIME_DIR`: Mesa's device-select layer asks
/// the compositor which adapter comes first, and libwayland writes "error: ..." to stderr if the variable is not set.
fn no_desktop() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        #[expect(unsafe_code, reason = "libwayland can be told in no other way")]
        // SAFETY: this is the first thing that the program does, so that no other thread reads the environment.
        unsafe {
            std::env::set_var("XDG_RUNTIME_DIR", "/nonexistent");
        }
    }
}
