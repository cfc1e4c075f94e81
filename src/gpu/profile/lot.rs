//! Which submissions are timed, and which part of them.

/// Passes shorter than this, in seconds, are slowed by a stamp by about one percent.
const TELLING: f64 = 0.007;

/// At least one submission in so many is timed.
const RAREST: f64 = 128.0;

/// Before anything is known.
const START: f64 = 2.0;

/// Passes timed in a submission of short ones.
const FEW: usize = 32;

/// Decides which submissions are timed. They are drawn by lot, not counted off: submissions come in patterns.
#[derive(Debug)]
pub(super) struct Lot {
    one_in: f64,
    /// Submissions to let pass before the next one that is timed.
    skip: u64,
    random: u64,
}

impl Default for Lot {
    fn default() -> Self {
        Self { one_in: START, skip: 0, random: 1 }
    }
}

impl Lot {
    /// Whether this submission is timed.
    pub(super) fn draw(&mut self) -> bool {
        if let Some(less) = self.skip.checked_sub(1) {
            self.skip = less;
            return false;
        }
        self.skip = self.below(2.0 * self.one_in - 1.0);
        true
    }

    /// A number from 0 to less than `end`, rounded down.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
    fn below(&mut self, end: f64) -> u64 {
        // Knuth's MMIX generator; its upper bits are good.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 40) as f64 / f64::from(1 << 24) * end) as u64
    }

    /// The first launch to time of `launches`, and how many passes.
    pub(super) fn window(&mut self, launches: usize) -> (usize, usize) {
        if self.one_in <= 1.0 {
            return (0, usize::MAX);
        }
        let last = launches.saturating_sub(FEW);
        (usize::try_from(self.below(last as f64 + 1.0)).unwrap_or(0), FEW)
    }

    /// Learns that `passes` took `seconds`.
    pub(super) fn observe(&mut self, passes: usize, seconds: f64) {
        self.one_in = (TELLING * passes as f64 / seconds.max(1e-9)).clamp(1.0, RAREST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_passes_are_timed_now_and_then() {
        let mut lot = Lot::default();
        let drawn = |lot: &mut Lot| (0..10_000).filter(|_| lot.draw()).count();
        lot.observe(10, 10.0 * TELLING);
        assert_eq!(lot.window(500), (0, usize::MAX));
        assert_eq!(drawn(&mut lot), 10_000);
        lot.observe(10, 10.0 * TELLING / 8.0);
        let some = drawn(&mut lot);
        assert!((1100..1400).contains(&some), "{some}");
        lot.observe(10, 0.0);
        let few = drawn(&mut lot);
        assert!((50..120).contains(&few), "{few}");
        let starts: Vec<_> = (0..1000).map(|_| lot.window(40).0).collect();
        assert!((0..=8).all(|start| starts.contains(&start)) && starts.iter().all(|start| *start <= 8));
        assert_eq!(lot.window(3), (0, FEW));
    }
}
