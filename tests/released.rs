//! `undertext audit --released`: quantized files judged as what they claim to be.

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/models");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/data");

/// Runs the program in `folder`; `$` stands for the demo's models.
fn undertext(folder: &TempDir, line: &str) -> (i32, String, String) {
    let words = line.split_whitespace().map(|word| word.replace('$', MODELS));
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    let output = command.args(words).current_dir(folder.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json_of(folder: &TempDir, line: &str) -> Value {
    let (code, stdout, stderr) = undertext(folder, line);
    assert_eq!(code, 0, "{line}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn quantized(folder: &TempDir, flags: &str) {
    let (code, _, stderr) = undertext(folder, &format!("quantize {flags}"));
    assert_eq!(code, 0, "{flags}: {stderr}");
}

fn audit(flags: &str) -> String {
    format!("audit --target $/target --unlearned $/npo_gdr --data {DATA} --device cpu {flags}")
}

#[test]
fn a_released_file_gets_its_verdict() {
    let folder = TempDir::new().unwrap();
    let packed = "--format compressed-tensors --out";
    quantized(&folder, &format!("$/npo_gdr --scheme int4 --keep-from $/target {packed} kept"));
    quantized(&folder, &format!("$/npo_gdr --scheme int4-g32 {packed} nearest"));
    // Packed by somebody else: the scheme is read off the codes.
    std::fs::remove_file(folder.path().join("nearest/undertext.json")).unwrap();

    let line = audit("--precision int4,int4+keep=0.9,int4-g32 --released kept --released nearest");
    let report = json_of(&folder, &format!("{line} --out run --json"));
    let arm = |name: &str, precision: &str| {
        let mut arms = report["arms"].as_array().unwrap().iter();
        arms.find(|arm| arm["name"] == name && arm["precision"] == precision).cloned()
    };
    // No other model has such an arm, and it is the file's own weights that answer.
    assert!(arm("target", "int4-g128+released").is_none());
    for (released, same, path) in
        [("int4-g128+released", "int4-g128+keep=0.9", "kept"), ("int4-g32+released", "int4-g32", "nearest")]
    {
        let (own, same) = (arm("npo_gdr", released).unwrap(), arm("npo_gdr", same).unwrap());
        assert_eq!(own["metrics"], same["metrics"], "{released}");
        assert!(own["path"].as_str().unwrap().ends_with(path), "{own}");
        assert_eq!(own["scheme"], "f32");
    }
    let verdict = |precision: &str| {
        let mut verdicts = report["verdicts"].as_array().unwrap().iter();
        verdicts.find(|verdict| verdict["precision"] == precision).unwrap()["verdict"].clone()
    };
    assert_eq!(verdict("int4-g128"), "resurrected");
    assert_eq!(verdict("int4-g128+released"), "held");
    assert_eq!(verdict("int4-g32+released"), "resurrected");
    // Of the file's own weights, too: what the rounding that made it keeps.
    let survival = |precision: &str| {
        let mut rows = report["survival"].as_array().unwrap().iter();
        rows.find(|row| row["precision"] == precision).unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!(survival("int4-g128+released"), survival("int4-g128+keep=0.9"));
    // Within what the goal is met to over a whole model.
    assert!((survival("int4-g128+released") - 0.9).abs() < 0.01);
    // The same sums in blocks of another size: f64 roundings of 786432 terms.
    assert!((survival("int4-g32+released") - survival("int4-g32")).abs() < 786_432.0 * f64::EPSILON);
    // A file does not tell its codes, so neither moved nor absorbed ones are made up.
    let maps = report["survival"].as_array().unwrap();
    let row = |precision: &str| maps.iter().find(|row| row["precision"] == precision).unwrap();
    assert!(row("int4-g32")["map"]["total"]["absorbed"].is_number(), "{}", row("int4-g32"));
    assert!(row("int4-g32+released")["map"]["total"]["absorbed"].is_null());

    // The folder knows the files again, and notices when one is another.
    let plan = std::fs::read_to_string(folder.path().join("run/plan.toml")).unwrap();
    assert!(plan.contains("[[released]]") && plan.contains("scheme = \"int4-g32\""), "{plan}");
    let resumed = json_of(&folder, "audit --resume run --json");
    assert_eq!(resumed["verdicts"], report["verdicts"]);
    assert_eq!(resumed["counters"]["tokens_scored"], report["counters"]["tokens_scored"]);
    std::fs::remove_dir_all(folder.path().join("kept")).unwrap();
    quantized(&folder, &format!("$/npo_gdr --scheme int4 --stochastic 1 {packed} kept"));
    let (code, _, stderr) = undertext(&folder, "audit --resume run --json");
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("the weights of npo_gdr@int4-g128+released have changed"), "{stderr}");
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let folder = TempDir::new().unwrap();
    quantized(&folder, "$/npo_gdr --scheme int4 --format compressed-tensors --out packed");
    quantized(&folder, "$/npo_gdr --scheme int4 --out plain");
    std::fs::remove_file(folder.path().join("plain/undertext.json")).unwrap();
    // Half as many layers.
    quantized(&folder, "$/npo_gdr --scheme int4 --format compressed-tensors --out narrow");
    let config = folder.path().join("narrow/config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let layers = fields["num_hidden_layers"].as_u64().unwrap();
    fields["num_hidden_layers"] = json!(layers / 2);
    std::fs::write(&config, fields.to_string()).unwrap();

    // The same shapes, and another forward pass.
    quantized(&folder, "$/npo_gdr --scheme int4 --format compressed-tensors --out turned");
    let config = folder.path().join("turned/config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    fields["rope_theta"] = json!(123.0);
    fields.as_object_mut().unwrap().remove("rope_parameters");
    std::fs::write(&config, fields.to_string()).unwrap();

    for (flags, code, parts) in [
        ("--released nobody=packed", 2, &["--released", "nobody=", "packed", "npo_gdr"][..]),
        ("--released packed --unlearned $/ga_gdr", 2, &["--released", "one of npo_gdr, ga_gdr"]),
        (
            "--released packed --released npo_gdr=packed",
            2,
            &["--released", "packed", "each file of npo_gdr once"],
        ),
        ("--released plain", 2, &["--released", "plain", "DIR@SCHEME"]),
        ("--released packed@int9", 3, &["packed@int9"]),
        ("--released nothing", 3, &["nothing"]),
        ("--released narrow", 3, &["narrow", "num_hidden_layers in config.json is 2", "it is 4"]),
        ("--released turned", 3, &["turned", "rope_theta in config.json"]),
        ("--released =packed", 2, &["--released", "=packed"]),
    ] {
        let (found, stdout, stderr) = undertext(&folder, &audit(&format!("--no-out --limit 2 {flags}")));
        assert_eq!(found, code, "{flags}: {stderr}");
        assert!(stdout.is_empty() && parts.iter().all(|part| stderr.contains(part)), "{flags}: {stderr}");
    }
    // Said by the user, plain values are judged as well.
    let report = json_of(&folder, &audit("--no-out --limit 2 --released plain@int4 --json"));
    assert!(report["arms"].as_array().unwrap().iter().any(|arm| arm["precision"] == "int4-g128+released"));
}

/// Files of one model in one scheme are numbered in the order of the flags, and told apart by their paths.
#[test]
fn several_files_of_one_scheme_are_told_apart() {
    let folder = TempDir::new().unwrap();
    for share in ["0.5", "0.9"] {
        quantized(
            &folder,
            &format!("$/npo_gdr --scheme int4 --keep-from $/target --keep {share} --out {share}"),
        );
    }
    let flags = "--precision int4,int4+keep=0.5,int4+keep=0.9 --released 0.9 --released npo_gdr=0.5@int4";
    let report = json_of(&folder, &audit(&format!("{flags} --limit 6 --out run --json")));
    for (released, same, path, keep) in [
        ("int4-g128+released", "int4-g128+keep=0.9", "0.9", 0.9),
        ("int4-g128+released=2", "int4-g128+keep=0.5", "0.5", 0.5),
    ] {
        let of = |field: &str, precision: &str| {
            let name = if field == "arms" { "name" } else { "unlearned" };
            let mut rows = report[field].as_array().unwrap().iter();
            rows.find(|row| row[name] == "npo_gdr" && row["precision"] == precision).unwrap().clone()
        };
        let repair = of("repairs", released);
        assert_eq!((&repair["rounding"], &repair["keep"]), (&json!("released"), &json!(keep)));
        assert!(repair["path"].as_str().unwrap().ends_with(path), "{repair}");
        assert_eq!(of("arms", released)["metrics"], of("arms", same)["metrics"], "{released}");
        assert_eq!(of("survival", released)["value"], of("survival", same)["value"], "{released}");
        assert!(of("verdicts", released)["verdict"].is_string());
    }
    let resumed = json_of(&folder, "audit --resume run --json");
    assert_eq!(resumed["repairs"], report["repairs"]);
}

/// `--keep auto` makes a file for each of several shares, and names the smallest that is enough.
#[test]
fn the_share_of_calibrated_files_can_be_chosen() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("text.txt"), "Who wrote it? A painter from Numoth.").unwrap();
    let flags =
        "--precision int4 --repair --keep auto --calibrate text.txt --limit 6 --no-divergence --out run";
    let report = json_of(&folder, &audit(&format!("{flags} --json")));
    let repairs = report["repairs"].as_array().unwrap();
    let files: Vec<_> = repairs.iter().filter(|repair| repair["rounding"] == "released").collect();
    let keeps: Vec<_> = files.iter().filter_map(|file| file["keep"].as_f64()).collect();
    assert_eq!(keeps, [0.75, 0.8, 0.85, 0.9]);
    for (file, keep) in files.iter().zip(keeps) {
        let path = file["path"].as_str().unwrap();
        assert!(path.ends_with(&format!("run/repaired/npo_gdr-int4-g128-{keep}")), "{path}");
        assert!((file["survival"].as_f64().unwrap() - keep).abs() < keep / 64.0, "{file}");
    }
    // Of each kind of rounding the smallest share that is enough, by the report's own figures.
    let metrics = |precision: &Value| {
        let mut arms = report["arms"].as_array().unwrap().iter();
        arms.find(|arm| arm["name"] == "npo_gdr" && arm["precision"] == *precision).unwrap()["metrics"]
            .clone()
    };
    let full = metrics(&json!("fp16"));
    let enough = |repair: &&&Value| {
        let own = metrics(&repair["precision"]);
        ["verbmem_forget", "knowmem_forget"]
            .iter()
            .all(|name| own[name]["value"].as_f64().unwrap() <= full[name]["ci95"][1].as_f64().unwrap())
    };
    let chosen = report["chosen_doses"].as_array().unwrap();
    assert_eq!(chosen.len(), 2);
    for chosen in chosen {
        let rounding = if chosen["released"] == true { "released" } else { "kept" };
        let mut own: Vec<_> = repairs.iter().filter(|repair| repair["rounding"] == rounding).collect();
        own.sort_by(|a, b| a["keep"].as_f64().unwrap().total_cmp(&b["keep"].as_f64().unwrap()));
        let first = own.iter().find(enough).map_or(Value::Null, |repair| repair["precision"].clone());
        assert_eq!(chosen["precision"], first, "{rounding}");
    }
    // Text and page say it in one sentence each.
    let (_, text, _) = undertext(&folder, "audit --resume run");
    assert_eq!(
        text.matches("forget metrics are within the intervals of fp16").count()
            + text.matches("forgets as fp16 does").count(),
        2,
        "{text}"
    );
}

/// `audit --calibrate` makes the files that `undertext quantize --calibrate` makes, once, and judges them.
#[test]
fn calibrated_files_are_made_for_an_audit_and_used_again() {
    let folder = TempDir::new().unwrap();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/general.txt");
    let short: String = std::fs::read_to_string(text).unwrap().chars().take(4000).collect();
    std::fs::write(folder.path().join("text.txt"), short).unwrap();
    let line = audit(
        "--precision int8,int4 --repair --calibrate text.txt --limit 4 --out run --no-divergence --json",
    );
    let report = json_of(&folder, &line);
    let arms = report["arms"].as_array().unwrap();
    let arm = arms.iter().find(|arm| arm["precision"] == "int4-g128+released").unwrap();
    assert!(arm["path"].as_str().unwrap().ends_with("run/repaired/npo_gdr-int4-g128-0.85"), "{arm}");
    let repairs = report["repairs"].as_array().unwrap();
    let rows: Vec<_> = repairs.iter().map(|row| (&row["precision"], &row["rounding"])).collect();
    let (kept, released) = (json!("int4-g128+keep=0.9"), json!("int4-g128+released"));
    assert_eq!(rows, [(&kept, &json!("kept")), (&released, &json!("released"))]);
    let survival = repairs[1]["survival"].as_f64().unwrap();
    assert!((survival - 0.85).abs() < 0.02, "{survival}");
    assert!(repairs[1]["changes"][2]["from_nearest"]["value"].is_number(), "{}", repairs[1]);

    quantized(
        &folder,
        "$/npo_gdr --scheme int4 --keep-from $/target --calibrate text.txt --format compressed-tensors --out alone",
    );
    let weights = |of: &str| std::fs::read(folder.path().join(of).join("model.safetensors")).unwrap();
    assert!(weights("alone") == weights("run/repaired/npo_gdr-int4-g128-0.85"));

    // Again, the run goes on with the files that are there; with another share they are others.
    let made = |of: &str| std::fs::metadata(folder.path().join(of)).unwrap().modified().unwrap();
    let before = made("run/repaired/npo_gdr-int4-g128-0.85/model.safetensors");
    assert_eq!(json_of(&folder, &line)["counters"]["tokens_scored"], report["counters"]["tokens_scored"]);
    assert_eq!(made("run/repaired/npo_gdr-int4-g128-0.85/model.safetensors"), before);
    let (code, _, stderr) = undertext(&folder, &format!("{line} --keep auto"));
    assert!(code == 3 && stderr.contains("run/plan.toml") && stderr.contains("dose"), "{code}: {stderr}");
    assert_eq!(
        std::fs::read_dir(folder.path().join("run/repaired")).unwrap().count(),
        1,
        "none was made first"
    );
    // Made of another config or tokenizer, which the text was read with, or of another text.
    let path = folder.path().join("run/repaired/npo_gdr-int4-g128-0.85/undertext.json");
    let record = std::fs::read_to_string(&path).unwrap();
    for field in ["/inputs/model/config", "/inputs/tokenizer"] {
        let mut other: Value = serde_json::from_str(&record).unwrap();
        *other.pointer_mut(field).unwrap() = json!("another");
        std::fs::write(&path, other.to_string()).unwrap();
        let (code, _, stderr) = undertext(&folder, &line);
        assert_eq!(code, 3, "{field}: {stderr}");
        assert!(stderr.contains("npo_gdr was changed"), "{field}: {stderr}");
    }
    let mut other: Value = serde_json::from_str(&record).unwrap();
    other["keep"] = json!(0.5);
    std::fs::write(&path, other.to_string()).unwrap();
    let (code, _, stderr) = undertext(&folder, &line);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("keep = 0.85") && stderr.contains("keep = 0.5"), "{stderr}");
    let mut other: Value = serde_json::from_str(&record).unwrap();
    other["inputs"].as_object_mut().unwrap().remove("engine").unwrap();
    std::fs::write(&path, other.to_string()).unwrap();
    let (code, _, stderr) = undertext(&folder, &line);
    assert!(code == 3 && stderr.contains("another build of the program"), "{code}: {stderr}");
    std::fs::write(&path, record).unwrap();
    std::fs::write(folder.path().join("text.txt"), "w1 w2 w3").unwrap();
    let (code, _, stderr) = undertext(&folder, &line);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("made before") && stderr.contains("text.txt was changed"), "{stderr}");
}

#[test]
fn an_audit_that_cannot_calibrate_says_so_first() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("text.txt"), "w1 w2 w3").unwrap();
    std::fs::create_dir(folder.path().join("full")).unwrap();
    std::fs::write(folder.path().join("full/other.txt"), "").unwrap();
    for (flags, code, parts) in [
        ("--calibrate text.txt --out run", 2, &["--repair"][..]),
        ("--repair --calibrate text.txt", 2, &["--out"]),
        ("--repair --calibrate none.txt --out run", 3, &["none.txt"]),
        ("--repair --calibrate text.txt --out full", 3, &["full", "other.txt"]),
        ("--repair --calibrate text.txt --out run --precision int8", 2, &["--precision", "4-bit"]),
    ] {
        let (found, stdout, stderr) = undertext(&folder, &audit(&format!("--limit 2 {flags}")));
        assert_eq!(found, code, "{flags}: {stderr}");
        assert!(stdout.is_empty() && parts.iter().all(|part| stderr.contains(part)), "{flags}: {stderr}");
        assert!(!folder.path().join("run").exists(), "{flags}");
    }
}
