//! A run's folder, as its users see it: what is in it, killing and resuming, and everything that can go wrong with it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::family::Family;

const BINARY: &str = env!("CARGO_BIN_EXE_undertext");

pub(crate) fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(line.split_whitespace()).current_dir(folder);
    command
}

pub(crate) fn run(folder: &Path, line: &str) -> Output {
    command(folder, line).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

pub(crate) fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A failure: this exit code, and these parts in the one line that is an error.
pub(crate) fn fails(output: &Output, exit_code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), Some(exit_code), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && !text.contains("panicked"), "{text}");
    for part in parts {
        assert!(errors[0].contains(part), "{part} in {text}");
    }
}

pub(crate) fn good(output: &Output) {
    assert_eq!(code(output), Some(0), "{}", stderr(output));
}

/// A report without what may differ between a run that was stopped and one that was not; and the number of its sessions.
pub(crate) fn figures(folder: &Path) -> (String, u64) {
    let mut report: Value =
        serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    let map = report.as_object_mut().unwrap();
    let counters = map.remove("counters").unwrap();
    map.remove("gpu_seconds");
    map.remove("gpu_timed_dispatches");
    (report.to_string(), counters["sessions"].as_u64().unwrap())
}

/// Lines of all stored observations.
pub(crate) fn stored(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder.join("observations")) else { return 0 };
    entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap().lines().count()).sum()
}

