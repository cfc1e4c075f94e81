//! Shards of an audit: together they ask everything once, and their report is that of one run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::audit::{Audit, Plan, Portion, Request, Shard};
use undertext::quant::{Precision, Scheme};

use crate::family::Family;
use crate::run_folder::{code, command, fails, figures, good, run, stderr, stored, wait_for_answers};

const AUDIT: &str = "audit --target target --unlearned npo ga --retrain fresh --data data --device cpu --limit 4 \
                     --precision int8,int4-g32 --dose 0.9 --series size=npo@1,ga@2 --resamples 100";

const DEMO: &str = "demo --limit 1 --device cpu --resamples 100";

fn family() -> Family {
    Family::new(&["target", "npo", "ga", "fresh"])
}

fn audit(family: &Family) -> Audit {
    let request = Request {
        target: family.path("target"),
        unlearned: vec![family.path("npo"), family.path("ga")],
        retrain: Some(family.path("fresh")),
        data: family.path("data"),
        precisions: vec![Precision::Full, Precision::nearest(Scheme::Int4 { group: 32 })],
        ..Request::default()
    };
    Audit::open(Plan::new(request).unwrap()).unwrap()
}

fn shards(of: u32) -> Vec<Shard> {
    (1..=of).map(|number| format!("{number}/{of}").parse().unwrap()).collect()
}

/// Runs all shards of the audit of `line`, into folders of this name with a number.
fn run_shards(root: &Path, line: &str, name: &str, of: u32) -> String {
    let folders: Vec<_> = (1..=of).map(|number| format!("{name}{number}")).collect();
    for (number, folder) in (1..=of).zip(&folders) {
        good(&run(root, &format!("{line} --shard {number}/{of} --out {folder}")));
    }
    folders.join(" ")
}

/// Arm and task of every stored line, by kind of file; what is stored twice is counted.
fn lines(folder: &Path) -> BTreeMap<(String, String, String), usize> {
    let mut all = BTreeMap::new();
    for below in ["observations", "comparisons"] {
        for entry in std::fs::read_dir(folder.join(below)).unwrap() {
            for line in std::fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let field = |name: &str| line[name].as_str().unwrap().to_owned();
                let reference = line["apart"]["reference"].as_str().unwrap_or("none");
                *all.entry((field("arm"), field("task"), reference.to_owned())).or_default() += 1;
            }
        }
    }
    all
}

fn answers(parts: &[Portion]) -> usize {
    parts.iter().map(|part| part.arms.len() * part.tasks.len()).sum()
}

#[test]
fn every_arm_and_task_is_in_one_shard() {
    let family = family();
    let audit = audit(&family);
    let arms = audit.sources().len();
    let retrained = arms - 2;
    for compared in [false, true] {
        let whole = audit.share("1/1".parse().unwrap(), compared);
        let all = answers(&whole);
        let tasks = all / arms;
        for of in [1, 2, 3, 4, 5, 8, 13, 50, 1000] {
            let mut seen = vec![vec![0; tasks]; arms];
            for shard in shards(of) {
                let parts = audit.share(shard, compared);
                assert_eq!(parts, audit.share(shard, compared), "the same every time");
                for part in &parts {
                    assert!(!part.tasks.is_empty() && part.tasks.is_sorted(), "{part:?}");
                    // What is compared stands together: all arms that have something to be compared with.
                    assert_eq!(part.compared, part.arms == (0..retrained), "{part:?}");
                    for arm in part.arms.clone() {
                        part.tasks.iter().for_each(|&task| seen[arm][task] += 1);
                    }
                }
                // A checkpoint's arms are the least that is read; few shards read few of them.
                let apart = parts.iter().filter(|part| !part.compared).count();
                assert!(of != 8 || apart <= 2, "{parts:?}");
            }
            assert!(seen.iter().flatten().all(|&times| times == 1), "{of} shards: {seen:?}");
        }
        // What is compared is what one run compares.
        assert_eq!(whole.iter().any(|part| part.compared), compared);
    }
}

#[test]
fn every_shard_has_work_and_repeated_tasks_stay_together() {
    let family = family();
    // Three of the ten questions are one.
    let asked: Vec<_> =
        (0..10).map(|n| json!({"question": format!("w{}", n.max(2)), "answer": "w20"})).collect();
    family.write("data/knowmem/forget_qa.json", json!(asked).to_string());
    let audit = audit(&family);
    for of in [2, 3, 5] {
        let mut owners: BTreeMap<usize, u32> = BTreeMap::new();
        let mut shares = Vec::new();
        for shard in shards(of) {
            let parts = audit.share(shard, false);
            shares.push(answers(&parts));
            for part in parts.iter().filter(|part| part.arms.start == 0) {
                owners.extend(part.tasks.iter().map(|&task| (task, shard.number())));
            }
        }
        // VerbMem's ten come first.
        assert!(owners[&10] == owners[&11] && owners[&11] == owners[&12], "{owners:?}");
        assert!(shares.iter().all(|&share| share > 0), "{shares:?}");
    }
}

