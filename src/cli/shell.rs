//! `undertext completions` and `undertext man`: what a packager installs beside the program.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::args::Cli;
use super::output::{JsonArgs, Output};
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,

    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write undertext.1 and a page of each command into this folder [default: undertext.1 to stdout]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    json: JsonArgs,
}

/// What `completions --json` prints.
#[derive(Serialize)]
struct Completions {
    shell: String,
    script: String,
}

/// What `man --json` prints.
#[derive(Serialize)]
struct Manual<'a> {
    /// Where the pages are; none if the page is here.
    out: Option<&'a Path>,
    page: Option<String>,
}

/// Prints a shell's completions.
pub(super) fn completions(args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "undertext", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let completions = Completions { shell: args.shell.to_string(), script };
    Output::new(args.json).emit(&completions, |_| completions.script.clone())
}

/// Prints the manual page, or writes all of them.
pub(super) fn man(args: ManArgs) -> Result<()> {
    let output = Output::new(args.json);
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Error::write("stdout".as_ref()))?;
        let page = String::from_utf8_lossy(&page).into_owned();
        return output.emit(&Manual { out: None, page: Some(page.clone()) }, |_| page.clone());
    };
    std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(Error::write(folder))?;
    output.emit(&Manual { out: Some(folder), page: None }, |_| format!("{}\n", folder.display()))
}
