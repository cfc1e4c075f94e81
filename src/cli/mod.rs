//! Flags to a validated plan, and the commands.
//!
//! stdout carries the result and nothing else; notices, progress and errors go to stderr, an error as one line. Exit
//! codes are those of [`crate::error`].

mod args;
mod arms;
mod audit;
mod calibrated;
mod codes;
mod compare;
mod demo;
mod device;
mod devices;
mod export;
mod folder;
mod generate;
mod interrupt;
mod into;
mod json;
mod judge;
mod localize;
mod log;
mod memory;
mod merge;
mod meter;
mod output;
mod plan_file;
mod plan_tables;
mod progress;
mod quantize;
mod released;
mod repair;
mod report;
mod session;
mod shard;
mod shell;
mod stderr;
mod usage;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

pub use device::Device;

/// Runs the program with `arguments` (the first is its own name) and gives its exit code.
pub fn run<I, T>(arguments: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let cli = match args::Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            if asked {
                // Nothing is left to tell if help itself cannot be printed.
                let _ = error.print();
                return 0;
            }
            usage::print(&error, &arguments);
            return usage::EXIT_CODE;
        }
    };
    stderr::set(cli.quiet, cli.verbose, cli.log_format);
    let result = match cli.command {
        args::Command::Audit(args) => audit::run(*args),
        args::Command::Demo(args) => demo::run(&args),
        args::Command::Generate(args) => generate::run(args),
        args::Command::Codes(args) => codes::run(args),
        args::Command::Compare(args) => compare::run(args),
        args::Command::Localize(args) => localize::run(args),
        args::Command::Quantize(args) => quantize::run(args),
        args::Command::Merge(args) => merge::run(&args),
        args::Command::Report(args) => report::run(args),
        args::Command::Export(args) => export::run(&args),
        args::Command::Completions(args) => shell::completions(args),
        args::Command::Man(args) => shell::man(args),
        args::Command::Devices(args) => devices::run(&args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            output::error(&error);
            error.exit_code()
        }
    }
}
