//! The page: everything of the record is on it, hostile text stays text, nothing is fetched, browsers show it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::{Value, json};
use undertext::gpu::DeviceInfo;
use undertext::report::{Report, report_html};

use crate::report::findings;
use crate::report_maps::localization;

pub(crate) fn record() -> Value {
    serde_json::to_value(Report::new(&findings(), &DeviceInfo::cpu())).unwrap()
}

pub(crate) fn page(record: Value) -> String {
    report_html(&serde_json::from_value(record).unwrap())
}

/// What lies between each `before` and the next `after`.
pub(crate) fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0)).collect()
}

/// What every page must be.
pub(crate) fn check(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"), "{page}");
    for forbidden in ["http://", "https://", "<script", "@import", "url(", "NaN", "javascript:"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(!page.contains("inf\"") && !page.contains("inf "), "an infinite coordinate");
    let ids: Vec<_> = between(page, " id=\"", "\"");
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len(), "an id twice: {ids:?}");
    // Whatever a page points to is on it.
    for target in between(page, " href=\"", "\"").iter().chain(&between(page, " src=\"", "\"")) {
        let local = target.strip_prefix('#').is_some_and(|id| ids.contains(&id));
        assert!(local || *target == "data:,", "{target}");
    }
    for labelled in between(page, " aria-labelledby=\"", "\"") {
        assert!(labelled.split(' ').all(|id| ids.contains(&id)), "{labelled}");
    }
    // Headings go down one level at a time.
    let levels: Vec<_> =
        page.match_indices("<h").filter_map(|(at, _)| page[at + 2..].chars().next()?.to_digit(10)).collect();
    assert_eq!(levels[0], 1);
    assert!(levels.windows(2).all(|pair| pair[1] > 1 && pair[1] <= pair[0] + 1), "{levels:?}");
    let count = |what: &str| page.matches(what).count();
    assert_eq!(count("<table>"), count("<caption>"));
    assert_eq!(count("<th "), count("scope=\"col\"") + count("scope=\"row\""));
    assert_eq!((count("<svg "), count("<svg ")), (count("<title id="), count("<desc id=")));
    for (open, close) in
        [("<svg", "</svg>"), ("<table", "</table>"), ("<details", "</details>"), ("<section", "</section>")]
    {
        assert_eq!(count(open), count(close), "{open}");
    }
    // No section, figure or table body is empty.
    for section in between(page, "<section ", "</section>") {
        assert!(section.contains("<p") || section.contains("<table"), "{section}");
    }
    for body in between(page, "<tbody>", "</tbody>") {
        assert!(body.contains("<tr>"), "an empty table in {page}");
    }
}

#[test]
fn everything_of_the_record_is_on_the_page() {
    let page = page(record());
    check(&page);
    let squeezed = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "<h1>More examples are needed to decide on npo (int8 and int4-g128)",
        "int4-g128 <b>inconclusive</b>",
        "<td class=\"text inconclusive\">inconclusive</td>",
        // The picture says its numbers.
        "unlearned: fp16 20.0 (95 % interval 20.0 to 20.0), int8 20.0 (95 % interval 20.0 to 20.0), int4-g128 84.0",
        "target: fp16 100.0, int8 98.0, int4-g128 90.0.",
        // The three denominators.
        "80 [80, 80]</td>",
        "91 [91, 91]</td>",
        "93 [93, 93]</td>",
        "KL to the target, forget set",
        "npo: fp16 2.00, int4-g128 0.50.",
        "Change against full precision",
        "-10.0 [-10.0, -10.0]",
        "Rank correlation of survival with what came back of KnowMem: ",
        "No checkpoints were declared as steps of a series",
        "There is no memory plan: the CPU pass makes none.",
        "3 continuations, 4 and 5 questions for each arm.",
    ] {
        assert!(squeezed.contains(part), "{part} in {squeezed}");
    }
    // A picture for each of three metrics of two models, for each of two sets, and the curves of four models.
    assert_eq!(page.matches("<svg ").count(), 2 * 3 + 2 + 4);
    assert_eq!(page.matches("class=\"skip\" href=\"#main\"").count(), 1);
}

