//! Tables that fit their place.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, Width,
    presets,
};

use super::style::{Meaning, Style, printable, wrapped};

/// Most columns of text that name a row where a table is written row by row.
const NAMES: usize = 3;

/// What must not be broken inside a cell is joined by this instead of a blank.
const GLUE: char = '\u{a0}';

/// A table. On a terminal it fits the width: sentences and headers wrap, then lines between columns go, then intervals
/// stand below their figures; where even that is too wide, each row becomes a list of its figures. No figure is torn.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    style: Style,
    header: Vec<String>,
    /// Columns of text, which come first; the others are numbers.
    texts: usize,
    rows: Vec<Vec<(String, Meaning)>>,
}

impl Grid {
    pub(super) fn new(style: Style, header: &[String], texts: usize) -> Self {
        // The good direction stands beside the last word of its name.
        let glued = |text: &String| {
            ["↓", "↑"].iter().fold(text.clone(), |text, arrow| {
                text.replace(&format!(" {arrow}"), &format!("{GLUE}{arrow}"))
            })
        };
        Self { style, header: header.iter().map(glued).collect(), texts, rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn add(&mut self, row: &[String]) {
        self.rows.push(row.iter().map(|text| (printable(text), Meaning::Plain)).collect());
    }

    /// Says what the figure in this column of the last row means.
    pub(super) fn mark(&mut self, column: usize, meaning: Meaning) {
        if let Some((_, old)) = self.rows.last_mut().and_then(|row| row.get_mut(column)) {
            *old = meaning;
        }
    }

    /// The table's lines, without the last one's end.
    pub(super) fn text(&self) -> String {
        let Some(width) = self.style.width else {
            return self.drawn(&mut plain(), Breaks::Never);
        };
        for (lines, breaks) in [
            (true, Breaks::Never),
            (false, Breaks::Never),
            (true, Breaks::BeforeIntervals),
            (false, Breaks::BeforeIntervals),
        ] {
            if self.least_width(if lines { 3 } else { 2 }, breaks) <= usize::from(width) {
                return self.drawn(&mut fitted(width, lines), breaks);
            }
        }
        self.listed(width)
    }

    fn drawn(&self, table: &mut Table, breaks: Breaks) -> String {
        if self.style.colour {
            table.enforce_styling().style_text_only();
        }
        let cells = self.header.iter().enumerate();
        table.set_header(cells.map(|(column, text)| self.cell(column, text.clone(), Meaning::Plain)));
        for row in &self.rows {
            let cells = row.iter().enumerate();
            table.add_row(cells.map(|(column, (text, meaning))| {
                let text = if column < self.texts { text.clone() } else { breaks.glued(text) };
                self.cell(column, text, *meaning)
            }));
        }
        let bounds = (0..self.header.len()).map(|column| {
            let least = u16::try_from(self.least_column(column, breaks) + 2).unwrap_or(u16::MAX);
            ColumnConstraint::LowerBoundary(Width::Fixed(least))
        });
        table.set_constraints(bounds.collect::<Vec<_>>());
        table.trim_fmt().replace(GLUE, " ")
    }

    fn cell(&self, column: usize, text: String, meaning: Meaning) -> Cell {
        let alignment = if column < self.texts { CellAlignment::Left } else { CellAlignment::Right };
        let cell = Cell::new_owned(text).set_alignment(alignment);
        match meaning {
            Meaning::Plain => cell,
            Meaning::Good => cell.fg(Color::DarkGreen),
            Meaning::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Meaning::Unsure => cell.fg(Color::DarkYellow),
            Meaning::Aside => cell.fg(Color::DarkCyan),
            Meaning::Faint => cell.add_attribute(Attribute::Dim),
        }
    }

    /// Characters of what must not be broken in a column: a word, or a figure.
    fn least_column(&self, column: usize, breaks: Breaks) -> usize {
        let word = |text: &str| text.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
        let least = |(text, _): &(String, Meaning)| {
            if column < self.texts { word(text) } else { word(&breaks.glued(text)) }
        };
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(least);
        cells.chain([word(&self.header[column])]).max().unwrap_or(0)
    }

    /// Characters of the narrowest table, with so many between two columns.
    fn least_width(&self, gap: usize, breaks: Breaks) -> usize {
        let columns = 0..self.header.len();
        // One of the blanks around a cell stands at each edge of the table.
        (columns.map(|column| self.least_column(column, breaks) + gap).sum::<usize>() + 2).saturating_sub(gap)
    }

    /// Row by row: what names it, then a line for each of its figures.
    fn listed(&self, width: u16) -> String {
        let names = self.texts.min(NAMES).min(self.header.len());
        let label = |column: usize| self.header[column].chars().count();
        let widest = (names..self.header.len()).map(label).max().unwrap_or(0);
        let mut lines = Vec::new();
        for row in &self.rows {
            let (name, figures) = row.split_at(names.min(row.len()));
            let name: Vec<_> = name.iter().map(|(text, meaning)| self.style.paint(*meaning, text)).collect();
            lines.push(format!(" {}", name.join("  ")));
            for (header, (text, meaning)) in self.header[names..].iter().zip(figures) {
                let room = usize::from(width).saturating_sub(widest + 5).max(16);
                let parts = wrapped(text, u16::try_from(room).unwrap_or(width));
                for (number, part) in parts.iter().enumerate() {
                    let header = if number == 0 { header.replace(GLUE, " ") } else { String::new() };
                    let gap = " ".repeat(widest - header.chars().count());
                    lines.push(format!("   {header}{gap}  {}", self.style.paint(*meaning, part)));
                }
            }
        }
        lines.join("\n")
    }
}

/// Where a figure may go on in the next line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaks {
    Never,
    BeforeIntervals,
}

impl Breaks {
    /// A figure with glue wherever it must not be broken.
    fn glued(self, text: &str) -> String {
        let glued = text.replace(' ', &GLUE.to_string());
        match self {
            Self::Never => glued,
            Self::BeforeIntervals => ["±", "["]
                .iter()
                .fold(glued, |text, start| text.replace(&format!("{GLUE}{start}"), &format!(" {start}"))),
        }
    }
}

/// As wide as it is, with blanks between the columns.
fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table
}

