//! The program as its users see it: stdout, stderr, files, exit codes. On the CPU pass but for what is about device memory.

mod audit;
mod bad;
mod codes;
mod compare;
mod devices;
mod localize;
mod quantize;
mod shell;
mod terminal;

use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use crate::family::Family;

/// Runs the program with the words of `line`; `$` stands for the family's directory.
fn undertext(family: &Family, line: &str) -> Output {
    let root = family.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let words = line.split_whitespace().map(|word| word.replace('$', root));
    Command::new(env!("CARGO_BIN_EXE_undertext")).args(words).current_dir(root).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// stdout, after a run that succeeded.
fn good(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

/// stdout as the one JSON value that it must be.
fn json_of(output: &Output) -> Value {
    serde_json::from_str(good(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

const AUDIT: &str = "audit --target $/target --unlearned $/npo $/ga --data $/data --device cpu";

fn family() -> Family {
    Family::new(&["target", "npo", "ga", "retrain"])
}

/// What clap refuses: exit code 2, and the value named.
fn one_line_usage(output: &Output, value: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    assert!(stderr(output).contains(value), "{}", stderr(output));
}

/// A failure is one line on stderr with these parts, apart from notes and progress, and nothing panics.
fn one_line(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let lines: Vec<_> =
        text.lines().filter(|line| !line.starts_with("note: ") && !line.starts_with('[')).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].starts_with("error: "), "{text}");
    for part in parts {
        assert!(lines[0].contains(part), "{part} in {text}");
    }
}

/// A command without a device fails so: nothing on stdout, and one line on stderr unless clap explains the usage.
fn failure(family: &Family, line: &str, code: i32, parts: &[&str]) {
    let output = undertext(family, line);
    assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
    assert!(parts.iter().all(|part| stderr(&output).contains(part)), "{line}: {}", stderr(&output));
    assert!(stdout(&output).is_empty());
    assert!(code == 2 || stderr(&output).lines().count() == 1, "{line}: {}", stderr(&output));
}
