//! How likely every arm finds each token of a true answer: cells with a shade.

use std::fmt::{self, Write};

use askama::filters::HtmlSafe;

use super::heat::shade;
use super::svg::Escaped;
use super::table::fixed;
use crate::report::samples::Sample;
use crate::report::schema::Arm;

/// Tokens side by side: as many as a printed page has room for.
const ACROSS: usize = 16;

/// From this many nats below certainty on, a cell has no shade.
const PALE: f64 = 7.0;

/// The strips of one true answer.
pub(super) struct Strip {
    tokens: Vec<String>,
    /// By arm: its name, and log p of each token.
    rows: Vec<(String, Vec<Option<f64>>)>,
}

impl HtmlSafe for Strip {}

impl Strip {
    /// Of a sample whose tokens are known.
    pub(super) fn new(arms: &[Arm], sample: &Sample) -> Option<Self> {
        let tokens = &sample.tokens;
        let all = sample.answers.iter().all(|answer| answer.log_probs.len() == tokens.len());
        if tokens.is_empty() || !all {
            return None;
        }
        let row = |(arm, answer): (&Arm, &crate::report::samples::Answer)| {
            (format!("{} {}", arm.name, arm.precision), answer.log_probs.clone())
        };
        Some(Self { tokens: tokens.clone(), rows: arms.iter().zip(&sample.answers).map(row).collect() })
    }
}

impl fmt::Display for Strip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.tokens.len();
        write!(
            f,
            "<details class=\"strip\">\n<summary>log p of the true answer, token by token ({count})</summary>\n"
        )?;
        f.write_str(
            r#"<div class="scroll" role="region" tabindex="0" aria-label="log p of the true answer">"#,
        )?;
        for (index, tokens) in self.tokens.chunks(ACROSS).enumerate() {
            let first = index * ACROSS;
            let (from, to) = (first + 1, first + tokens.len());
            write!(f, "\n<table>\n<caption>log p in nats, tokens {from} to {to} of {count}</caption>\n")?;
            f.write_str("<thead><tr><th scope=\"col\">log p</th>")?;
            for token in tokens {
                write!(f, "<th scope=\"col\">{}</th>", Escaped(&visible(token)))?;
            }
            f.write_str("</tr></thead>\n<tbody>\n")?;
            for (name, log_probs) in &self.rows {
                write!(f, "<tr><th scope=\"row\">{}</th>", Escaped(name))?;
                log_probs[first..to].iter().try_for_each(|log_prob| cell(f, *log_prob))?;
                f.write_str("</tr>\n")?;
            }
            f.write_str("</tbody>\n</table>")?;
        }
        f.write_str("\n</div>\n</details>")
    }
}

/// There are very many of these: no quotes, no end tag.
fn cell(f: &mut dyn Write, log_prob: Option<f64>) -> fmt::Result {
    let Some(log_prob) = log_prob else { return f.write_str("<td>–") };
    write!(f, "<td class={}>", shade(1.0 + log_prob / PALE))?;
    match fixed(log_prob, usize::from(log_prob > -9.95)).as_str() {
        "0.0" => f.write_str("0"),
        number => f.write_str(number),
    }
}

/// A token without the blanks around it; one that is nothing else is shown as what it is.
fn visible(token: &str) -> String {
    match token.trim() {
        "" if token.is_empty() => "∅".to_owned(),
        "" => token.chars().map(|blank| if blank == '\n' { '⏎' } else { '␣' }).collect(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_short_and_shaded() {
        let cell = |log_prob| {
            let mut text = String::new();
            cell(&mut text, log_prob).unwrap();
            text
        };
        assert_eq!(cell(Some(-0.01)), "<td class=h7>0");
        assert_eq!(cell(Some(-2.34)), "<td class=h5>-2.3");
        assert_eq!(cell(Some(-14.6)), "<td class=h0>-15");
        assert_eq!(cell(None), "<td>–");
        assert_eq!(["", " ", "\n ", " a<b"].map(visible), ["∅", "␣", "⏎␣", "a<b"]);
    }
}
