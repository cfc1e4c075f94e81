//! The `undertext` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(undertext::cli::run(std::env::args_os()))
}
