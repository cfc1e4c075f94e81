//! How much work a launch is, and launches that are too long cut into ranges of tokens.

use std::ops::Range;

use crate::gpu::Commands;

/// Floating-point operations that a device does in the time of moving one byte: between 2 on a CPU and
/// about 20 on large GPUs.
const OPERATIONS_PER_BYTE: usize = 8;

/// Tokens that a launch has at least: fewer would leave most lanes of a workgroup idle.
const FEWEST: usize = 8;

/// Buffers can be bound from multiples of this many bytes on every device.
const ALIGNMENT: usize = 256;

/// Work of moving `bytes`.
pub(super) fn moving(bytes: usize) -> u64 {
    (OPERATIONS_PER_BYTE * bytes) as u64
}

/// Ranges of the tokens `0..t` for launches of no more work than `commands` allows, with each one's work. `work` is a
/// token's; `row_bytes` are the bytes of a token in each buffer that is bound from the range's first token on.
///
/// A token's arithmetic does not depend on the range it is in.
pub(super) fn token_ranges(
    commands: &Commands,
    t: usize,
    row_bytes: &[usize],
    work: impl Fn(usize) -> u64,
) -> Vec<(Range<usize>, u64)> {
    let aligned = |step: &usize| row_bytes.iter().all(|bytes| (step * bytes).is_multiple_of(ALIGNMENT));
    let steps = [FEWEST, 2 * FEWEST, 4 * FEWEST, 8 * FEWEST];
    // A row has whole words, so that 64 rows are always aligned.
    let step = steps.into_iter().find(aligned).unwrap_or(ALIGNMENT);
    let mut ranges: Vec<(Range<usize>, u64)> = Vec::new();
    for first in (0..t).step_by(step) {
        let block = first..t.min(first + step);
        let more: u64 = block.clone().map(&work).sum();
        match ranges.last_mut() {
            Some((range, sum)) if ((*sum + more) as f64) <= commands.longest_launch() => {
                range.end = block.end;
                *sum += more;
            }
            _ => ranges.push((block, more)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(longest: f64, t: usize, row_bytes: &[usize]) -> Vec<Range<usize>> {
        let commands = Commands::with_longest_launch(longest);
        let ranges = token_ranges(&commands, t, row_bytes, |token| token as u64);
        for (range, work) in &ranges {
            assert_eq!(*work, range.clone().map(|token| token as u64).sum::<u64>());
        }
        ranges.into_iter().map(|(range, _)| range).collect()
    }

    #[test]
    fn ranges_cover_all_tokens_and_keep_the_limit() {
        assert_eq!(ranges(f64::INFINITY, 70, &[4]), vec![0..70]);
        assert_eq!(ranges(0.0, 20, &[256]), [0..8, 8..16, 16..20]);
        // 0 + ... + 15 is 120, 16 + ... + 23 is 156.
        assert_eq!(ranges(130.0, 30, &[256]), [0..16, 16..24, 24..30]);
        assert!(ranges(0.0, 0, &[256]).is_empty());
    }

    #[test]
    fn ranges_begin_where_buffers_can_be_bound() {
        assert_eq!(ranges(0.0, 70, &[256, 4]), [0..64, 64..70]);
        assert_eq!(ranges(0.0, 40, &[32, 16]), [0..16, 16..32, 32..40]);
    }
}
