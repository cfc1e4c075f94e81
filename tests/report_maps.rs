//! What the page shows matrix by matrix, text by text and token by token.

use serde_json::{Value, json};

use crate::report_html::{between, check, page, record};

/// Two layers of which one matrix is looked at, the rest as a whole.
pub(crate) fn localization() -> Value {
    let variant = |kind: &str, layer: Option<usize>, module: Option<&str>, recovery: Option<f64>| {
        json!({
            "kind": kind, "layer": layer, "module": module, "log_prob": -1.25, "kl_to_target": 0.5,
            "verbmem_forget_probability": 12.5, "knowmem_forget_probability": null, "knowmem_retain_probability": 75.0,
            "recovery": recovery.map(|value| json!({"value": value, "ci95": [value - 0.1, value + 0.1]})),
        })
    };
    let mut first = variant("prefix", None, None, Some(0.3));
    first["layers"] = 1.into();
    let record = record();
    json!({
        "schema_version": 1, "undertext": record["undertext"], "device": record["device"], "counters": record["counters"],
        "target": "models/target", "unlearned": "models/npo", "model": "npo", "precision": "int4-g128",
        "held_below": 0.2, "n": 7,
        "variants": [
            variant("target_full", None, None, None),
            variant("target", None, None, Some(1.0)),
            variant("nothing", None, None, Some(0.0)),
            variant("all", None, None, Some(0.91)),
            variant("block", Some(1), Some("down_proj"), Some(0.62)),
            variant("layer", Some(0), None, Some(-0.04)),
            variant("layer", Some(1), None, Some(0.71)),
            variant("module", None, Some("down_proj"), Some(0.66)),
            first,
        ],
        "keep": {"blocks": ["layers.1.down_proj"], "of": 14, "recovery": {"value": 0.12, "ci95": [0.05, 0.19]}},
    })
}

/// The cells of a table's rows, by the name in front of them: class and text.
fn rows(table: &str) -> Vec<(String, Vec<(String, String)>)> {
    let rows = between(table, "<tr>\n<th scope=\"row\">", "</tr>").into_iter().chain(between(
        table,
        "<tr><th scope=\"row\">",
        "</tr>",
    ));
    let cell = |cell: &str| {
        let (class, text) = cell.split_once('>').unwrap();
        (class.trim_matches('"').to_owned(), text.split('<').next().unwrap().to_owned())
    };
    rows.map(|row| {
        let name = row.split('<').next().unwrap().to_owned();
        (name, row.split("<td class=").skip(1).map(cell).collect())
    })
    .collect()
}

#[test]
fn where_an_update_survives_is_a_map() {
    let page = page(record());
    let section = between(&page, "<section id=\"survival\"", "</section>")[0];
    let maps = between(section, "<details class=\"maps\"", "</details>");
    // Of four, only the one that tells most is open.
    assert_eq!(maps.len(), 4);
    let open: Vec<_> = maps.iter().filter(|map| map.starts_with(" open>")).collect();
    assert!(
        open.len() == 1
            && open[0]
                .contains("<summary>npo at int4-g128: 10 % survives, 90 % of the changed weights absorbed")
    );
    let tables = between(open[0], "<table>", "</table>");
    assert_eq!(tables.len(), 2);
    for (table, caption, number, shade) in [
        (tables[0], "Survival of the update, npo at int4-g128", "0.10", "number h6"),
        (tables[1], "Absorbed codes in percent, npo at int4-g128", "90.0", "number h6"),
    ] {
        assert!(table.contains(&format!("<caption>{caption}</caption>")), "{table}");
        let heads = between(table, "<th scope=\"col\"", "</th>");
        let heads: Vec<_> = heads.iter().map(|head| head.rsplit('>').next().unwrap()).collect();
        assert_eq!(heads, ["layer", "q", "k", "v", "o", "gate", "up", "down", "all"]);
        let rows = rows(table);
        let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["0", "1", "all"]);
        let shown = (shade.to_owned(), number.to_owned());
        for (row, column) in [(0, 0), (0, 6), (0, 7), (1, 0), (1, 7), (2, 6), (2, 7)] {
            assert_eq!(rows[row].1[column], shown, "{row} {column}");
        }
        // It did not change; and matrices that the model does not have.
        assert_eq!([&rows[1].1[6].1, &rows[0].1[1].1], ["–", "–"]);
    }
    // What keeps everything is pale.
    let full = maps.iter().find(|map| map.contains("npo at int8")).unwrap();
    assert!(full.contains("class=\"number h0\">1.00") && !full.contains("h7"), "{full}");

    let mut old = record();
    old["survival"].as_array_mut().unwrap().iter_mut().for_each(|row| {
        row.as_object_mut().unwrap().remove("map");
    });
    let old = self::page(old);
    check(&old);
    assert!(old.contains("The record does not say which layers and modules keep theirs"));
    assert!(!old.contains("class=\"maps\""));
}