/// At most `width` wide, with or without lines.
fn fitted(width: u16, lines: bool) -> Table {
    let mut table = Table::new();
    let lined = presets::UTF8_NO_BORDERS.row_separator(LineStyle::none());
    table.load_style(if lines { lined } else { presets::NOTHING });
    table.set_content_arrangement(ContentArrangement::Dynamic).force_no_tty().set_width(width);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: Option<u16>, colour: bool) -> Grid {
        let header = ["model", "VerbMem of all texts ↓", "because"].map(str::to_owned);
        let mut grid = Grid::new(Style { width, colour }, &header, 1);
        grid.add(&["npo".to_owned(), "100.0 ± 0.0".to_owned(), "99 % [98, 99]".to_owned()]);
        grid.mark(1, Meaning::Bad);
        grid
    }

    #[test]
    fn figures_are_whole_at_every_width() {
        for width in 30..90 {
            let text = grid(Some(width), false).text();
            let whole = ["100.0", "± 0.0", "99 %", "[98, 99]"];
            assert!(whole.iter().all(|part| text.contains(part)), "{width}: {text}");
            assert!(
                width < 40 || text.contains("100.0 ± 0.0") && text.contains("99 % [98, 99]"),
                "{width}: {text}"
            );
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(usize::from(width)), "{width}: {text}");
        }
    }

    #[test]
    fn intervals_go_below_before_a_table_is_a_list() {
        // 5, 7 and 8 characters, 2 between columns, a blank on both sides.
        let text = grid(Some(26), false).text();
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines[lines.len() - 2..],
            [" npo      100.0      99 %", "          ± 0.0  [98, 99]"],
            "{text}"
        );
        let text = grid(Some(25), false).text();
        assert!(text.starts_with(" npo\n   VerbMem of all texts ↓  100.0"), "{text}");
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        for width in [None, Some(40), Some(80)] {
            let (coloured, plain) = (grid(width, true).text(), grid(width, false).text());
            assert!(coloured.contains('\u{1b}') && !plain.contains('\u{1b}'), "{coloured}");
            assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        }
    }
}
