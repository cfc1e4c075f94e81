//! Figures in cells whose shade says how much of the forgotten they bring back.

use super::Section;
use super::table::{Cell, Table, fixed, none};
use crate::audit::modules;
use crate::report::judgement::Survival;
use crate::report::maps::{LayerMap, Remains};
use crate::report::schema::Report;
use crate::report::table::percent;

/// Shades, from none to full; the style has a class for each.
const SHADES: [&str; 8] = ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7"];

/// Of so many maps all are open.
const OPEN: usize = 2;

/// The shade's class for 0 (nothing) to 1 (everything); beyond, the nearest.
pub(super) fn shade(share: f64) -> &'static str {
    let steps = (SHADES.len() - 1) as f64;
    SHADES
        .iter()
        .enumerate()
        .rev()
        .find(|(step, _)| share * steps >= *step as f64 - 0.5)
        .map_or("h0", |(_, class)| class)
}

/// Maps of one thing, behind its name.
pub(super) struct Maps {
    pub(super) title: String,
    pub(super) open: bool,
    pub(super) notes: Vec<String>,
    pub(super) tables: Vec<Table>,
}

/// A module's name without what all of them have.
pub(super) fn short_module(module: &str) -> &str {
    module.strip_suffix("_proj").unwrap_or(module)
}

/// A layer a row, a module a column, with the sums at the edges; `cell` of a row's figures.
pub(super) struct LayerTable {
    pub(super) caption: String,
    pub(super) modules: Vec<String>,
    /// The row's name, its cells by module, and the whole row's.
    pub(super) rows: Vec<(String, Vec<Cell>, Cell)>,
}

impl From<LayerTable> for Table {
    fn from(grid: LayerTable) -> Self {
        let modules = grid.modules.iter().map(|module| short_module(module).to_owned());
        let columns = std::iter::once("layer".to_owned()).chain(modules).chain(["all".to_owned()]);
        let mut table = Self::new(grid.caption, 1, columns);
        for (name, cells, all) in grid.rows {
            table.add(std::iter::once(Cell::from(name)).chain(cells).chain([all]));
        }
        table
    }
}

/// The known modules in the order of use, then others that a record has.
pub(super) fn columns<'a>(found: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut columns = modules().map(str::to_owned).to_vec();
    for name in found {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns
}

/// Adds a map of survival and one of absorbed codes for every model and precision.
pub(super) fn survival(report: &Report, mut section: Section) -> Section {
    let with_map = report.survival.iter().filter(|row| row.map.is_some());
    let count = with_map.clone().count();
    if count == 0 {
        return section
            .say("The record does not say which layers and modules keep theirs: an older version made it.");
    }
    section.paragraphs.push(
        "Layer by layer and module by module: survival, and the share of the changed weights that are absorbed, that is, get \
         the target's value again. The stronger a cell's colour, the less is left of the unlearning there."
            .to_owned(),
    );
    // Of many, only the one that says most.
    let value = |row: &&Survival| row.value.unwrap_or(f64::INFINITY);
    let least = with_map.clone().min_by(|a, b| value(a).total_cmp(&value(b)));
    for row in with_map {
        let open = count <= OPEN || least.is_some_and(|least| std::ptr::eq(least, row));
        section.maps.extend(maps(row, open));
    }
    section
}

fn maps(row: &Survival, open: bool) -> Option<Maps> {
    let map = row.map.as_ref()?;
    let found = map.layers.iter().flat_map(|layer| layer.modules.keys());
    let modules = columns(found.chain(map.modules.keys()));
    let of = format!("{} at {}", row.unlearned, row.precision);
    let grid = |caption: String, cell: &dyn Fn(&Remains) -> Cell| {
        let cells = |found: &std::collections::BTreeMap<String, Remains>| {
            modules.iter().map(|module| found.get(module).map_or_else(|| none(None), cell)).collect()
        };
        let layer =
            |layer: &LayerMap<Remains>| (layer.layer.to_string(), cells(&layer.modules), cell(&layer.total));
        let nothing = || modules.iter().map(|_| Cell::default()).collect();
        let head = map.head.as_ref().map(|head| ("head".to_owned(), nothing(), cell(head)));
        let all = ("all".to_owned(), cells(&map.modules), cell(&map.total));
        let rows = map.layers.iter().map(layer).chain(head).chain([all]).collect();
        Table::from(LayerTable { caption, modules: modules.clone(), rows })
    };
    let survival = |remains: &Remains| {
        let shown = |share: f64| Cell { class: shade(1.0 - share).to_owned(), ..fixed(share, 2).into() };
        remains.survival.map_or_else(|| none(None), shown)
    };
    let absorbed = |remains: &Remains| {
        let shown = |share: f64| Cell { class: shade(share).to_owned(), ..fixed(100.0 * share, 1).into() };
        remains.absorbed.map_or_else(|| none(None), shown)
    };
    let tables = vec![
        grid(format!("Survival of the update, {of}"), &survival),
        grid(format!("Absorbed codes in percent, {of}"), &absorbed),
    ];
    let total = &map.total;
    let title = format!(
        "{of}: {} survives, {} of the changed weights absorbed",
        percent(total.survival),
        percent(total.absorbed)
    );
    Some(Maps { title, open, notes: Vec::new(), tables })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_go_from_none_to_full() {
        assert_eq!(
            [-3.0, 0.0, 0.07, 0.08, 0.5, 0.93, 1.0, 7.0].map(shade),
            ["h0", "h0", "h0", "h1", "h4", "h7", "h7", "h7"]
        );
        assert_eq!(shade(f64::NAN), "h0");
    }
}