#[test]
fn shards_give_the_report_of_one_run() {
    let family = family();
    let root = family.path("");
    good(&run(&root, &format!("{AUDIT} --out whole --json=whole.json")));
    let want = figures(&root.join("whole")).0;
    for part in
        ["\"divergence\":[{", "\"survival\":[{", "\"repairs\":[{", "\"series\":[{", "\"complete\":true"]
    {
        assert!(want.contains(part), "{part}");
    }
    let want_lines = lines(&root.join("whole"));
    for of in [1, 2, 3, 7] {
        let name = format!("of{of}_");
        let folders = run_shards(&root, AUDIT, &name, of);
        let mut seen: BTreeMap<_, usize> = BTreeMap::new();
        for folder in folders.split(' ') {
            lines(&root.join(folder)).into_iter().for_each(|(line, n)| *seen.entry(line).or_default() += n);
        }
        assert_eq!(seen, want_lines, "every answer of the run is one shard's, of {of}");
        let merged = format!("merged{of}");
        // The order in which they are named does not matter.
        let reversed = folders.split(' ').rev().collect::<Vec<_>>().join(" ");
        let output =
            run(&root, &format!("merge {reversed} --out {merged} --json={merged}.json --html page.html"));
        good(&output);
        assert_eq!(figures(&root.join(&merged)), (want.clone(), u64::from(of) + 1), "{of} shards");
        assert_eq!(lines(&root.join(&merged)), want_lines);
        // What is printed and written by name is the same as well.
        assert!(output.stdout.len() > 1000);
        let written = std::fs::read(root.join(format!("{merged}.json"))).unwrap();
        assert_eq!(written, std::fs::read(root.join(&merged).join("report.json")).unwrap());
        assert!(std::fs::read_to_string(root.join("page.html")).unwrap().contains("<html"));
    }
    let printed = |line: &str| String::from_utf8(run(&root, line).stdout).unwrap();
    assert_eq!(
        printed("merge of3_1 of3_2 of3_3 --out again"),
        printed(&format!("{AUDIT} --out whole")),
        "the tables too"
    );
    // A merged folder is as any run's: nothing is left to ask, and it can be exported.
    let output = run(&root, "audit --resume merged3");
    good(&output);
    let all = stored(&root.join("whole"));
    assert!(
        stderr(&output).contains(&format!("{all} of {all} answers are there already")),
        "{}",
        stderr(&output)
    );
    assert_eq!(figures(&root.join("merged3")).0, want);
    good(&run(&root, "export merged3 --format open-unlearning"));
    // Merged once more into the same folder, nothing is counted twice.
    good(&run(&root, "merge of3_1 of3_2 of3_3 --out merged2"));
    assert_eq!(figures(&root.join("merged2")), (want.clone(), 4));
    assert_eq!(lines(&root.join("merged2")), want_lines);
}

#[test]
fn more_shards_than_work_and_no_comparisons() {
    let family = family();
    let root = family.path("");
    let line = AUDIT.replace("--limit 4", "--limit 1 --no-divergence --no-survival --no-samples");
    good(&run(&root, &format!("{line} --out whole")));
    let folders = run_shards(&root, &line, "s", 40);
    assert!(folders.split(' ').any(|folder| stored(&root.join(folder)) == 0), "some have nothing to do");
    good(&run(&root, &format!("merge {folders} --out merged")));
    assert_eq!(figures(&root.join("merged")).0, figures(&root.join("whole")).0);
}

/// Files of one model only, two of them in one scheme.
#[test]
fn shards_judge_released_files() {
    let family = family();
    let root = family.path("");
    for seed in [1, 2] {
        good(&run(&root, &format!("quantize npo --scheme int4-g32 --stochastic {seed} --out file{seed}")));
    }
    let line = AUDIT.replace("--limit 4", "--limit 1 --no-divergence")
        + " --released npo=file1 --released npo=file2";
    good(&run(&root, &format!("{line} --out whole")));
    let want = figures(&root.join("whole")).0;
    assert!(want.contains("int4-g32+released=2"), "{want}");
    let folders = run_shards(&root, &line, "s", 2);
    good(&run(&root, &format!("merge {folders} --out merged")));
    assert_eq!(figures(&root.join("merged")).0, want);
}

#[test]
fn a_demo_in_shards_is_the_demo() {
    let root = TempDir::new().unwrap();
    good(&run(root.path(), &format!("{DEMO} --out whole --fail-on held")));
    let line = format!("{DEMO} --fail-on inconclusive");
    let folders = run_shards(root.path(), &line, "s", 2);
    // What to fail on is a matter of the whole.
    let output = run(root.path(), &format!("merge {folders} --out merged"));
    fails(&output, 5, &["--fail-on", "is inconclusive"]);
    assert_eq!(figures(&root.path().join("merged")).0, figures(&root.path().join("whole")).0);
}