#[test]
fn what_was_localized_is_a_map() {
    assert!(page(record()).contains("Which matrices bring the forgotten back was not looked for"));
    let mut record = record();
    record["localizations"] = json!([localization()]);
    let page = page(record);
    check(&page);
    let section = between(&page, "<section id=\"localize\"", "</section>")[0];
    for part in [
        "<summary>npo at int4-g128, 7 answers</summary>",
        "keep 1 of 14 matrices at full precision and 12 % (95 % interval 5 % to 19 %) comes back, below 20 %: layers.1.down_proj.",
        "With nothing but the first layers quantized: 1 of them 30 %.",
        "<caption>The whole models, p x 100</caption>",
        "91 [81, 101]",
    ] {
        assert!(section.contains(part), "{part} in {section}");
    }
    let rows = rows(between(section, "<table>", "</table>")[0]);
    let names: Vec<_> = rows.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["0", "1", "all"]);
    let cell = |class: &str, text: &str| (class.to_owned(), text.to_owned());
    assert_eq!(rows[1].1[6], cell("number h4", "62"));
    assert_eq!([&rows[0].1[7], &rows[1].1[7]], [&cell("number h0", "-4"), &cell("number h5", "71")]);
    assert_eq!([&rows[2].1[6], &rows[2].1[7]], [&cell("number h5", "66"), &cell("number h6", "91")]);
    assert_eq!(section.matches("<small>keep</small>").count(), 1, "{section}");
}

#[test]
fn membership_has_a_curve() {
    let page = page(record());
    let section = between(&page, "<section id=\"privleak\"", "</section>")[0];
    let pictures = between(section, "<svg ", "</svg>");
    assert_eq!(pictures.len(), 4);
    for part in [
        "<title id=\"roc1-title\">ROC curve: npo (unlearned)</title>",
        "fp16: AUC 0.250, 0.00 at 0.25, 0.50 at 0.5, 0.50 at 0.75. int8: AUC 0.250,",
        "class=\"diagonal\" d=\"M34.0 178.0L188.0 24.0\"",
        // Across, up, across, up: then the sample of its line.
        "d=\"M34.0 178.0L111.0 178.0L111.0 101.0L188.0 101.0L188.0 24.0M",
        ">0.250 int4-g128</text>",
    ] {
        assert!(pictures[1].contains(part), "{part} in {}", pictures[1]);
    }
    let mut none = record();
    for arm in none["arms"].as_array_mut().unwrap() {
        arm["metrics"]["privleak"].as_object_mut().unwrap().remove("roc");
    }
    let none = self::page(none);
    check(&none);
    assert!(none.contains("The record has no ROC curves") && !none.contains("roc0"));
}

#[test]
fn every_token_of_a_forgotten_answer_has_its_shade() {
    let page = page(record());
    let section = between(&page, "<section id=\"samples\"", "</section>")[0];
    let strips = between(section, "<details class=\"strip\">", "</details>");
    assert_eq!(strips.len(), 2 + 2, "of both sets whose tokens are known");
    let heads: Vec<_> = between(strips[0], "<th scope=\"col\">", "</th>");
    assert_eq!(heads, ["log p", "w&lt;0", "∅", "⏎"]);
    let rows = rows(strips[0]);
    assert_eq!((rows.len(), rows[5].0.as_str()), (12, "npo int4-g128"));
    assert_eq!(rows[5].1[..2], [("h7".to_owned(), "0".to_owned()), ("h6".to_owned(), "-1.2".to_owned())]);
    assert!(strips[0].contains("<td>–</tr>"), "what is not known has no shade");

    // A long answer goes on below; another arm's lack of figures leaves no strip with a hole.
    let mut record = record();
    let tokens: Vec<_> = (0..40).map(|n| format!(" t{n}")).collect();
    record["samples"][0]["tokens"] = json!(tokens);
    for answer in record["samples"][0]["answers"].as_array_mut().unwrap() {
        answer["log_probs"] = json!(vec![-12.34; 40]);
    }
    record["samples"][1]["answers"][3]["log_probs"] = json!([]);
    let page = self::page(record.clone());
    check(&page);
    let strips = between(&page, "<details class=\"strip\">", "</details>");
    assert_eq!(strips.len(), 3);
    assert!(
        strips[0].contains("tokens 33 to 40 of 40</caption>") && strips[0].contains("<td class=h0>-12<"),
        "{}",
        strips[0]
    );
    assert_eq!(strips[0].matches("<table>").count(), 3);
    assert_eq!(strips[0].matches("<td class=h0>").count(), 40 * 12);

    for sample in record["samples"].as_array_mut().unwrap() {
        sample.as_object_mut().unwrap().remove("tokens");
    }
    let old = self::page(record);
    check(&old);
    assert!(old.contains("The record has no log p of single tokens") && !old.contains("class=\"strip\""));
}
