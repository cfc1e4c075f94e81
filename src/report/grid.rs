//! Tables that fit their place.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, Width,
    presets,
};

use super::style::{Meaning, Style, printable, wrapped};

/// Most columns of text that name a row where a table is written row by row.
const NAMES: usize = 3;

/// A table. On a terminal it fits the width: sentences and headers wrap, figures never do; where even that is too wide,
/// each row becomes a list of its figures.
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
        Self { style, header: header.to_vec(), texts, rows: Vec::new() }
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
        match self.style.width {
            None => self.drawn(&mut plain()).trim_fmt(),
            Some(width) if self.least_width() <= usize::from(width) => {
                self.drawn(&mut fitted(width)).trim_fmt()
            }
            Some(width) => self.listed(width),
        }
    }

    fn drawn<'a>(&self, table: &'a mut Table) -> &'a Table {
        if self.style.colour {
            table.enforce_styling().style_text_only();
        }
        let cells = self.header.iter().enumerate();
        table.set_header(cells.map(|(column, text)| self.cell(column, text, Meaning::Plain)));
        for row in &self.rows {
            let cells = row.iter().enumerate();
            table.add_row(cells.map(|(column, (text, meaning))| self.cell(column, text, *meaning)));
        }
        let bounds = (0..self.header.len()).map(|column| {
            let least = u16::try_from(self.least_column(column) + 2).unwrap_or(u16::MAX);
            ColumnConstraint::LowerBoundary(Width::Fixed(least))
        });
        table.set_constraints(bounds.collect::<Vec<_>>());
        table
    }

    fn cell(&self, column: usize, text: &str, meaning: Meaning) -> Cell {
        let alignment = if column < self.texts { CellAlignment::Left } else { CellAlignment::Right };
        let cell = Cell::new(text).set_alignment(alignment);
        match meaning {
            Meaning::Plain => cell,
            Meaning::Good => cell.fg(Color::DarkGreen),
            Meaning::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Meaning::Unsure => cell.fg(Color::DarkYellow),
            Meaning::Aside => cell.fg(Color::DarkCyan),
            Meaning::Faint => cell.add_attribute(Attribute::Dim),
        }
    }

    /// Characters of what must not be broken in a column: a word, or a whole figure.
    fn least_column(&self, column: usize) -> usize {
        let word = |text: &str| text.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
        let least = |(text, _): &(String, Meaning)| {
            if column < self.texts { word(text) } else { text.chars().count() }
        };
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(least);
        cells.chain([word(&self.header[column])]).max().unwrap_or(0)
    }

    /// Characters of the narrowest table: a blank on both sides of each cell, a line between two.
    fn least_width(&self) -> usize {
        let columns = 0..self.header.len();
        columns.map(|column| self.least_column(column) + 3).sum::<usize>().saturating_sub(1)
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
                    let header = if number == 0 { header.as_str() } else { "" };
                    let gap = " ".repeat(widest - header.chars().count());
                    lines.push(format!("   {header}{gap}  {}", self.style.paint(*meaning, part)));
                }
            }
        }
        lines.join("\n")
    }
}

/// As wide as it is, with blanks between the columns.
fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table
}

/// At most `width` wide, with lines between the columns.
fn fitted(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_NO_BORDERS.row_separator(LineStyle::none()));
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
            assert!(text.contains("100.0 ± 0.0") && text.contains("99 % [98, 99]"), "{width}: {text}");
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(usize::from(width)), "{width}: {text}");
        }
        assert_eq!(
            grid(Some(30), false).text(),
            " npo\n   VerbMem of all texts ↓  100.0 ± 0.0\n   because                 99 % [98, 99]"
        );
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
