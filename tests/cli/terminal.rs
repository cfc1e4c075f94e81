//! What stdout and stderr look like: colours, widths, JSON lines, `-v`, and `--json` of every command.

use std::collections::BTreeSet;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

use super::{AUDIT, failure, family, good, json_of, one_line, stderr, stdout, undertext};
use crate::family::Family;

const ESCAPE: char = '\u{1b}';

/// Variables that colours depend on.
const COLOURS: [&str; 5] = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM", "CI"];

/// Runs the program in pipes with these variables and none of the others that colours depend on.
fn with(family: &Family, line: &str, variables: &[(&str, &str)]) -> Output {
    let root = family.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    command.args(line.split_whitespace().map(|word| word.replace('$', root))).current_dir(root);
    for name in COLOURS {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn colours_are_off_in_a_pipe_unless_forced() {
    let family = Family::new(&["target", "npo"]);
    // A table and a sentence with a meaning on stdout; an error on stderr.
    for line in ["codes $/target $/npo --schemes int8 --device cpu", "codes $/target $/nothing --device cpu"]
    {
        let coloured = |variables: &[(&str, &str)]| {
            let output = with(&family, line, variables);
            (stdout(&output).to_owned() + stderr(&output)).contains(ESCAPE)
        };
        assert!(!coloured(&[]), "{line}");
        assert!(!coloured(&[("TERM", "xterm-256color")]), "{line}");
        assert!(coloured(&[("CLICOLOR_FORCE", "1")]), "{line}");
        assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), "{line}");
    }
    let error = with(&family, "codes $/target $/nothing --device cpu", &[("CLICOLOR_FORCE", "1")]);
    assert!(stderr(&error).starts_with("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m "), "{}", stderr(&error));
    // Colours add nothing but colours.
    let line = "codes $/target $/npo --schemes int8 --device cpu";
    let forced = with(&family, line, &[("CLICOLOR_FORCE", "1")]);
    let stripped = anstream::adapter::strip_str(stdout(&forced)).to_string();
    assert_eq!(stripped, good(&with(&family, line, &[])));
    // JSON has none, whatever is forced.
    let json = with(&family, &format!("{line} --json --log-format json -v"), &[("CLICOLOR_FORCE", "1")]);
    assert!(!stdout(&json).contains(ESCAPE) && !stderr(&json).contains(ESCAPE));
    json_of(&json);
}

#[test]
fn verdicts_have_the_colours_of_their_meaning() {
    let family = family();
    let line = format!("{AUDIT} --limit 2 --precision int8,int4-row --resamples 200 --no-survival --out run");
    let output = with(&family, &line, &[("CLICOLOR_FORCE", "1")]);
    let text = good(&output);
    let before = |word: &str| text.split(word).next().unwrap().rsplit(ESCAPE).next().unwrap().to_owned();
    // Too few examples for anything else. Yellow.
    assert!(text.contains("INCONCLUSIVE") && before("INCONCLUSIVE") == "[38;5;3m", "{text}");
    assert!(stderr(&output).contains("\u{1b}[36mnote:\u{1b}[0m writing to run"), "{}", stderr(&output));
    // What is kept is plain.
    let log = std::fs::read_to_string(family.path("run/run.log")).unwrap();
    assert!(log.contains("note: writing to run") && !log.contains(ESCAPE), "{log}");
    assert!(!std::fs::read_to_string(family.path("run/report.json")).unwrap().contains("\\u001b"));
}

