//! Which layers and modules bring the forgotten back when only they are quantized.

use super::heat::{LayerTable, Maps, columns, shade};
use super::table::{Cell, Table, estimate, figure, fixed, none};
use super::{Section, listed};
use crate::report::localize::{Keep, Localization, Variant};
use crate::report::schema::Report;
use crate::report::table::percent;

/// A map for every model that was looked at.
pub(super) fn localized(report: &Report) -> Section {
    let section = Section::new("localize", "Where it comes back");
    if report.localizations.is_empty() {
        return section.say(
            "Which matrices bring the forgotten back was not looked for, or is in a record of its own (`undertext localize --into` \
             adds it here).",
        );
    }
    let mut section = section.say(
        "The unlearned model quantized in one part only: a matrix of a layer, a whole layer (the last column), a kind of matrix in all \
         layers (the last row). In percent of what the quantized target's log p of the true answers on the forget set has \
         more than the unlearned model's; 0 is nothing back. The stronger a cell's colour, the more comes back.",
    );
    if report.plan.quantize_head {
        section.paragraphs.push("Unlike in the arms of this audit, the head stays as stored.".to_owned());
    }
    section.maps = report.localizations.iter().map(maps).collect();
    section
}

fn maps(found: &Localization) -> Maps {
    let name = found.model.as_ref().unwrap_or(&found.unlearned);
    let title = format!("{name} at {}, {} answers", found.precision, found.n);
    let tables = vec![grid(found, &format!("{name} at {}", found.precision)), whole(found)];
    Maps { title, open: true, notes: notes(found), tables }
}

fn grid(found: &Localization, of: &str) -> Table {
    let modules = columns(found.variants.iter().filter_map(|variant| variant.module.as_ref()));
    let kept = found.keep.as_ref().map_or(&[][..], |keep| &keep.blocks);
    let cell = |variant: Option<&Variant>| match variant.and_then(|variant| variant.recovery) {
        None => none(None),
        Some(back) => {
            Cell { class: shade(back.value).to_owned(), ..Cell::from(fixed(100.0 * back.value, 0)) }
        }
    };
    let layers = found.variants.iter().filter_map(|variant| variant.layer).max().map_or(0, |last| last + 1);
    let layer = |layer: usize| {
        let block = |module: &String| {
            let cell = cell(found.variant("block", Some(layer), Some(module)));
            let keep = kept.contains(&format!("layers.{layer}.{module}"));
            Cell { note: if keep { "keep".to_owned() } else { cell.note.clone() }, ..cell }
        };
        let cells = modules.iter().map(block).collect();
        (layer.to_string(), cells, cell(found.variant("layer", Some(layer), None)))
    };
    let of_modules = modules.iter().map(|module| cell(found.variant("module", None, Some(module)))).collect();
    let all = ("all".to_owned(), of_modules, cell(found.variant("all", None, None)));
    let rows = (0..layers).map(layer).chain([all]).collect();
    LayerTable { caption: format!("Recovery in percent, {of}"), modules, rows }.into()
}

/// What the parts are held against.
fn whole(found: &Localization) -> Table {
    let columns = ["", "log p", "KL to target", "VerbMem p", "KnowMem p", "retain p", "recovered, %"];
    let mut table = Table::new("The whole models, p x 100", 1, columns);
    for (kind, name) in [
        ("target_full", "target, full precision"),
        ("target", "target, quantized"),
        ("nothing", "unlearned, full precision"),
        ("all", "unlearned, quantized"),
    ] {
        let Some(variant) = found.variant(kind, None, None) else { continue };
        let probabilities = [
            variant.verbmem_forget_probability,
            variant.knowmem_forget_probability,
            variant.knowmem_retain_probability,
        ];
        let mut row = vec![Cell::from(name)];
        row.extend([variant.log_prob, variant.kl_to_target].map(|nats| Cell::from(fixed(nats, 3))));
        row.extend(probabilities.map(|p| figure(p, None, None, 1.0, 1)));
        row.push(variant.recovery.map_or_else(|| none(None), |back| estimate(&back, 100.0, 0)));
        table.add(row);
    }
    table
}

/// What is to be kept, and how it adds up from the first layer on.
fn notes(found: &Localization) -> Vec<String> {
    let mut notes = Vec::new();
    match (&found.keep, &found.keep_reason) {
        (Some(Keep { blocks, of, recovery }), _) => {
            let back = recovery.map_or_else(
                || "an unknown part".to_owned(),
                |back| match back.ci95 {
                    Some([low, high]) => format!(
                        "{} (95 % interval {} to {})",
                        percent(Some(back.value)),
                        percent(Some(low)),
                        percent(Some(high))
                    ),
                    None => percent(Some(back.value)),
                },
            );
            notes.push(format!(
                "The smallest set found: keep {} of {of} matrices at full precision and {back} comes back, below {}: {}.",
                blocks.len(),
                percent(Some(found.held_below)),
                listed(blocks)
            ));
        }
        (None, Some(reason)) => notes.push(format!("No matrices to keep: {reason}.")),
        (None, None) => {}
    }
    let prefixes = found.variants.iter().filter(|variant| variant.kind == "prefix");
    let prefix = |variant: &Variant| {
        let back = percent(variant.recovery.map(|back| back.value));
        format!("{} of them {back}", variant.layers.unwrap_or_default())
    };
    let prefixes: Vec<_> = prefixes.map(prefix).collect();
    if !prefixes.is_empty() {
        notes.push(format!("With nothing but the first layers quantized: {}.", listed(&prefixes)));
    }
    let device = &found.device;
    notes.push(format!("Measured on {} ({}, {}).", device.name, device.backend, device.kind));
    notes
}
