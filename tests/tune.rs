//! Choosing between kernels: what is timed, what is remembered, what the record says.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use undertext::gpu::{Commands, DeviceChoice, Gpu, Source, Tuning};
use undertext::kernels::{Family, Finish, MatOperands, Matmul, Packer, Stored};
use undertext::quant::Scheme;

use crate::{adapters, family};

fn open(index: usize, tuning: Tuning, folder: &Path) -> Gpu {
    Gpu::open(&DeviceChoice::Index(index)).unwrap().with_tuning(tuning, Some(folder))
}

fn candidates(text: &'static str) -> Vec<(&'static str, Source)> {
    let source = |text| Source {
        name: String::new(),
        parts: vec![("a.wgsl", text)],
        consts: vec![],
        overrides: vec![],
        needs_subgroups: false,
    };
    vec![("safe", source("")), ("fast", source(text)), ("wrong", source(""))]
}

/// What is chosen for a class, and how many candidates were timed for it. The second is fastest, but for the
/// third, which cannot be used.
fn choose(gpu: &Gpu, class: &str, text: &'static str) -> (usize, usize) {
    let mut timed = 0;
    let seconds = &mut |index: usize| {
        timed += 1;
        Ok([Some(2.0), Some(1.0), None][index])
    };
    let index = gpu.choose(class, &candidates(text), seconds).unwrap();
    (index, timed)
}

fn the_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    file.clone()
}

#[test]
fn a_choice_is_timed_once_and_remembered() {
    if adapters::all().is_empty() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let open = |tuning| open(0, tuning, &folder.path().join("undertext"));

    let off = open(Tuning::Off);
    assert_eq!(choose(&off, "a", "1"), (0, 0));
    assert_eq!(off.chosen_kernels().into_iter().collect::<Vec<_>>(), [("a".to_owned(), "safe".to_owned())]);
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is written without tuning");

    let first = open(Tuning::Remembered);
    assert_eq!(choose(&first, "a", "1"), (1, 3));
    assert_eq!(choose(&first, "a", "1"), (1, 0), "in the same run");
    assert_eq!(choose(&first, "b", "1"), (1, 3), "another class");
    assert_eq!(first.chosen_kernels()["b"], "fast");

    let second = open(Tuning::Remembered);
    assert_eq!(choose(&second, "a", "1"), (1, 0), "in the next run");
    assert_eq!(choose(&second, "b", "2"), (1, 3), "its shader has changed");
    assert_eq!(choose(&open(Tuning::Afresh), "a", "1"), (1, 3), "asked to");
    assert_eq!(choose(&open(Tuning::Off), "a", "1"), (0, 0), "asked not to");
}

#[test]
fn a_run_goes_on_with_the_kernels_that_it_began_with() {
    if adapters::all().is_empty() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let kept = folder.path().join("kernels.json");
    let first = open(0, Tuning::Afresh, &folder.path().join("cache"));
    first.keep_choices(&kept);
    assert_eq!(choose(&first, "a", "1"), (1, 3));
    // What the user's file says by now does not matter, nor that all is to be timed again.
    let text = std::fs::read_to_string(&kept).unwrap();
    std::fs::write(&kept, text.replace("fast", "safe")).unwrap();
    for tuning in [Tuning::Remembered, Tuning::Afresh] {
        let next = open(0, tuning, &folder.path().join("cache"));
        next.keep_choices(&kept);
        assert_eq!(next.chosen_kernels()["a"], "safe", "listed, though not asked for in this session");
        assert_eq!(choose(&next, "a", "1"), (0, 0));
        assert_eq!(choose(&next, "b", "1").0, 1, "what was not chosen then");
    }
    assert!(std::fs::read_to_string(&kept).unwrap().contains("fast"), "what is new is kept too");
}

#[test]
fn a_broken_or_foreign_file_is_ignored_and_rewritten() {
    if adapters::all().is_empty() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let open = || open(0, Tuning::Remembered, folder.path());
    choose(&open(), "a", "1");
    let file = the_file(folder.path());
    let good = std::fs::read_to_string(&file).unwrap();
    let name = &adapters::all()[0].info().name;
    let foreign = good.replace(name.as_str(), "another device");
    let newer = good.replace("\"version\": 1", "\"version\": 2");
    let unknown = good.replace("\"fast\"", "\"gone\"");
    for broken in ["", "{", "[1]", &good[..good.len() / 2], &foreign, &newer, &unknown] {
        assert_ne!(broken, good);
        std::fs::write(&file, broken).unwrap();
        assert_eq!(choose(&open(), "a", "1"), (1, 3), "{broken}");
        assert_eq!(std::fs::read_to_string(the_file(folder.path())).unwrap(), good);
        assert_eq!(choose(&open(), "a", "1"), (1, 0));
    }
    // A folder that cannot be made: a file is in its place.
    let gpu = Gpu::open(&DeviceChoice::Index(0)).unwrap().with_tuning(Tuning::Remembered, Some(&file));
    assert_eq!(choose(&gpu, "a", "1"), (1, 3));
}

