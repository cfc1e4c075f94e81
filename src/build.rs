//! Tells the compiler which commit it builds, for the record of a run, and what an answer depends on in the program.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources that an answer to a task depends on.
const ENGINE: [&str; 9] = [
    "Cargo.lock",
    "shaders",
    "src/checkpoint",
    "src/engine",
    "src/gpu",
    "src/kernels",
    "src/metrics/divergence.rs",
    "src/model",
    "src/quant",
];

/// The files at or below `path`, sorted.
fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_path_buf()] };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.iter().flat_map(|entry| files(entry)).collect()
}

/// FNV-1a over those sources, the compiler, the target and the optimization: a stored answer of another program is not used.
fn engine() -> String {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        // 0xff ends a part: no UTF-8 text holds it.
        for byte in bytes.iter().chain(&[0xff]) {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in ENGINE.iter().flat_map(|path| files(Path::new(path))) {
        add(file.to_string_lossy().replace('\\', "/").as_bytes());
        add(&std::fs::read(&file).unwrap_or_default());
    }
    let compiler = std::env::var("RUSTC").ok();
    let compiler = compiler.and_then(|rustc| Command::new(rustc).arg("-V").output().ok());
    add(&compiler.map(|output| output.stdout).unwrap_or_default());
    for name in ["TARGET", "OPT_LEVEL"] {
        add(std::env::var(name).unwrap_or_default().as_bytes());
    }
    format!("{state:016x}")
}

/// What git prints, or nothing: a build from a package has no repository to ask.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The version of a dependency in `Cargo.lock`.
fn locked(package: &str) -> Option<String> {
    let lock = std::fs::read_to_string("Cargo.lock").ok()?.replace('\r', "");
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split('"').next().map(str::to_owned)
}

/// What `--version` says: the program's version, its commit if there is one, and wgpu's version.
fn version(commit: Option<&str>) {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let commit = commit.map_or_else(|| "of no commit".to_owned(), |commit| format!("commit {commit}"));
    let wgpu = locked("wgpu").unwrap_or_else(|| "of unknown version".to_owned());
    println!("cargo:rustc-env=UNDERTEXT_LONG_VERSION={version} ({commit}, wgpu {wgpu})");
}

fn main() {
    // Whatever the program is made of; and the log of HEAD, which grows with every commit.
    for path in ["src", "shaders", "assets/demo", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rustc-env=UNDERTEXT_ENGINE={}", engine());
    // A package that was unpacked inside somebody else's repository is none of its commits.
    let ours = git(&["ls-files", "src/build.rs"]).is_some_and(|listed| !listed.is_empty());
    let Some(commit) = ours.then(|| git(&["rev-parse", "HEAD"])).flatten() else { return version(None) };
    println!("cargo:rustc-env=UNDERTEXT_COMMIT={commit}");
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).map(|changes| !changes.is_empty());
    if let Some(dirty) = dirty {
        println!("cargo:rustc-env=UNDERTEXT_DIRTY={dirty}");
    }
    let changed = if dirty == Some(true) { " and changes" } else { "" };
    version(Some(&format!("{commit}{changed}")));
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
}