/// Waits until the run in `folder` has stored something, and not yet everything.
pub(crate) fn wait_for_answers(child: &mut Child, folder: &Path, least: usize) {
    let begun = Instant::now();
    while stored(folder) < least {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        assert!(begun.elapsed() < Duration::from_secs(120), "no answers come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const AUDIT: &str = "audit --target target --unlearned npo --data data --device cpu --limit 2 --precision int8 --resamples 100";

const DEMO: &str = "demo --limit 1 --device cpu --resamples 100 --no-survival";

#[test]
fn a_run_has_a_folder() {
    let family = Family::new(&["target", "npo", "ga"]);
    let root = family.path("");
    let output = run(&root, &AUDIT.replace("npo", "npo ga"));
    good(&output);
    let runs: Vec<_> = std::fs::read_dir(root.join("undertext-runs")).unwrap().collect();
    assert_eq!(runs.len(), 1);
    let folder = runs[0].as_ref().unwrap().path();
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.ends_with("_npo+1") && name.starts_with("20") && !name.contains(':'), "{name}");
    assert!(
        stderr(&output).contains(&format!("note: writing to undertext-runs/{name}")),
        "{}",
        stderr(&output)
    );
    for file in ["plan.toml", "report.json", "report.html", "run.log", "inputs.json", "sessions.json"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().ends_with(".tmp")), "{left:?}");
    // What stderr said is in the log, each line with its time.
    let log = std::fs::read_to_string(folder.join("run.log")).unwrap();
    for line in stderr(&output).lines() {
        assert!(log.contains(line), "{line} in {log}");
    }
    assert!(log.lines().all(|line| line.starts_with("20") && line.as_bytes()[19] == b'Z'), "{log}");
    // The plan asks the same again, from anywhere, into another folder.
    let elsewhere = TempDir::new().unwrap();
    let plan = folder.join("plan.toml");
    let output = run(elsewhere.path(), &format!("audit {} --out again", plan.display()));
    good(&output);
    assert_eq!(figures(&elsewhere.path().join("again")), figures(&folder));
    assert_eq!(
        std::fs::read(elsewhere.path().join("again/plan.toml")).unwrap(),
        std::fs::read(plan).unwrap()
    );
    // A page can be made of the folder.
    std::fs::remove_file(folder.join("report.html")).unwrap();
    let output = run(&root, &format!("report undertext-runs/{name}"));
    good(&output);
    assert!(std::fs::read_to_string(folder.join("report.html")).unwrap().contains("<html"));
    // Nothing is kept by those who want nothing, nor by the demo unless it is told to.
    good(&run(elsewhere.path(), &format!("audit {} --no-out", folder.join("plan.toml").display())));
    good(&run(elsewhere.path(), DEMO));
    let left: Vec<_> = std::fs::read_dir(elsewhere.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Kills the run of `line` at so many moments, spread over the time that it takes, and lets it go on.
///
/// Gives how many of the kills came between two answers.
fn kill_and_resume(root: &Path, line: &str, moments: u32) -> u32 {
    let begun = Instant::now();
    good(&run(root, &format!("{line} --out whole")));
    let whole = begun.elapsed();
    let (want, _) = figures(&root.join("whole"));
    let all = stored(&root.join("whole"));
    let mut between = 0;
    for moment in 0..moments {
        let name = format!("killed{moment}");
        let folder = root.join(&name);
        let mut child = command(root, &format!("{line} --out {name}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * (2 * moment + 1) / (2 * moments));
        child.kill().unwrap();
        child.wait().unwrap();
        between += u32::from((1..all).contains(&stored(&folder)));
        // There may be no plan yet to resume; the same command goes on just as well.
        let line = if folder.join("plan.toml").exists() && moment % 2 == 0 {
            format!("audit --resume {name}")
        } else {
            format!("{line} --out {name}")
        };
        let output = run(root, &line);
        good(&output);
        assert_eq!(figures(&folder).0, want, "moment {moment}: {}", stderr(&output));
        assert_eq!(stored(&folder), all, "moment {moment}");
        // A resumed run prints what an uninterrupted one prints.
        assert!(output.stdout.len() > 1000);
    }
    between
}

#[test]
fn a_run_that_is_killed_at_any_moment_resumes_to_the_same_report() {
    let family = Family::new(&["target", "npo", "ga"]);
    let line = AUDIT.replace("npo", "npo ga").replace("--limit 2", "");
    // A run of a moment, whose answers come at once: that a kill comes between them is for the demo to show.
    kill_and_resume(&family.path(""), &line, 12);
}

#[test]
fn a_demo_that_is_killed_resumes_too() {
    // Where the moments fall is up to the machine: others are tried if none was of interest.
    let kill = |moments| kill_and_resume(TempDir::new().unwrap().path(), DEMO, moments);
    assert!(kill(4) > 0 || kill(7) > 0, "none of 11 kills came between two answers");
}

#[test]
fn a_resumed_run_asks_only_what_is_missing() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    good(&run(&root, &format!("{AUDIT} --out run")));
    let (want, sessions) = figures(&root.join("run"));
    assert_eq!(sessions, 1);
    let all = stored(&root.join("run"));
    let output = run(&root, "audit --resume run");
    good(&output);
    assert!(
        stderr(&output).contains(&format!("{all} of {all} answers are there already")),
        "{}",
        stderr(&output)
    );
    assert_eq!(figures(&root.join("run")), (want.clone(), 2));
    assert_eq!(stored(&root.join("run")), all);
    // One arm's answers are gone: its group is asked again.
    std::fs::remove_file(root.join("run/observations/03_npo@fp16.jsonl")).unwrap();
    good(&run(&root, &format!("{AUDIT} --out run")));
    assert_eq!(figures(&root.join("run")), (want.clone(), 3));
    assert_eq!(stored(&root.join("run")), all);
    // A changed weight is noticed, though neither size nor name changed.
    let weights = root.join("npo/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let output = run(&root, "audit --resume run");
    good(&output);
    for part in ["the weights of npo have changed", "npo@fp16: ", "npo@int8: "] {
        assert!(stderr(&output).contains(part), "{part} in {}", stderr(&output));
    }
    assert!(!stderr(&output).contains("target@"), "{}", stderr(&output));
    assert_ne!(figures(&root.join("run")).0, want);
    good(&run(&root, &format!("{AUDIT} --out fresh")));
    assert_eq!(figures(&root.join("run")).0, figures(&root.join("fresh")).0);
}

#[test]
fn one_folder_holds_one_run_of_one_plan() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    good(&run(&root, &format!("{AUDIT} --out run")));
    for (flag, field) in [
        ("--limit 1", "limit is 2 there and 1 here"),
        ("--seed 3", "criteria.seed is 0 there and 3 here"),
        ("--kv f32", "device.kv"),
        ("--retrain target", "retrain is not given there"),
        ("--no-divergence", "divergence is true there and false here"),
    ] {
        let line = format!(
            "{} {flag} --out run",
            AUDIT.replace("--limit 2", if flag.starts_with("--limit") { "" } else { "--limit 2" })
        );
        fails(&run(&root, &line), 3, &["run/plan.toml", field]);
    }
    // Somebody else's folder is left alone.
    family.write("mine/thesis.txt", "years");
    fails(&run(&root, &format!("{AUDIT} --out mine")), 3, &["mine", "thesis.txt"]);
    assert_eq!(std::fs::read_dir(root.join("mine")).unwrap().count(), 1);
    // An empty one is taken.
    std::fs::create_dir(root.join("empty")).unwrap();
    good(&run(&root, &format!("{AUDIT} --out empty")));
    fails(&run(&root, "audit --resume mine"), 3, &["mine/plan.toml", "missing"]);
    fails(&run(&root, "audit --resume nowhere"), 3, &["nowhere/plan.toml", "missing"]);
    for (line, part) in [
        ("audit --resume run --limit 3", "--limit"),
        ("audit --resume run --out other", "--out"),
        ("audit run/plan.toml --target target", "--target"),
        ("audit run/plan.toml --device cpu", "--device"),
        ("audit run/plan.toml --resume run", "--resume"),
        (&format!("{AUDIT} --out run --no-out"), "--no-out"),
    ] {
        let output = run(&root, line);
        assert_eq!(code(&output), Some(2), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
    }
}

#[test]
fn a_plan_with_a_mistake_is_refused_by_name() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    let good_plan = "target = \"target\"\nunlearned = [\"npo\"]\ndata = \"data\"\nprecision = [\"int8\"]\nlimit = 1\n\
                     survival = false\n[device]\ndevice = \"cpu\"\n[criteria]\nresamples = 100\n";
    family.write(
        "plans/plan.toml",
        good_plan.replace("= \"t", "= \"../t").replace("[\"n", "[\"../n").replace("= \"da", "= \"../da"),
    );
    good(&run(&root, "audit plans/plan.toml --no-out"));
    for (change, with, exit_code, parts) in [
        ("limit", "limmit", 3, &["bad.toml", "line 5", "limmit"][..]),
        ("limit = 1", "limit = -1", 3, &["line 5"]),
        ("resamples", "samples", 3, &["line 10", "samples"]),
        ("limit = 1", "limit = 0", 2, &["--limit"]),
        ("int8", "int9", 2, &["int9"]),
        ("data = \"data\"", "", 3, &["bad.toml", "data"]),
        ("unlearned = [\"npo\"]", "", 3, &["bad.toml", "unlearned"]),
        ("target = \"target\"", "target = \"\"", 2, &["--target"]),
        ("target = \"target\"", "demo = true", 3, &["bad.toml", "data"]),
        ("limit = 1", "limit = ", 3, &["bad.toml", "line 5"]),
    ] {
        family.write("bad.toml", good_plan.replacen(change, with, 1));
        fails(&run(&root, "audit bad.toml --no-out"), exit_code, parts);
    }
    fails(&run(&root, "audit none.toml"), 3, &["none.toml", "missing"]);
}

#[cfg(unix)]
#[test]
fn a_folder_is_locked_while_a_run_writes_to_it() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("run");
    let line = DEMO.replace("--limit 1", "--limit 12");
    let mut child = command(root.path(), &format!("{line} --out run"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_answers(&mut child, &folder, 20);
    fails(&run(root.path(), "audit --resume run"), 1, &["run", "another run is using this folder"]);
    // Ctrl-C: what there is stays, and it is said how to go on.
    let begun = Instant::now();
    interrupt(&child);
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("error: interrupted; `undertext audit --resume run` goes on from here"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let report: Value = serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["complete"], &report["stopped"]), (&json!(false), &json!("interrupted")));
    assert!(std::fs::read_to_string(folder.join("run.log")).unwrap().contains("error: interrupted"));
    assert!(stored(&folder) >= 20);
    // The lock of a process that was killed is no lock.
    let mut child = command(root.path(), "audit --resume run")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut child = command(root.path(), "audit --resume run")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let before = stored(&folder);
    wait_for_answers(&mut child, &folder, before + 1);
    // Twice stops at once.
    interrupt(&child);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

/// No file may grow beyond so many blocks of 512 bytes, as on a disk that is full.
#[cfg(unix)]
fn on_a_full_disk(folder: &Path, line: &str, blocks: u64) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec '{BINARY}' {line}");
    Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_full_disk_ends_the_run_and_costs_nothing_that_was_stored() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    let line = AUDIT.replace("--limit 2", "--limit 10");
    good(&run(&root, &format!("{line} --out whole")));
    let (want, _) = figures(&root.join("whole"));
    // The page does not fit, and nothing half is left in its place.
    let bytes = |name: &str| std::fs::metadata(root.join("whole").join(name)).unwrap().len();
    let between = u64::midpoint(bytes("report.json"), bytes("report.html")) / 512;
    fails(
        &on_a_full_disk(&root, &format!("{line} --out run"), between),
        1,
        &["cannot write run/report.html"],
    );
    let folder = root.join("run");
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.trim_end().ends_with("</html>"), "the page of the run's beginning, whole");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().ends_with(".tmp")), "{left:?}");
    good(&run(&root, "audit --resume run"));
    assert_eq!(figures(&folder).0, want);

    // The observations do not: those that do are kept.
    let size = |file: &Path| std::fs::metadata(file).unwrap().len();
    let files: Vec<_> = std::fs::read_dir(folder.join("observations")).unwrap().collect();
    let files: Vec<_> = files.into_iter().map(|entry| entry.unwrap().path()).collect();
    let half = files.iter().map(|file| size(file)).max().unwrap() / 2;
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    fails(
        &on_a_full_disk(&root, "audit --resume run", half / 512),
        1,
        &["cannot write run/observations/", ".jsonl"],
    );
    assert!(stored(&folder) > 0);
    let output = run(&root, "audit --resume run");
    good(&output);
    for part in ["the last line is not whole and is dropped", "answers are there already"] {
        assert!(stderr(&output).contains(part), "{part} in {}", stderr(&output));
    }
    assert_eq!(figures(&folder).0, want);
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_an_error_and_no_panic() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    // Not even root writes there.
    fails(
        &run(&root, &format!("{AUDIT} --out /proc/undertext/run")),
        1,
        &["cannot write", "/proc/undertext"],
    );
    for flag in ["--json", "--html"] {
        fails(&run(&root, &format!("{AUDIT} --no-out {flag}=/dev/full")), 1, &["cannot write", "/dev/full"]);
    }
    family.write("file", "");
    fails(&run(&root, &format!("{AUDIT} --out file")), 1, &["cannot write", "file"]);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&root, &format!("{AUDIT} --out run")).stdout(full()).output().unwrap();
    fails(&output, 1, &["cannot write stdout"]);
    // The run itself is done.
    assert!(figures(&root.join("run")).0.contains("\"complete\":true"));
    // Neither is a reader that goes away an error, nor a stderr that is full.
    let mut child =
        command(&root, "audit --resume run").stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_read_only_folder_is_an_error() {
    let family = Family::new(&["target", "npo"]);
    let root = family.path("");
    let folder: PathBuf = root.join("locked");
    std::fs::create_dir(&folder).unwrap();
    let mut permissions = std::fs::metadata(&folder).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&folder, permissions).unwrap();
    // Permissions bind neither root nor a folder on Windows: then the run is simply there.
    let binds = std::fs::write(folder.join("try"), "").is_err();
    let _ = std::fs::remove_file(folder.join("try"));
    let output = run(&root, &format!("{AUDIT} --out locked"));
    if binds {
        fails(&output, 1, &["cannot write", "locked"]);
    } else {
        println!("SKIPPED: permissions do not bind this user; /proc stands in for a read-only folder");
        good(&output);
    }
}