/// stderr as JSON lines, each with what all have.
fn lines(output: &Output) -> Vec<Value> {
    let line = |line: &str| -> Value {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let time = value["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        let levels = ["error", "warn", "info", "debug", "trace"];
        assert!(levels.contains(&value["level"].as_str().unwrap()), "{value}");
        assert!(value["message"].is_string(), "{value}");
        value
    };
    stderr(output).lines().map(line).collect()
}

#[test]
fn json_lines_have_their_fields() {
    let family = family();
    let line = format!("{AUDIT} --limit 1 --precision int8 --resamples 100 --out run --log-format json -v");
    let output = undertext(&family, &line);
    assert!(good(&output).contains("KnowMem"));
    let all = lines(&output);
    let progress: Vec<_> =
        all.iter().filter(|line| line.get("total").is_some() && line["level"] == "info").collect();
    assert!(!progress.is_empty(), "{all:?}");
    for line in progress {
        assert_eq!(line["stage"], "done", "{line}");
        assert_eq!((&line["done"], &line["unit"]), (&line["total"], &"answers".into()), "{line}");
        assert!(line["total"].as_u64().unwrap() > 0 && line["seconds"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["tokens_per_second"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["eta_seconds"].is_number() && line["part"].as_str().unwrap().starts_with('['), "{line}");
    }
    assert!(all.iter().any(|line| line["level"] == "info" && line["message"] == "writing to run"), "{all:?}");
    let weights = family.path("npo/model.safetensors");
    let opened = all.iter().find(|line| {
        line["path"]
            .as_str()
            .is_some_and(|path| weights.ends_with(path) || weights == std::path::Path::new(path))
    });
    let bytes = std::fs::metadata(&weights).unwrap().len();
    assert_eq!(opened.unwrap_or_else(|| panic!("{all:?}"))["bytes"], bytes);
    for stage in ["scoring", "generating"] {
        let passes = all.iter().find(|line| line["stage"] == stage && line.get("passes").is_some());
        let passes = passes.unwrap_or_else(|| panic!("{stage}: {all:?}"));
        assert!(passes["tokens"].as_u64().unwrap() > 0 && passes["seconds"].is_number(), "{passes}");
    }
    // The run's log is for people.
    let log = std::fs::read_to_string(family.path("run/run.log")).unwrap();
    assert!(log.contains("note: writing to run") && !log.contains('{'), "{log}");

    // Failures too, those of usage included.
    for (line, code) in [("codes $/target $/nothing", 3), ("codes $/target", 2)] {
        let output = undertext(&family, &format!("{line} --log-format=json"));
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let [error] = &lines(&output)[..] else { panic!("{}", stderr(&output)) };
        assert_eq!((&error["level"], &error["exit_code"]), (&"error".into(), &code.into()), "{error}");
    }
}

#[test]
fn verbose_says_what_is_done() {
    let family = family();
    let line = format!("{AUDIT} --limit 1 --precision int8 --resamples 100 --no-out");
    let plain = undertext(&family, &line);
    assert!(!stderr(&plain).contains("debug: "), "{}", stderr(&plain));
    let output = undertext(&family, &format!("{line} -v"));
    assert_eq!(good(&output), good(&plain), "stdout is the same");
    let said = stderr(&output);
    for part in [
        "debug: device: CPU pass (cpu, cpu)",
        "debug: read ",
        "/npo/model.safetensors (",
        "debug: plan: ",
        "(target@fp16, target@int8, npo@fp16",
        "debug: scoring, 6 arms: ",
        "debug: generating, 6 arms: ",
        "tokens/s",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("trace: "), "{said}");
    let output = undertext(&family, &format!("-vv {line}"));
    assert!(stderr(&output).contains("trace: scoring pass 1: "), "{}", stderr(&output));
    failure(&family, &format!("{line} -v --quiet"), 2, &["--quiet"]);

    let Some(gpu) = crate::adapters::all().first() else { return };
    let index = gpu.info().index.unwrap();
    let generate =
        format!("generate $/target@int8 --prompt w1 --max-new-tokens 2 --device {index} --no-tune -v");
    let said = undertext(&family, &generate);
    assert!(stderr(&said).contains(&format!("debug: device: {} (", gpu.info().name)), "{}", stderr(&said));
    assert!(
        stderr(&said).contains("debug: kernel of ") && stderr(&said).contains(", the safe one"),
        "{}",
        stderr(&said)
    );
}

#[test]
fn quiet_json_lines_are_errors_alone() {
    let family = family();
    let output = undertext(&family, "-q --log-format json codes $/target $/npo --device cpu");
    assert!(good(&output).contains("survival") && stderr(&output).is_empty(), "{}", stderr(&output));
    let output = undertext(&family, "-q --log-format json codes $/target $/nothing --device cpu");
    assert_eq!(lines(&output).len(), 1);
}

/// Every command's line, in an order in which what one writes is there for those after it.
const COMMANDS: [&str; 17] = [
    "audit --target $/target --unlearned $/npo --data $/data --device cpu --limit 1 --resamples 100 --out run",
    "demo --device cpu --limit 1 --resamples 100",
    "generate $/target --prompt w1 --max-new-tokens 2 --device cpu",
    "codes $/target $/npo --device cpu",
    "compare $/target $/npo --data $/data --limit 1 --device cpu",
    "localize --target $/target --unlearned $/npo --data $/data --limit 1 --resamples 100 --by layer --device cpu",
    "quantize $/npo --scheme int8 --out quantized",
    "merge shard --out merged",
    "report run",
    "export run --format csv",
    "export run --format muse-csv --out muse.csv",
    "export run --format lm-eval",
    "export run --format open-unlearning",
    "completions bash",
    "man",
    "man --out pages",
    "devices",
];

#[test]
fn every_command_prints_one_json_value_if_asked() {
    let family = family();
    let help = undertext(&family, "--help");
    let listed = good(&help).split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let listed = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let listed: BTreeSet<_> = listed.map(|line| line.split_whitespace().next().unwrap()).collect();
    let tested = COMMANDS.iter().map(|line| line.split(' ').next().unwrap()).chain(["help"]);
    assert_eq!(listed, tested.collect(), "the list of this test is whole");
    // A shard has nothing to print: its figures come with the merge.
    good(&undertext(&family, &(COMMANDS[0].replace("--out run", "--out shard") + " --shard 1/1")));
    for line in COMMANDS {
        let value = json_of(&undertext(&family, &format!("{line} --json")));
        assert!(value.as_object().is_some_and(|value| !value.is_empty()), "{line}: {value}");
        assert!(!value.to_string().contains("NaN"), "{line}");
    }
    let value = json_of(&undertext(&family, "export run --format csv --json"));
    assert!(
        value["text"].as_str().unwrap().starts_with("unlearned")
            || value["text"].as_str().unwrap().contains(',')
    );
    let value = json_of(&undertext(&family, "report run --json"));
    assert_eq!((&value["record"], &value["html"]), (&"run/report.json".into(), &"run/report.html".into()));
}

/// `--json` takes its file behind an equals sign, so that what follows it is what it would be without it.
#[test]
fn json_takes_no_argument_of_others() {
    let family = Family::new(&["target", "npo"]);
    let value = json_of(&undertext(&family, "codes $/target --json $/npo --schemes int8 --device cpu"));
    assert!(value["plan"]["unlearned"].as_str().unwrap().ends_with("/npo"), "{value}");
    let output = undertext(&family, "codes $/target $/npo --schemes int8 --device cpu --json=a.json");
    assert!(good(&output).contains("survival"));
    let saved: Value = serde_json::from_slice(&std::fs::read(family.path("a.json")).unwrap()).unwrap();
    assert_eq!(saved["plan"], value["plan"]);
    // Who writes it as a word of its own is told.
    for line in ["codes $/target $/npo --json b.json", "demo --json b.json", "devices --json b.json"] {
        let output = undertext(&family, line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains("say --json=b.json"), "{line}: {}", stderr(&output));
    }
    one_line(&undertext(&family, "devices --device cpu --json=no/such/b.json"), 1, &["no/such/b.json"]);
}

#[cfg(unix)]
mod in_a_terminal {
    use std::fs::{File, OpenOptions};
    use std::io::Read;
    use std::process::{Command, Stdio};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};

    use super::{AUDIT, COLOURS, ESCAPE, family};
    use crate::family::Family;

    /// Which streams are the terminal.
    #[derive(Clone, Copy, PartialEq)]
    enum Streams {
        Both,
        Stdout,
        Stderr,
    }

    /// Runs the program in a terminal of `columns`: what the terminal gets, and what the other stream gets.
    fn run(
        family: &Family,
        line: &str,
        columns: u16,
        streams: Streams,
        variables: &[(&str, &str)],
    ) -> [String; 2] {
        let root = family.path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let end = |is_terminal: bool| {
            if is_terminal { Stdio::from(terminal.try_clone().unwrap()) } else { Stdio::piped() }
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
        command.args(line.split_whitespace().map(|word| word.replace('$', root))).current_dir(root);
        for name in COLOURS {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color").envs(variables.iter().copied());
        command.stdout(end(streams != Streams::Stderr)).stderr(end(streams != Streams::Stdout));
        let child = command.spawn().unwrap();
        drop((command, terminal));
        let reader = std::thread::spawn(move || {
            let (mut user, mut bytes, mut part) = (File::from(user), Vec::new(), [0; 4096]);
            // Once nobody has the terminal open any more, reading it fails.
            while let Ok(length @ 1..) = user.read(&mut part) {
                bytes.extend_from_slice(&part[..length]);
            }
            String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
        });
        let output = child.wait_with_output().unwrap();
        let other = [output.stdout, output.stderr].concat();
        [reader.join().unwrap(), String::from_utf8(other).unwrap()]
    }

    #[test]
    fn tables_fit_the_terminal() {
        let family = family();
        let audit = format!("{AUDIT} --limit 2 --precision int8,int4-g32 --resamples 200 --no-out");
        for line in
            [&*audit, "codes $/target $/npo --device cpu", "devices", "codes $/target $/target --device cpu"]
        {
            for columns in [60, 80, 120] {
                let [text, _] = run(&family, line, columns, Streams::Stdout, &[]);
                let plain = anstream::adapter::strip_str(&text).to_string();
                let widest = plain.lines().max_by_key(|line| line.chars().count()).unwrap();
                // A name that is a path is one word, however long.
                let fits = widest.chars().count() <= usize::from(columns) || widest.contains('/');
                assert!(fits, "{line} in {columns}: {widest}\n{plain}");
                // No interval is torn apart.
                assert!(!plain.lines().any(|line| line.trim_end().ends_with('±')), "{plain}");
            }
        }
    }

    #[test]
    fn streams_have_colours_of_their_own() {
        let family = Family::new(&["target", "npo"]);
        let codes = "codes $/target $/npo --schemes int8 --device cpu -v";
        let [text, log] = run(&family, codes, 100, Streams::Stdout, &[]);
        assert!(
            text.contains(ESCAPE) && !log.contains(ESCAPE) && log.contains("debug: device"),
            "{text}{log}"
        );
        let [log, text] = run(&family, codes, 100, Streams::Stderr, &[]);
        assert!(log.contains(ESCAPE) && !text.contains(ESCAPE) && text.contains("survival"), "{text}{log}");
        for variables in [("NO_COLOR", "1"), ("TERM", "dumb"), ("CLICOLOR", "0")] {
            let [text, _] = run(&family, &codes.replace(" -v", ""), 100, Streams::Stdout, &[variables]);
            assert!(!text.contains(ESCAPE) && text.contains("survival"), "{variables:?}: {text}");
        }
    }

    #[test]
    fn a_terminal_has_a_bar_and_lines_go_above_it() {
        let family = family();
        let audit = format!("{AUDIT} --limit 2 --precision int8 --resamples 200 --no-out -v");
        let [both, _] = run(&family, &audit, 100, Streams::Both, &[]);
        assert!(both.contains(" %  ") && both.contains("tokens/s"), "{both}");
        // What is drawn last in a line is what stays there: a line of the log, with no bar in it.
        let drawn = both.split('\n').filter(|line| line.contains("debug"));
        for line in drawn.map(|line| line.trim_end_matches('\r').rsplit('\r').next().unwrap()) {
            assert!(line.contains("debug") && !line.contains(['━', '─', '╸']), "{line:?}");
        }
        assert!(both.contains("[1-6/6] target fp16"), "{both}");
        // For machines there is none, and none that a dumb terminal could not show.
        let [json, _] = run(&family, &format!("{audit} --log-format json"), 100, Streams::Stderr, &[]);
        assert!(json.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{json}");
        let [dumb, _] = run(&family, &audit, 100, Streams::Stderr, &[("TERM", "dumb")]);
        assert!(!dumb.contains(ESCAPE) && !dumb.contains('\r') && dumb.contains("[1-6/6]"), "{dumb}");
    }
}
