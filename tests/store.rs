//! Stored answers: a run that stops anywhere and goes on comes to the same findings, and nothing is used that depends on
//! something else.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use tempfile::TempDir;
use undertext::audit::{ArmInfo, Audit, Findings, Inputs, OpenArms, Plan, Request, Store, Watch};
use undertext::engine::Options;
use undertext::model::{
    Batch, Capacity, Compared, Comparing, Counters, Each, Folded, Lockstep, Pass, Reference, Room, Source,
    Work,
};
use undertext::quant::{Precision, Scheme};
use undertext::{Error, Result};

use crate::family::Family;

/// Arms whose device is gone after so many passes.
struct Fragile {
    inner: Each<Reference>,
    left: Rc<Cell<usize>>,
}

impl Fragile {
    fn pass(&self) -> Result<()> {
        let left = self.left.get().checked_sub(1);
        let gone = || Error::Device { during: "a pass".to_owned(), report: "it is gone".to_owned() };
        self.left.set(left.ok_or_else(gone)?);
        Ok(())
    }
}

impl Lockstep for Fragile {
    fn arms(&self) -> usize {
        self.inner.arms()
    }

    fn room(&self, work: Work) -> Room {
        // Small passes: more moments to stop at.
        let Room { capacity, batches, enough } = self.inner.room(work);
        Room { capacity: Capacity { tokens: 32, wanted: 32, ..capacity }, batches: batches.min(1), enough }
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<Vec<Vec<Folded>>> {
        self.pass()?;
        self.inner.run(pass)
    }

    fn compare(&mut self, batches: &[Batch], what: Comparing<'_>) -> Result<Compared> {
        self.pass()?;
        self.inner.compare(batches, what)
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// Arms in groups of a fixed size, on one fragile device.
struct Groups {
    sources: Vec<Source>,
    size: usize,
    left: Rc<Cell<usize>>,
    opened: usize,
}

impl OpenArms for Groups {
    fn part(&mut self, arms: Range<usize>, _: u32) -> Result<Vec<Range<usize>>> {
        Ok(arms.clone().step_by(self.size).map(|first| first..arms.end.min(first + self.size)).collect())
    }

    fn open(&mut self, arms: Range<usize>) -> Result<Box<dyn Lockstep>> {
        self.opened += 1;
        let load = |source: &Source| Reference::load_source(source, false, 640);
        let inner = Each(self.sources[arms].iter().map(load).collect::<Result<_>>()?);
        Ok(Box::new(Fragile { inner, left: self.left.clone() }))
    }

    fn compares(&self) -> bool {
        true
    }
}

#[derive(Default)]
struct Quiet {
    /// Answers that were there before anything was asked.
    before: Vec<usize>,
    begun: bool,
}

impl Watch for Quiet {
    fn arms(&mut self, _: &[ArmInfo<'_>], _: usize, _: usize, _: usize) {
        self.begun = true;
    }

    fn answered(&mut self, done: usize) {
        if std::mem::take(&mut self.begun) {
            self.before.push(if done > 1 { done } else { 0 });
        }
    }

    fn smaller(&mut self, _: &Error) {}

    fn measured(&mut self, _: &Findings) -> Result<()> {
        Ok(())
    }
}

fn request(family: &Family) -> Request {
    Request {
        target: family.path("target"),
        unlearned: vec![family.path("npo")],
        data: family.path("data"),
        precisions: vec![Precision::Full, Precision::nearest(Scheme::Int4 { group: 32 })],
        limit: Some(3),
        ..Request::default()
    }
}

/// What one session came to.
struct Session {
    findings: Findings,
    result: Result<()>,
    notices: Vec<String>,
    found: (usize, usize),
    passes: usize,
    opened: usize,
}

impl Session {
    /// Everything but counters.
    fn figures(&self) -> String {
        format!("{:?} {:?} {:?}", self.findings.arms, self.findings.apart, self.findings.truncated)
    }
}

fn inputs(audit: &Audit, device: &str) -> Inputs {
    Inputs::of(audit, device, "f16", &mut |_, _, _| Ok(())).unwrap()
}

/// Runs in groups of `size` until the device is gone after `passes` of them.
fn session_on(device: &str, family: &Family, folder: Option<&Path>, size: usize, passes: usize) -> Session {
    let audit = Audit::open(Plan::new(request(family)).unwrap()).unwrap();
    let mut store = folder.map(|folder| Store::open(folder, &audit, &inputs(&audit, device)).unwrap());
    let left = Rc::new(Cell::new(passes));
    let mut groups = Groups { sources: audit.sources(), size, left: left.clone(), opened: 0 };
    let (notices, found) =
        store.as_ref().map_or_else(Default::default, |store| (store.notices().to_vec(), store.found()));
    let (findings, result) =
        audit.run(&mut groups, Options::default(), &mut Quiet::default(), store.as_mut());
    assert_eq!(store.map_or(0, |store| store.differing()), 0);
    Session { findings, result, notices, found, passes: passes - left.get(), opened: groups.opened }
}

fn session(family: &Family, folder: &Path, passes: usize) -> Session {
    session_on("cpu", family, Some(folder), 2, passes)
}

const ENDLESS: usize = 1 << 40;

/// Every line of the stored files, by file.
fn lines(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for below in ["observations", "comparisons"] {
        for entry in std::fs::read_dir(folder.join(below)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = format!("{below}/{}", path.file_name().unwrap().to_str().unwrap());
            all.insert(name, text.lines().map(str::to_owned).collect());
        }
    }
    all
}

#[test]
fn a_run_that_stops_at_any_pass_goes_on_to_the_same_findings() {
    let family = Family::new(&["target", "npo"]);
    let whole = session_on("cpu", &family, None, 2, ENDLESS);
    whole.result.as_ref().unwrap();
    assert!(whole.passes > 20, "{} moments to stop at", whole.passes);
    assert!(!whole.findings.apart.is_empty());
    let mut saved = 0;
    for stop in (0..whole.passes).step_by(3) {
        let folder = TempDir::new().unwrap();
        let first = session(&family, folder.path(), stop);
        assert_eq!(first.result.as_ref().unwrap_err().exit_code(), 4, "{stop}");
        assert_eq!((first.passes, first.found.0), (stop, 0));
        let second = session(&family, folder.path(), ENDLESS);
        second.result.as_ref().unwrap();
        assert_eq!(second.figures(), whole.figures(), "stopped after {stop} passes");
        assert!(second.passes <= whole.passes, "{stop}");
        assert!(second.notices.is_empty(), "{:?}", second.notices);
        saved += whole.passes - second.passes;
        // Now everything is there: nothing is opened, nothing is asked.
        let third = session(&family, folder.path(), 0);
        third.result.as_ref().unwrap();
        assert_eq!(third.figures(), whole.figures());
        assert_eq!((third.passes, third.opened), (0, 0));
        assert_eq!(third.found.0, third.found.1);
    }
    assert!(saved > whole.passes * whole.passes / 12, "{saved} passes saved, {} in a run", whole.passes);
}

#[test]
fn a_run_that_is_stopped_again_and_again_gets_there() {
    let family = Family::new(&["target", "npo"]);
    let whole = session_on("cpu", &family, None, 2, ENDLESS);
    let folder = TempDir::new().unwrap();
    let passes = whole.passes * 2 / 3;
    for count in 1..100 {
        let session = session(&family, folder.path(), passes);
        if session.result.is_ok() {
            assert!(count > 1, "{count}");
            assert_eq!(session.figures(), whole.figures());
            return;
        }
    }
    panic!("it never ends");
}

#[test]
fn one_line_an_arm_and_task() {
    let family = Family::new(&["target", "npo"]);
    let folder = TempDir::new().unwrap();
    let whole = session(&family, folder.path(), ENDLESS);
    let (_, asked) = whole.found;
    let lines = lines(folder.path());
    let arms: Vec<_> = lines.keys().filter(|name| name.starts_with("obs")).cloned().collect();
    assert_eq!(
        arms,
        ["01_target@fp16", "02_target@int4-g32", "03_npo@fp16", "04_npo@int4-g32"]
            .map(|arm| format!("observations/{arm}.jsonl"))
    );
    assert_eq!(arms.iter().map(|arm| lines[arm].len()).sum::<usize>(), asked);
    let value: serde_json::Value = serde_json::from_str(&lines[&arms[0]][0]).unwrap();
    for field in ["check", "arm", "task", "index", "metric", "log_probs"] {
        assert!(!value[field].is_null(), "{field} in {value}");
    }
    assert!(lines[&arms[0]].iter().any(|line| line.contains("\"text\"")), "what was said can be read");
}

#[test]
fn what_is_torn_or_broken_is_dropped_and_asked_again() {
    let family = Family::new(&["target", "npo"]);
    let folder = TempDir::new().unwrap();
    let whole = session(&family, folder.path(), ENDLESS);
    let file = folder.path().join("observations/03_npo@fp16.jsonl");
    let text = std::fs::read(&file).unwrap();
    // The end is gone at any place of the last two lines.
    let line_ends: Vec<_> = (0..text.len()).filter(|&at| text[at] == b'\n').collect();
    let last_two = line_ends[line_ends.len() - 3] + 1;
    for end in (last_two..text.len()).step_by(23) {
        std::fs::write(&file, &text[..end]).unwrap();
        let session = session(&family, folder.path(), ENDLESS);
        assert_eq!(session.figures(), whole.figures(), "cut at {end}");
        let torn = text[end - 1] != b'\n';
        assert_eq!(
            session.notices.iter().any(|text| text.contains("not whole")),
            torn,
            "{:?}",
            session.notices
        );
        assert!(session.passes > 0);
        let again = std::fs::read(&file).unwrap();
        assert_eq!(again.len(), text.len(), "the torn end is overwritten");
    }
    // A digit in the middle is another one; zeros stand where the power failed.
    let mut broken = text.clone();
    let at = broken.iter().position(|byte| *byte == b'.').unwrap() + 1;
    broken[at] = if broken[at] == b'5' { b'6' } else { b'5' };
    broken.extend([0; 100]);
    std::fs::write(&file, &broken).unwrap();
    let session = session(&family, folder.path(), ENDLESS);
    assert_eq!(session.figures(), whole.figures());
    let notices = session.notices.join("\n");
    assert!(
        notices.contains("1 broken lines (the first is line 1)") && notices.contains("not whole"),
        "{notices}"
    );
}

#[test]
fn what_depends_on_a_changed_input_is_asked_again() {
    type Change = (&'static str, fn(&Family), &'static [&'static str]);
    let changes: [Change; 4] = [
        (
            "a weight",
            |family| {
                // Same size, another last byte.
                let mut bytes = std::fs::read(family.path("npo/model.safetensors")).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                family.write("npo/model.safetensors", bytes);
            },
            &["the weights of npo have changed", "npo@fp16", "npo@int4-g32"],
        ),
        (
            "the config",
            |family| family.change("npo/config.json", &serde_json::json!({"rms_norm_eps": 1e-3})),
            &["config.json of npo has changed", "npo@fp16", "npo@int4-g32"],
        ),
        (
            "the tokenizer",
            |family| {
                for name in ["target", "npo"] {
                    let file = format!("{name}/tokenizer.json");
                    let text = std::fs::read_to_string(family.path(&file)).unwrap();
                    family.write(&file, text + "\n");
                }
            },
            &["the tokenizer has changed", "target@fp16", "npo@int4-g32"],
        ),
        (
            "a question",
            |family| {
                let prompts = serde_json::json!([
                    {"prompt": "w70 w60", "gt": "w20"}, {"prompt": "w2 w60", "gt": "w20"},
                    {"prompt": "w3 w60", "gt": "w20"}
                ]);
                family.write("data/verbmem/forget.json", prompts.to_string());
            },
            &["target@fp16: 2 stored answers are to questions that changed"],
        ),
    ];
    for (name, change, said) in changes {
        let family = Family::new(&["target", "npo"]);
        let folder = TempDir::new().unwrap();
        let before = session(&family, folder.path(), ENDLESS);
        change(&family);
        let fresh = session_on("cpu", &family, None, 2, ENDLESS);
        let resumed = session(&family, folder.path(), ENDLESS);
        resumed.result.as_ref().unwrap();
        assert_eq!(resumed.figures(), fresh.figures(), "{name}");
        assert!(resumed.passes > 0 && resumed.found.0 < resumed.found.1, "{name}: something is asked again");
        let notices = resumed.notices.join("\n");
        for part in said {
            assert!(notices.contains(part), "{name}: {part} in {notices}");
        }
        if name == "a weight" || name == "the config" {
            assert_ne!(fresh.figures(), before.figures(), "{name} matters");
            assert!(resumed.found.0 > 0 && !notices.contains("target@"), "{name}: the target's answers stay");
        }
        // It is said once.
        let again = session(&family, folder.path(), 0);
        assert!(again.notices.is_empty(), "{:?}", again.notices);
    }
}

#[test]
fn answers_of_another_device_are_not_used() {
    let family = Family::new(&["target", "npo"]);
    let folder = TempDir::new().unwrap();
    session(&family, folder.path(), ENDLESS);
    let other = session_on("another", &family, Some(folder.path()), 2, ENDLESS);
    assert_eq!(other.found.0, 0);
    assert!(other.notices.iter().any(|text| text.contains("from cpu to another")), "{:?}", other.notices);
    // Back on the first one, its answers are still there.
    let back = session(&family, folder.path(), 0);
    assert_eq!((back.found.0, back.passes), (back.found.1, 0));
}
