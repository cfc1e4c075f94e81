//! JSON for people and for the disk: indented, but each row of numbers on one line.

/// What `pretty` is with the numbers of an array on one line. A line of its own that is a number or `null` is an element of an
/// array: strings have no line breaks.
pub(super) fn rows(pretty: &str) -> String {
    let mut text = String::with_capacity(pretty.len());
    // Whether the last line began an array; whether it was a number.
    let (mut open, mut number) = (false, false);
    for line in pretty.lines() {
        let bare = line.trim_start();
        let is_number = bare.starts_with(|c: char| c == '-' || c.is_ascii_digit())
            || bare.trim_end_matches(',') == "null";
        let ends = number && bare.starts_with(']');
        if is_number && (open || number) {
            text += if number { " " } else { "" };
            text += bare;
        } else if ends {
            text += bare;
        } else {
            text += if text.is_empty() { "" } else { "\n" };
            text += line;
        }
        (open, number) = (line.ends_with('['), is_number);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::rows;

    #[test]
    fn rows_of_numbers_take_a_line() {
        let value = json!({
            "ci95": [-1.5, 2], "points": [[0.0, null], []], "text": ["7", "a [", "null"], "n": 3, "none": null,
            "mixed": [1, {"a": [2]}, "b", null, [3]],
        });
        let text = rows(&serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        for part in [
            "\"ci95\": [-1.5, 2],\n",
            "    [0.0, null],\n",
            "  \"n\": 3,\n  \"none\": null,\n",
            "\n    \"7\",\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
