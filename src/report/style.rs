//! How text fits the place it is shown at, and the colours that say what a figure means.

use anstyle::{AnsiColor, Style as Ansi};

/// Where a text goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal: tables and sentences fit them, and a line stands under a table's header. `None` for a pipe
    /// or a file: everything is as wide as it is, with blanks between columns and no other character.
    pub width: Option<u16>,
    /// Whether ANSI colours say what figures mean.
    pub colour: bool,
}

/// What a figure or a word amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing in particular.
    #[default]
    Plain,
    /// What was forgotten stays so.
    Good,
    /// What was forgotten is back; or an error.
    Bad,
    /// Neither can be said.
    Unsure,
    /// Something to know by the way.
    Aside,
    /// Of less weight than what stands around it.
    Faint,
}

impl Style {
    /// For a pipe or a file.
    pub const PLAIN: Self = Self { width: None, colour: false };

    /// The text in the colour of its meaning.
    #[must_use]
    pub fn paint(self, meaning: Meaning, text: &str) -> String {
        let ansi = match meaning {
            Meaning::Plain => Ansi::new(),
            Meaning::Good => AnsiColor::Green.on_default(),
            Meaning::Bad => AnsiColor::Red.on_default().bold(),
            Meaning::Unsure => AnsiColor::Yellow.on_default(),
            Meaning::Aside => AnsiColor::Cyan.on_default(),
            Meaning::Faint => Ansi::new().dimmed(),
        };
        if !self.colour || ansi.is_plain() {
            return text.to_owned();
        }
        // Line by line, for readers that show a part of the text.
        text.lines().map(|line| format!("{ansi}{line}{ansi:#}")).collect::<Vec<_>>().join("\n")
    }

    /// Sentences in lines that fit the width; a line of the text is no shorter elsewhere.
    #[must_use]
    pub fn prose(self, text: &str) -> String {
        match self.width {
            Some(width) => text.lines().flat_map(|line| wrapped(line, width)).collect::<Vec<_>>().join("\n"),
            None => text.to_owned(),
        }
    }

    /// As [`Self::prose`], for what explains a table.
    pub(super) fn legend(self, text: &str) -> String {
        self.paint(Meaning::Faint, &self.prose(text))
    }
}

/// The line's words in lines of at most `width` characters; a word alone may be longer. Blanks between words stay, but for
/// those at an end.
pub(super) fn wrapped(line: &str, width: u16) -> Vec<String> {
    let (width, mut lines, mut last) = (usize::from(width), Vec::new(), String::new());
    let mut length = 0;
    for word in line.split_inclusive(' ') {
        let visible = word.trim_end().chars().count();
        if length + visible > width && !last.trim().is_empty() {
            lines.push(std::mem::take(&mut last).trim_end().to_owned());
            length = 0;
        }
        if last.is_empty() && !lines.is_empty() && word.trim().is_empty() {
            continue;
        }
        last.push_str(word);
        length += word.chars().count();
    }
    lines.push(last.trim_end().to_owned());
    lines
}

/// Text from outside without characters that a terminal would obey.
#[must_use]
pub fn printable(text: &str) -> String {
    let harmless = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_fit_the_width() {
        let style = Style { width: Some(10), colour: false };
        assert_eq!(
            style.prose("one two three\nincomprehensible   a b"),
            "one two\nthree\nincomprehensible\na b"
        );
        assert_eq!(style.prose("a\n\nb"), "a\n\nb");
        assert_eq!(style.prose(" one two   three"), " one two\nthree");
        assert_eq!(style.prose("one two t   three"), "one two t\nthree");
        assert_eq!(Style::PLAIN.prose("one two three"), "one two three");
    }

    #[test]
    fn colours_end_on_their_line() {
        let style = Style { width: Some(10), colour: true };
        let text = style.legend("one two three");
        assert_eq!(text, "\u{1b}[2mone two\u{1b}[0m\n\u{1b}[2mthree\u{1b}[0m");
        assert_eq!(Style::PLAIN.paint(Meaning::Bad, "x"), "x");
        assert_eq!(style.paint(Meaning::Plain, "x"), "x");
    }

    #[test]
    fn terminals_obey_no_name() {
        assert_eq!(printable("a\u{1b}[31mb\u{9b}c\td\n"), "a\u{fffd}[31mb\u{fffd}c\td\n");
    }
}
