//! `undertext completions` and `undertext man`: what a packager installs beside the program.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::args::Cli;
use super::output::print;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write undertext.1 and a page of each command into this folder [default: undertext.1 to stdout]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints a shell's completions.
pub(super) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "undertext", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Prints the manual page, or writes all of them.
pub(super) fn man(args: &ManArgs) -> Result<()> {
    let Some(folder) = &args.out else {
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut text).map_err(Error::write("stdout".as_ref()))?;
        return print(&String::from_utf8_lossy(&text));
    };
    std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(Error::write(folder))?;
    print(&format!("{}\n", folder.display()))
}