#[test]
fn the_verdict_is_one_sentence() {
    let headline = |verdicts: &[(&str, &str, &str)]| {
        let mut record = record();
        let verdicts = verdicts.iter().map(|(unlearned, precision, verdict)| {
            json!({"unlearned": unlearned, "precision": precision, "verdict": verdict, "because": "so"})
        });
        record["verdicts"] = verdicts.collect();
        between(&page(record), "<h1>", "</h1>")[0].to_owned()
    };
    assert_eq!(
        headline(&[
            ("npo", "int8", "held"),
            ("npo", "int4", "resurrected"),
            ("sure", "int8", "held"),
            ("sure", "int4", "held"),
            ("ga", "int4", "void"),
        ]),
        "Quantization brings back what npo (int4) was made to forget; sure stays forgotten at every precision measured; \
         nothing can be said of ga (int4)."
    );
    assert_eq!(headline(&[("a", "int4", "inconclusive")]), "More examples are needed to decide on a (int4).");
    assert_eq!(
        headline(&[("a", "int4", "held"), ("b", "int4", "held")]),
        "a and b stay forgotten at every precision measured."
    );
    assert!(headline(&[]).starts_with("No verdict:"));
    let many: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].map(|name| (name, "int4", "held")).into();
    assert!(headline(&many).starts_with("a, b, c, d, e and 2 others stay"), "{}", headline(&many));
}

/// Markup, quotes, a terminal's colours, and a word wider than a phone.
const HOSTILE: &str = concat!(
    "<script>alert(1)</script>\"' onload=x &amp; \u{1b}[31m ",
    "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"
);

/// The record with a hostile text for every string that comes from outside.
fn hostile() -> Value {
    fn replace(value: &mut Value) {
        match value {
            Value::String(text) if text == "npo" || text.contains('/') || text.contains("too few") => {
                HOSTILE.clone_into(text);
            }
            Value::Array(values) => values.iter_mut().for_each(replace),
            Value::Object(values) => values.values_mut().for_each(replace),
            _ => {}
        }
    }
    let mut record = record();
    replace(&mut record);
    record["plan"]["data"] = HOSTILE.into();
    record["device"]["name"] = HOSTILE.into();
    record["stopped"] = HOSTILE.into();
    record["complete"] = false.into();
    record["kernels"] = json!({HOSTILE: HOSTILE});
    record["survival"][1]["map"]["layers"][0]["modules"][HOSTILE] = json!({"survival": 0.5, "absorbed": 0.5});
    record["samples"][0]["tokens"] = json!([HOSTILE, HOSTILE, HOSTILE]);
    record["localizations"] = json!([localization()]);
    for name in ["target", "unlearned", "model", "precision"] {
        record["localizations"][0][name] = HOSTILE.into();
    }
    record["localizations"][0]["variants"][4]["module"] = HOSTILE.into();
    record["localizations"][0]["keep"]["blocks"] = json!([HOSTILE]);
    record
}

#[test]
fn hostile_text_stays_text() {
    let page = page(hostile());
    check(&page);
    assert!(page.contains("&#60;script&#62;alert(1)") && page.contains("&lt;script&gt;alert(1)"));
    assert!(!page.contains("\" onload") && !page.contains("' onload"), "an attribute was left");
    assert!(page.contains("Incomplete: the run ended early"));
}