#[test]
fn a_killed_shard_goes_on_and_only_whole_ones_are_merged() {
    let root = TempDir::new().unwrap();
    let (root, line) = (root.path(), DEMO.replace("--limit 1", "--limit 4"));
    good(&run(root, &format!("{line} --shard 1/2 --out s1")));
    let mut child = command(root, &format!("{line} --shard 2/2 --out s2"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_answers(&mut child, &root.join("s2"), 5);
    fails(&run(root, "merge s1 s2 --out merged"), 1, &["s2", "another run is using this folder"]);
    child.kill().unwrap();
    child.wait().unwrap();
    fails(
        &run(root, "merge s1 s2 --out merged"),
        3,
        &["s2: answers: found ", "shard 2/2", "`undertext audit --resume s2`"],
    );
    assert!(!root.join("merged").exists(), "nothing is written");
    let output = run(root, "audit --resume s2");
    good(&output);
    assert!(stderr(&output).contains("answers are there already"), "{}", stderr(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Shard 2/2 is done") && said.contains("undertext merge"), "{said}");
    good(&run(root, "merge s1 s2 --out merged"));
    good(&run(root, &format!("{line} --out whole")));
    assert_eq!(figures(&root.join("merged")).0, figures(&root.join("whole")).0);
    // A shard's own record says what it is.
    let record: Value = serde_json::from_slice(&std::fs::read(root.join("s1/report.json")).unwrap()).unwrap();
    assert_eq!((&record["complete"], &record["arms"]), (&json!(false), &json!([])));
    assert!(record["stopped"].as_str().unwrap().contains("shard 1/2"), "{record}");
    // What survives of updates is part of a shard's work.
    std::fs::remove_file(root.join("s1/survival.json")).unwrap();
    fails(&run(root, "merge s1 s2 --out other"), 3, &["s1: survival of updates", "--resume s1"]);
    good(&run(root, "audit --resume s1"));
    good(&run(root, "merge s1 s2 --out other"));
}

#[test]
fn what_cannot_be_a_shard_is_refused() {
    let family = family();
    let root = family.path("");
    for bad in ["0/3", "4/3", "x/y", "3", "1/0", ""] {
        let mut command = command(&root, AUDIT);
        let output = command.args(["--out", "s", "--shard", bad]).output().unwrap();
        assert_eq!(code(&output), Some(2), "{bad}: {}", stderr(&output));
        assert!(stderr(&output).contains("--shard <K/N>"), "{bad}: {}", stderr(&output));
    }
    for (line, part) in [
        (format!("{AUDIT} --shard 1/2"), "--out"),
        (format!("{AUDIT} --shard 1/2 --no-out"), "--out"),
        (format!("{DEMO} --shard 1/2"), "--out"),
        ("audit --resume s --shard 1/2".to_owned(), "--shard"),
        ("merge".to_owned(), "<DIR>"),
        ("merge s".to_owned(), "--out"),
    ] {
        let output = run(&root, &line);
        assert_eq!(code(&output), Some(2), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{line}: {}", stderr(&output));
    }
    for (flags, parts) in [
        ("--json", &["--json: ", "shard 1/2", "undertext merge"][..]),
        ("--json=x.json", &["--json: ", "shard 1/2"]),
        ("--html x.html", &["--html: ", "shard 1/2", "undertext merge"]),
    ] {
        fails(&run(&root, &format!("{AUDIT} --shard 1/2 --out s {flags}")), 2, parts);
    }
    assert!(!root.join("s").exists());
    // One folder is one shard's, and a plan's shard is its own.
    good(&run(&root, &format!("{AUDIT} --shard 1/2 --out s")));
    fails(
        &run(&root, &format!("{AUDIT} --shard 2/2 --out s")),
        3,
        &["s/plan.toml", "shard is \"1/2\" there and \"2/2\" here"],
    );
    fails(&run(&root, &format!("{AUDIT} --out s")), 3, &["shard is \"1/2\" there and not given here"]);
    fails(&run(&root, "audit --resume s --json"), 2, &["--json: ", "shard 1/2"]);
    // Another shard of the same plan, by its file; what kernels it computes with may lie in its folder already.
    family.write("t/kernels.json", "{}");
    good(&run(&root, "audit s/plan.toml --shard 2/2 --out t"));
    good(&run(&root, "merge t s --out merged"));
    let plan = std::fs::read_to_string(root.join("s/plan.toml")).unwrap();
    family.write("bad.toml", plan.replace("1/2", "3/2"));
    fails(&run(&root, "audit bad.toml --out u"), 3, &["bad.toml", "line", "K/N"]);
}

/// What was localized belongs to a whole run, and to the weights that it was localized in.
#[test]
fn merged_runs_keep_what_was_localized_in_their_weights() {
    let family = family();
    let root = family.path("");
    good(&run(
        &root,
        "audit --target target --unlearned npo --data data --device cpu --limit 1 --resamples 100 --shard 1/1 --out s",
    ));
    let localize = "localize --unlearned npo --by layer --resamples 100 --device cpu";
    fails(&run(&root, &format!("{localize} --into s")), 2, &["--into: s", "shard 1/1"]);
    let localized = || {
        let output = run(&root, "merge s --out m --json");
        good(&output);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = report["localizations"].as_array().map_or(0, Vec::len);
        (found, stderr(&output).contains("the weights of npo have changed"))
    };
    assert_eq!(localized(), (0, false));
    good(&run(&root, &format!("{localize} --into m")));
    assert_eq!(localized(), (1, false));
    std::fs::copy(root.join("ga/model.safetensors"), root.join("npo/model.safetensors")).unwrap();
    good(&run(&root, "audit --resume s"));
    assert_eq!(localized(), (0, true));
}

#[test]
fn folders_that_do_not_belong_together_are_refused() {
    let family = family();
    let root = family.path("");
    let line = AUDIT.replace("--limit 4", "--limit 1");
    run_shards(&root, &line, "s", 2);
    good(&run(&root, &format!("{line} --out whole")));
    family.write("mine/thesis.txt", "years");
    let refused = |line: &str, exit_code: i32, parts: &[&str]| {
        fails(&run(&root, line), exit_code, parts);
        assert!(!root.join("m").exists(), "{line}: nothing is written");
    };
    refused("merge s1 mine --out m", 3, &["mine/plan.toml", "missing", "--shard"]);
    refused("merge s1 nowhere --out m", 3, &["nowhere/plan.toml", "missing"]);
    refused("merge s1 whole --out m", 3, &["whole/plan.toml: shard: found none"]);
    refused("merge s1 --out m", 2, &["1 of 2 shards", "without 2/2"]);
    refused("merge s1 s1 --out m", 2, &["s1 and s1", "shard 1/2", "once"]);
    good(&run(&root, &format!("{line} --shard 1/2 --out twin")));
    refused("merge s1 twin s2 --out m", 2, &["s1 and twin", "shard 1/2"]);
    good(&run(&root, &format!("{line} --shard 2/3 --out third")));
    refused(
        "merge s1 third --out m",
        3,
        &["third/plan.toml: shard: found 2/3, expected one of 2 as in s1/plan.toml"],
    );
    good(&run(&root, &format!("{line} --seed 5 --shard 2/2 --out seed")));
    refused(
        "merge s1 seed --out m",
        3,
        &["seed/plan.toml: criteria.seed: found 5, expected 0 as in s1/plan.toml"],
    );
    refused("merge seed s1 --out m", 3, &["s1/plan.toml: criteria.seed: found 0, expected 5"]);
    fails(&run(&root, "merge s1 s2 --out s1"), 2, &["--out: s1", "another folder"]);
    fails(&run(&root, "merge s1 s2 --out mine"), 3, &["mine", "thesis.txt"]);

    // What the answers depend on, and what computed them.
    let edited = |file: &str, change: &dyn Fn(&mut Value), parts: &[&str]| {
        let before = std::fs::read(root.join(file)).unwrap();
        let mut value: Value = serde_json::from_slice(&before).unwrap();
        change(&mut value);
        family.write(file, value.to_string());
        refused("merge s1 s2 --out m", 3, parts);
        family.write(file, before);
    };
    edited(
        "s2/inputs.json",
        &|v| v["device"] = json!("GPU X"),
        &["s2/inputs.json: device: found GPU X, expected CPU pass"],
    );
    edited(
        "s2/inputs.json",
        &|v| v["engine"] = json!("e"),
        &["s2/inputs.json: engine", "found e", "s1/inputs.json"],
    );
    edited(
        "s2/inputs.json",
        &|v| v["models"][1]["weights"] = json!("w"),
        &["s2/inputs.json: weights of npo: found w"],
    );
    family.change("s1/report.json", &json!({"kernels": {"matvec/int4": "rows"}}));
    edited(
        "s2/report.json",
        &|v| v["kernels"] = json!({"matvec/int4": "tree"}),
        &["s2/report.json: kernels: matvec/int4: found tree, expected rows as in s1"],
    );
    // A torn line is one answer less.
    let file = std::fs::read_dir(root.join("s2/observations")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 9]).unwrap();
    refused("merge s1 s2 --out m", 3, &["s2: answers: found "]);
    std::fs::write(&file, text).unwrap();
    good(&run(&root, "merge s1 s2 --out m"));
}