#[test]
fn the_tuned_family_is_listed_and_computes_what_the_safe_one_does() {
    let (n, k, t) = (96, 64, 9);
    let weights: Vec<f32> = (0..n * k).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let x: Vec<f32> = (0..t * k).map(|i| ((i * 53) % 97) as f32 / 48.0 - 1.0).collect();
    let scheme = Scheme::Int4 { group: 32 };
    for index in 0..adapters::all().len() {
        let folder = TempDir::new().unwrap();
        let gpu = &open(index, Tuning::Remembered, folder.path());
        let w = Stored { name: "w", dtype: Scheme::F32, bytes: bytemuck::cast_slice(&weights), n, k };
        let w = Packer::default().pack_one(gpu, scheme, w).unwrap();
        let x = gpu.upload("x", &x).unwrap();
        let y = gpu.alloc("y", (4 * t * n) as u64).unwrap();
        let product = |matmul: &Matmul| -> Vec<u32> {
            let mut commands = Commands::new();
            matmul.record(
                &mut commands,
                &w,
                MatOperands { x: &x, bias: None, y: &y, t, first_row: 0, n, stride: n, first_column: 0 },
            );
            commands.submit(gpu).unwrap();
            gpu.read(&y, t * n).unwrap()
        };
        let tuned = Matmul::tuned(gpu, &w, n, Finish::default()).unwrap();
        let safe = Matmul::new(gpu, Family::Register, scheme, Finish::default()).unwrap();
        assert!(product(&tuned) == product(&safe), "{}", adapters::name(gpu));

        let chosen: Vec<_> = gpu.chosen_kernels().into_iter().collect();
        let [(class, name)] = chosen.as_slice() else { panic!("{chosen:?}") };
        assert_eq!(class, "matmul/int4-g32 n=96 k=64");
        assert!(Family::ALL.iter().any(|family| family.name() == name && family.runs_on(gpu)), "{name}");
        let before = gpu.dispatches();
        Matmul::tuned(gpu, &w, n, Finish { bias: true, ..Finish::default() }).unwrap();
        assert_eq!(gpu.dispatches(), before, "{name}: with a bias it is the same choice");
    }
}

/// Where the cache folder lies is the environment's to say on Unix only.
#[cfg(unix)]
#[test]
fn the_record_lists_the_kernels_and_the_flags_are_obeyed() {
    if adapters::all().is_empty() {
        return;
    }
    let models = family::Family::new(&["target"]);
    let cache = TempDir::new().unwrap();
    let run = |flag: &[&str]| -> Value {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_undertext"));
        command.args([
            "generate",
            "target@int4-g32",
            "--prompt",
            "x",
            "--max-new-tokens",
            "2",
            "--device",
            "0",
        ]);
        command.args(flag).arg("--json").current_dir(models.path("")).env("XDG_CACHE_HOME", cache.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let kernels = |value: &Value| value["kernels"].as_object().unwrap().clone();

    let safe = run(&["--no-tune"]);
    let default = |class: &str| match class.split_once('/').map_or("", |(what, _)| what) {
        "matvec" => "workgroup",
        "norm" => "apart",
        _ => "register",
    };
    assert!(kernels(&safe).len() >= 3 && kernels(&safe).iter().all(|(class, name)| name == default(class)));
    assert!(kernels(&safe).keys().any(|class| class.starts_with("matmul/int4-g32 n=")));
    assert!(!cache.path().join("undertext").exists());

    // Where the device has a clock, the record says how long each kernel took.
    if adapters::all()[0].info().timestamps {
        let seconds = safe["gpu_seconds"].as_object().unwrap();
        let subgroups = adapters::all()[0].has_subgroups();
        let prefill = if subgroups { "attention_prefill_subgroup" } else { "attention_prefill" };
        let decode = if subgroups { "attention_decode_subgroup" } else { "attention_decode" };
        for kernel in ["pack_codes", "matmul", "matvec", prefill, decode, "fold"] {
            assert!(seconds[kernel].as_f64().is_some_and(|seconds| seconds > 0.0), "{kernel}: {seconds:?}");
        }
        let timed = safe["gpu_timed_dispatches"].as_u64().unwrap();
        assert!((1..=safe["counters"]["dispatches"].as_u64().unwrap()).contains(&timed), "{timed}");
    }

    let tuned = run(&[]);
    assert_eq!(tuned["token_ids"], safe["token_ids"]);
    assert!(kernels(&tuned).keys().eq(kernels(&safe).keys()));
    let file = the_file(&cache.path().join("undertext"));
    let remembered = run(&[]);
    assert_eq!(remembered["kernels"], tuned["kernels"]);
    let dispatches = |value: &Value| value["counters"]["dispatches"].as_u64().unwrap();
    assert_eq!(dispatches(&remembered), dispatches(&safe), "nothing is timed again");
    assert!(dispatches(&tuned) > dispatches(&safe));

    std::fs::write(&file, "{").unwrap();
    assert!(dispatches(&run(&["--retune"])) > dispatches(&safe));
    let rewritten: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(rewritten["version"], 1);
}