#[test]
fn what_is_missing_gets_a_sentence() {
    // A record of an older version has none of this.
    let mut old = record();
    for name in [
        "statistics",
        "controls",
        "divergence",
        "survival",
        "survival_rank_correlation",
        "verdicts",
        "samples",
    ] {
        old.as_object_mut().unwrap().remove(name);
    }
    for arm in old["arms"].as_array_mut().unwrap() {
        for metric in ["verbmem_forget", "knowmem_forget", "knowmem_retain"] {
            let metric = arm["metrics"][metric].as_object_mut().unwrap();
            metric.remove("truth");
            metric.remove("ci95");
        }
        arm["metrics"]["privleak"].as_object_mut().unwrap().remove("roc");
    }
    for row in old["recovery"].as_array_mut().unwrap() {
        let row = row.as_object_mut().unwrap();
        row.retain(|name, _| !name.starts_with("p_") && !name.ends_with("_ci95") && name != "n_asked");
    }
    let mut none = old.clone();
    none["arms"] = json!([]);
    none["recovery"] = json!([]);
    let (old, none) = (page(old), page(none));
    for page in [&old, &none] {
        check(page);
        for part in [
            "No verdict:",
            "The record has no verdicts.",
            "The record has no distances between arms",
            "The record has no scores of the true answers",
            "Neither the target nor a retrained model was measured both",
            "The weights were not compared",
            "The record holds no questions and answers",
            "Which matrices bring the forgotten back was not looked for",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }
    assert_eq!(old.matches("<svg ").count(), 6);
    assert!(!old.contains(" of 0<") && !old.contains("if 0 %"), "{old}");
    assert_eq!(none.matches("<svg ").count(), 0);
    for part in
        ["No unlearned model was measured", "No arm was measured.", "No unlearned model was measured both"]
    {
        assert!(none.contains(part), "{part} in {none}");
    }

    // No value anywhere, but reasons.
    let mut unknown = record();
    for arm in unknown["arms"].as_array_mut().unwrap() {
        for metric in ["verbmem_forget", "knowmem_forget", "knowmem_retain"] {
            arm["metrics"][metric] = json!({"value": null, "reason": "there are no examples", "n": 0});
        }
    }
    unknown["survival"][0] =
        json!({"unlearned": "npo", "precision": "int8", "value": null, "reason": "nothing changed"});
    let unknown = page(unknown);
    check(&unknown);
    for part in ["there are no examples", "nothing changed", "VerbMem, forget set: no model has a score."] {
        assert!(unknown.contains(part), "{part} in {unknown}");
    }
}

#[test]
fn what_every_arm_said_is_on_the_page() {
    let mut record = record();
    let samples = record["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3 + 4 + 5);
    let answer = json!({"text": "model 1 says w0 <b>", "score": 100.0});
    assert_eq!(
        (&samples[0]["prompt"], &samples[0]["answers"][3]["text"]),
        (&json!("what is 0?"), &answer["text"])
    );
    // The unlearned model knows nothing at full precision, and a word of it again at int4.
    record["samples"][0]["answers"][3]["text"] = json!("no idea");
    record["samples"][0]["answers"][5]["text"] = json!("it may be W0!");
    let text = page(record.clone());
    check(&text);
    let section = between(&text, "<section id=\"samples\"", "</section>")[0];
    assert!(
        section.contains("VerbMem, forget set: 3 prompts") && section.contains("KnowMem retain: 5 prompts")
    );
    assert!(section.contains("it may be <mark>W0</mark>!"), "{section}");
    assert!(
        section.contains("says <u>w1</u> &#60;b&#62;") || section.contains("says w1 &#60;b&#62;"),
        "{section}"
    );
    assert!(!section.contains("<b>"));
    record["samples"] = json!([]);
    assert!(page(record).contains("--no-samples"));
}

#[test]
fn series_become_curves() {
    let mut record = record();
    let points = json!([{"value": 20.0, "ci95": [15.0, 25.0]}, {"value": null, "reason": "too short"}, {"value": 60.0}]);
    let curve = |metric: &str| json!({"metric": metric, "precision": "int4-g128", "points": points});
    let steps = [0.8, 1.7, 2.5].map(|value| json!({"value": value, "unlearned": format!("k{value}")}));
    record["series"] = json!([{
        "name": "size",
        "steps": steps,
        "curves": [curve("verbmem_forget"), curve("privleak")],
    }]);
    let page = page(record);
    check(&page);
    for part in [
        "VerbMem against size",
        "int4-g128: 0.8 20.0, 1.7 not known, 2.5 60.0.",
        "1.7 (k1.7)",
        "too short",
        "Against size",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
}

fn undertext(directory: &Path, line: &str) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertext"));
    command.args(line.split_whitespace()).current_dir(directory).output().unwrap()
}

#[test]
fn a_record_becomes_the_page_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |line: &str| {
        let output = undertext(directory.path(), line);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let known = record();
    std::fs::write(at("report.json"), known.to_string()).unwrap();
    assert_eq!(run("report report.json"), (Some(0), "report.html\n".to_owned(), String::new()));
    assert!(std::fs::read_to_string(at("report.html")).unwrap() == page(known));
    assert_eq!(run("report report.json --html other.html").0, Some(0));
    assert!(at("other.html").is_file());

    let mut newer = record();
    newer["schema_version"] = 2.into();
    std::fs::write(at("newer.json"), newer.to_string()).unwrap();
    std::fs::write(at("broken.json"), "{\"arms\": [").unwrap();
    std::fs::write(at("another.json"), "{\"devices\": []}").unwrap();
    for (line, code, part) in [
        ("report none.json", 3, "cannot read none.json"),
        ("report newer.json", 3, "newer.json: schema_version: found 2, expected 1"),
        ("report broken.json", 3, "broken.json: record: found EOF while parsing"),
        ("report another.json", 3, "another.json: record: found missing field"),
        ("report report.json --html report.json", 2, "--html: report.json cannot be used"),
        ("report report.json --html none/page.html", 1, "cannot write none/page.html"),
        ("demo --device cpu --json=a --html a", 2, "--html: a cannot be used"),
    ] {
        let (found, stdout, stderr) = run(line);
        assert_eq!((found, stdout.as_str()), (Some(code), ""), "{line}: {stderr}");
        assert!(stderr.contains(part) && stderr.lines().count() == 1, "{line}: {stderr}");
    }
}

#[test]
fn the_demo_writes_its_page() {
    let directory = tempfile::tempdir().unwrap();
    let line = "demo --device cpu --limit 2 --resamples 199 --json=demo.json --html demo.html";
    let output = undertext(directory.path(), line);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let html = std::fs::read_to_string(directory.path().join("demo.html")).unwrap();
    check(&html);
    for name in ["npo_gdr", "ga_gdr", "sure", "control_fp32"] {
        assert!(html.contains(&format!("<h3>{name}</h3>")), "{name}");
    }
    // The record alone gives the same page.
    let record = std::fs::read(directory.path().join("demo.json")).unwrap();
    let again: Report = serde_json::from_slice(&record).unwrap();
    assert!(report_html(&again) == html);
}

/// Runs Chromium on a page; its stdout and its complaints.
fn chromium(directory: &Path, width: u32, page: &Path, actions: &[&str]) -> (String, String) {
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .arg(format!("--window-size={width},1200"))
        .args(actions)
        .arg(format!("file://{}", page.display()))
        .timeout(Duration::from_secs(60))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn chromium_shows_the_page() {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|path| path.join("chromium").is_file()) {
        let required = std::env::var_os("UNDERTEXT_REQUIRE_ADAPTERS").is_some();
        assert!(!required, "chromium is not on the PATH, and UNDERTEXT_REQUIRE_ADAPTERS is set");
        println!("skipped: chromium is not on the PATH");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("page.html");
    let html = page(hostile());
    std::fs::write(&path, &html).unwrap();

    let (dom, said) = chromium(directory.path(), 1280, &path, &["--dump-dom"]);
    assert!(!said.contains("CONSOLE"), "{said}");
    for part in ["<h1>", "class=\"banner\"", "id=\"recovery\"", "id=\"provenance\"", "<details>", "<desc id="]
    {
        assert!(dom.contains(part), "{part} in {dom}");
    }
    assert!(!dom.contains("<script"), "a script came to life");
    for what in ["<svg ", "<table>", "<section ", "<tr>"] {
        assert_eq!(
            dom.matches(what).count(),
            html.matches(what).count(),
            "{what}: the parser saw another page"
        );
    }

    for width in [1280, 400] {
        let picture = directory.path().join(format!("{width}.png"));
        let (_, said) =
            chromium(directory.path(), width, &path, &[&format!("--screenshot={}", picture.display())]);
        assert!(!said.contains("CONSOLE"), "{said}");
        let png = std::fs::read(&picture).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes at {width}", png.len());
        assert_eq!(png[16..20], width.to_be_bytes());
    }

    // On a narrow screen nothing but the tables' own boxes scrolls sideways: measured by a script, which the page itself
    // would not let in, in a frame, since a window cannot be as narrow as a phone.
    let policy = html.find("<meta http-equiv").unwrap();
    let end = policy + html[policy..].find('\n').unwrap();
    let script = "<script>onload = () => { const root = document.documentElement; \
                  document.querySelectorAll('details').forEach(details => details.open = true); \
                  parent.postMessage(root.scrollWidth + ' of ' + root.clientWidth, '*'); }</script>";
    std::fs::write(&path, format!("{}{script}{}", &html[..policy], &html[end..])).unwrap();
    let outer = directory.path().join("outer.html");
    let frame = "<html><body><script>onmessage = message => document.body.dataset.widths = message.data</script>\
                 <iframe src=\"page.html\" style=\"width: 400px; height: 900px; border: 0\"></iframe></body></html>";
    std::fs::write(&outer, frame).unwrap();
    let (dom, _) = chromium(directory.path(), 1280, &outer, &["--dump-dom", "--virtual-time-budget=3000"]);
    let widths = between(&dom, "data-widths=\"", "\"");
    let (needed, there) = widths[0].split_once(" of ").unwrap();
    assert!(needed == there && there.parse::<u32>().unwrap() <= 400, "{widths:?}");
}
