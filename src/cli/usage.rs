//! What is wrong with a command line, on stderr.

use std::ffi::OsString;
use std::path::Path;

use super::stderr::{Format, failure, set};

/// Of every command line that cannot be used.
pub(super) const EXIT_CODE: u8 = 2;

/// Prints what clap found, in the format that the command line asks for as far as it can be told.
pub(super) fn print(error: &clap::Error, arguments: &[OsString]) {
    let tip = json_tip(arguments).unwrap_or_default();
    if wants_json(arguments) {
        set(false, 0, Format::Json);
        let text = error.to_string();
        failure(&format!("{}\n{tip}", text.strip_prefix("error: ").unwrap_or(&text)), EXIT_CODE);
    } else {
        // Nothing is left to tell if this cannot be printed.
        let _ = error.print();
        if !tip.is_empty() {
            super::output::notice(&tip);
        }
    }
}

fn wants_json(arguments: &[OsString]) -> bool {
    let pairs = arguments.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json");
    pairs || arguments.iter().any(|argument| argument == "--log-format=json")
}

/// What to do about a file that stands after `--json` as a word of its own.
fn json_tip(arguments: &[OsString]) -> Option<String> {
    let mut pairs = arguments.windows(2);
    let pair = pairs.find(|pair| {
        pair[0] == "--json" && Path::new(&pair[1]).extension().is_some_and(|extension| extension == "json")
    })?;
    let file = pair[1].display();
    Some(format!("to write the JSON to {file}, say --json={file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_after_json_are_told_of() {
        let tip = |line: &str| json_tip(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(tip("x demo --json a.json").unwrap(), "to write the JSON to a.json, say --json=a.json");
        assert_eq!(tip("x codes --json target npo"), None);
        assert_eq!(tip("x codes a.json --json"), None);
    }
}
