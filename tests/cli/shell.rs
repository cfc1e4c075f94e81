//! What every command has: help, usage errors, completions, manual, quiet.

use super::{AUDIT, family, good, one_line, stderr, stdout, undertext};
use crate::family::Family;

#[test]
fn help_has_examples_and_exit_codes() {
    let family = Family::new(&[]);
    for (line, part) in [
        ("--help", "Exit codes:"),
        ("audit --help", "undertext audit --target"),
        ("demo --help", "undertext demo --limit 4"),
        ("generate --help", "undertext generate models/target@int4-g128"),
        ("localize --help", "undertext localize --target models/target --unlearned models/npo"),
        ("compare --help", "undertext compare models/target models/target@int8"),
        ("codes --help", "undertext codes models/target models/npo --schemes int4,nf4-b64"),
        ("quantize --help", "undertext quantize models/npo --scheme int4 --keep-from models/target"),
        ("merge --help", "undertext merge shards/1 shards/2 shards/3 --out runs/npo"),
        ("devices --help", "undertext devices --json"),
        ("export --help", "undertext export report.json --format csv"),
        ("completions --help", "undertext completions bash"),
        ("man --help", "undertext man --out"),
    ] {
        let output = undertext(&family, line);
        assert!(good(&output).contains(part), "{line}: {}", stdout(&output));
        assert!(stderr(&output).is_empty(), "{line}");
    }
}

#[test]
fn wrong_usage_is_code_2_with_nothing_on_stdout() {
    let family = family();
    for (line, part) in [
        ("", "Usage"),
        ("audit --target $/target", "--unlearned"),
        ("generate --prompt x", "DIR"),
        ("generate --json --prompt x", "DIR"),
        ("generate $/target@int9 --prompt x --device cpu", "int9"),
        (&format!("{AUDIT} --precision fp17"), "fp17"),
        (&format!("{AUDIT} --limit 0"), "--limit"),
        (&format!("{AUDIT} --resamples 7"), "--resamples"),
        (&format!("{AUDIT} --held-below 0.5"), "--held-below"),
        (&format!("{AUDIT} --fail-on forgotten"), "forgotten"),
        (&format!("{AUDIT} --series size"), "--series"),
        (&format!("{AUDIT} --series size=$/npo@1"), "two steps"),
        (&format!("{AUDIT} --no-tune --retune"), "--retune"),
        (&format!("{AUDIT} --corpus poems"), "poems"),
        ("audit --target $/target --unlearned $/npo $/npo --data $/data", "--unlearned"),
        ("compare $/target --text $/a.txt", "DIR"),
        ("localize --target $/target --unlearned $/npo --data $/data --by head", "--by"),
        (
            "localize --target $/target --unlearned $/npo --data $/data --precision fp16 --device cpu",
            "--precision",
        ),
        (
            "localize --target $/target --unlearned $/npo --data $/data --held-below 2 --device cpu",
            "--held-below",
        ),
        ("compare $/target $/npo", "--text"),
        ("compare $/target $/npo --text a --data b", "--data"),
        ("compare $/target $/npo --data $/data --window 9", "--window"),
        ("compare $/target $/npo --data $/data --limit 0 --device cpu", "--limit"),
    ] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{line}");
    }
}

#[test]
fn near_misses_are_named() {
    let family = family();
    for (line, code, part) in [
        (&*format!("{AUDIT} --precision int4-128"), 2, "did you mean int4-g128?"),
        (&format!("{AUDIT} --fail-on resurected"), 2, "'resurrected'"),
        ("codes $/target $/npo --schemes nf4", 2, "did you mean nf4-b64?"),
        ("generate $/target@INT8 --prompt x --device cpu", 2, "did you mean int8?"),
        ("devices --device vulcan", 4, "did you mean vulkan?"),
        ("devcies", 2, "'devices'"),
        ("devices --mesure", 2, "'--measure'"),
    ] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
    }
    let output = undertext(&family, "devices --device no-such-device");
    assert!(!stderr(&output).contains("did you mean"), "{}", stderr(&output));
}

#[test]
fn versions_name_commit_and_wgpu() {
    let family = Family::new(&[]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(good(&undertext(&family, "-V")), format!("undertext {version}\n"));
    let output = undertext(&family, "--version");
    let long = good(&output);
    assert!(long.starts_with(&format!("undertext {version} (")) && long.lines().count() == 1, "{long}");
    let lock = include_str!("../../Cargo.lock").replace('\r', "");
    let mut packages = lock.split("[[package]]\n");
    let wgpu = packages.find_map(|package| package.strip_prefix("name = \"wgpu\"\nversion = \"")).unwrap();
    let wgpu = wgpu.split('"').next().unwrap();
    assert!(long.contains(&format!("wgpu {wgpu})")), "{long}");
    // The commit that records name.
    let program = serde_json::to_value(undertext::report::schema::Program::this()).unwrap();
    let commit =
        program["commit"].as_str().map_or("of no commit".to_owned(), |hash| format!("commit {hash}"));
    assert!(long.contains(&commit), "{commit} in {long}");
}

#[test]
fn completions_are_scripts() {
    let family = Family::new(&[]);
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef undertext"), ("fish", "complete -c undertext")]
    {
        let output = undertext(&family, &format!("completions {shell}"));
        let script = good(&output);
        assert!(script.contains(part) && script.contains("fail-on"), "{shell}");
        let there = || std::process::Command::new("bash").args(["-c", ":"]).status().is_ok();
        if shell == "bash" && there() {
            let path = family.path("completions.bash");
            std::fs::write(&path, script).unwrap();
            let checked = std::process::Command::new("bash").arg("-n").arg(&path).output().unwrap();
            assert!(checked.status.success(), "{}", stderr(&checked));
        }
    }
    assert_eq!(undertext(&family, "completions tcsh").status.code(), Some(2));
}

#[test]
fn manual_pages_are_roff() {
    let family = Family::new(&[]);
    let output = undertext(&family, "man");
    let page = good(&output);
    assert!(page.contains(".TH undertext 1") && page.contains("interrupted"), "{page}");
    assert_eq!(good(&undertext(&family, "man --out pages")), "pages\n");
    for name in ["undertext", "undertext-audit", "undertext-export", "undertext-devices"] {
        let page = std::fs::read_to_string(family.path("pages").join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1")), "{name}: {page}");
    }
    std::fs::write(family.path("file"), "").unwrap();
    one_line(&undertext(&family, "man --out file"), 1, &["cannot write", "file"]);
}

#[test]
fn quiet_is_quiet_but_for_errors() {
    let family = family();
    let line = format!("{AUDIT} --limit 1 --precision int8 --resamples 100 --no-survival --out run");
    let output = undertext(&family, &format!("{line} --quiet"));
    assert!(good(&output).contains("KnowMem") && stderr(&output).is_empty(), "{}", stderr(&output));
    // The run's log has it all the same.
    let log = std::fs::read_to_string(family.path("run/run.log")).unwrap();
    assert!(log.contains("note: fp16 is added") && log.contains("[1-6/6] target fp16"), "{log}");
    let output = undertext(&family, "-q generate $/nothing --prompt x --device cpu");
    one_line(&output, 3, &["nothing"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let family = Family::new(&[]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_undertext"));
    command.args(["devices", "--device", "cpu", "--json"]).current_dir(family.path(""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
