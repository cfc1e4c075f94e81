//! Tells the compiler which commit it builds, for the record of a run.

use std::process::Command;

/// What git prints, or nothing: a build from a package has no repository to ask.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    // Whatever the program is made of; and the log of HEAD, which grows with every commit.
    for path in ["src", "shaders", "assets/demo", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    // A package that was unpacked inside somebody else's repository is none of its commits.
    let ours = git(&["ls-files", "src/build.rs"]).is_some_and(|listed| !listed.is_empty());
    let Some(commit) = ours.then(|| git(&["rev-parse", "HEAD"])).flatten() else { return };
    println!("cargo:rustc-env=UNDERTEXT_COMMIT={commit}");
    if let Some(changes) = git(&["status", "--porcelain", "--untracked-files=no"]) {
        println!("cargo:rustc-env=UNDERTEXT_DIRTY={}", !changes.is_empty());
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
}
