//! The smallest set of blocks that, kept at full precision, keeps the rest from bringing the forgotten back.

use super::part::{Block, Part};
use super::{Estimate, Row};
use crate::error::Result;

/// Variants that are asked at a time.
const WIDTH: usize = 16;

/// Largest set that is searched for blocks it can do without: each of them takes a variant, again and again.
const PRUNED: usize = 32;

/// Blocks to keep at full precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// In the order in which their own quantization brings most back. No block of them can be left out, if there are not
    /// more than 32; another set of as many or fewer blocks may do as well.
    pub blocks: Vec<Block>,
    /// What comes back with all others quantized.
    pub recovery: Option<Estimate>,
}

/// Finds the set: the blocks that bring most back first, as many as it takes; then those are dropped that are not needed.
///
/// `None` if the full quantization holds as it is, if there are no rows of blocks, or if not even keeping all of them would
/// do. A variant holds if the interval of its recovery lies below `threshold`.
pub(super) fn smallest(
    rows: &[Row],
    threshold: f64,
    ask: &mut dyn FnMut(&[Part]) -> Result<Vec<Row>>,
) -> Result<Option<Kept>> {
    let holds = |row: &Row| {
        row.recovery
            .is_some_and(|recovery| recovery.ci95.map_or(recovery.value, |[_, high]| high) < threshold)
    };
    let all = rows.iter().find(|row| row.part == Part::All);
    let mut order: Vec<(f64, Block)> = rows
        .iter()
        .filter_map(|row| match (&row.part, row.recovery) {
            (Part::Block(block), Some(recovery)) => Some((recovery.value, *block)),
            _ => None,
        })
        .collect();
    if order.is_empty() || all.is_none_or(|all| holds(all) || all.recovery.is_none()) {
        return Ok(None);
    }
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let order: Vec<Block> = order.into_iter().map(|(_, block)| block).collect();
    let but = |count: usize| Part::AllBut(order[..count].to_vec());

    // The first count at which it holds, between one that does not and one that is taken to.
    let (mut low, mut high) = (0, order.len());
    let mut found: Option<Row> = None;
    while high - low > 1 {
        let counts: Vec<usize> = if high - low <= WIDTH {
            (low + 1..high).collect()
        } else {
            (1..WIDTH).map(|step| low + (high - low) * step / WIDTH).collect()
        };
        let parts: Vec<_> = counts.iter().map(|count| but(*count)).collect();
        let answers = ask(&parts)?;
        let first = answers.iter().position(holds);
        let done = high - low <= WIDTH;
        match first {
            Some(first) => {
                low = if first == 0 { low } else { counts[first - 1] };
                high = counts[first];
                found = answers.into_iter().nth(first);
            }
            None => low = counts.last().copied().unwrap_or(low),
        }
        if done {
            break;
        }
    }
    let Some(mut best) = found else { return Ok(None) };

    let mut blocks = order[..high].to_vec();
    while blocks.len() > 1 && blocks.len() <= PRUNED {
        let without = |left_out: usize| {
            let rest = blocks.iter().enumerate().filter(|(index, _)| *index != left_out);
            Part::AllBut(rest.map(|(_, block)| *block).collect())
        };
        let parts: Vec<_> = (0..blocks.len()).map(without).collect();
        let value = |row: &Row| row.recovery.map_or(f64::INFINITY, |recovery| recovery.value);
        let answers = ask(&parts)?.into_iter().enumerate().filter(|(_, row)| holds(row));
        let Some((least, row)) = answers.min_by(|(_, a), (_, b)| value(a).total_cmp(&value(b))) else {
            break;
        };
        blocks.remove(least);
        best = row;
    }
    Ok(Some(Kept { blocks, recovery: best.recovery }))
}
