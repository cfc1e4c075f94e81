//! How much work is handed over at once, learned from what earlier work took.
//!
//! Windows ends a submission that runs for two seconds, macOS an earlier one, so work goes to the device in
//! short pieces. How much fits into one is different on every device and not told by any, so it is measured.

use std::time::Duration;

/// What one submission should take. Half as much again is still harmless.
const TARGET: Duration = Duration::from_millis(200);

/// The part of a submission that one launch may take: 80 ms.
const LAUNCH_SHARE: f64 = 0.4;

/// Work of a submission before anything is known: 200 ms on a device of 10 GFLOP/s.
const START: f64 = 2e9;

/// A device slower than this is given up to: pieces do not become smaller.
const LEAST: f64 = 1e6;

/// Shorter than this, what a submission took may be overhead and says only that it was not too much.
const TELLING: Duration = Duration::from_millis(20);

/// The most work to hand over at once, in floating-point operations as the kernels estimate them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    piece: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { piece: START }
    }
}

impl Pace {
    /// Work for one submission.
    pub(super) fn piece(self) -> f64 {
        self.piece
    }

    /// Work for one launch.
    pub(super) fn launch(self) -> f64 {
        LAUNCH_SHARE * self.piece
    }

    /// Learns from a submission of `work` that took `took`; `late` if it was finished some time before it was
    /// looked at, so that it took no more than that.
    ///
    /// Grows by at most twice a submission, shrinks at once.
    pub(super) fn observe(&mut self, work: f64, took: Duration, late: bool) {
        let grown = if took < TELLING {
            // Too short to tell how fast the device is: more is tried if this was about a full piece.
            if work < self.piece / 2.0 {
                return;
            }
            2.0 * self.piece
        } else {
            (work * TARGET.as_secs_f64() / took.as_secs_f64()).min(2.0 * self.piece)
        };
        if !late || grown > self.piece {
            self.piece = grown.max(LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that does `rate` operations a second after an overhead of a millisecond, by a fake clock.
    fn took(rate: f64, work: f64) -> Duration {
        Duration::from_millis(1) + Duration::from_secs_f64(work / rate)
    }

    #[test]
    fn it_settles_at_the_target_on_slow_and_fast_devices() {
        for rate in [1e8, 1e9, 1.6e10, 1e12, 1e14] {
            let mut pace = Pace::default();
            let mut before = pace.piece();
            for _ in 0..30 {
                pace.observe(before, took(rate, before), false);
                assert!(pace.piece() <= 2.0 * before, "{rate:e}: {before:e} to {:e}", pace.piece());
                // Once it has been measured, no submission is too long, not even on the way.
                assert!(took(rate, pace.piece()) < Duration::from_millis(300), "{rate:e}");
                before = pace.piece();
            }
            let settled = took(rate, pace.piece());
            assert!(
                settled > Duration::from_millis(150) && settled < Duration::from_millis(250),
                "{settled:?}"
            );
            let launch = Duration::from_secs_f64(pace.launch() / rate);
            assert!(launch < Duration::from_millis(100), "{launch:?}");
        }
    }

    #[test]
    fn it_shrinks_at_once_when_the_device_slows_down() {
        let mut pace = Pace { piece: 2e12 };
        pace.observe(2e12, took(1e12, 2e12), false);
        assert!(took(1e12, pace.piece()) < Duration::from_millis(250), "{pace:?}");
        // A part of a piece that took long shrinks it as well.
        pace.observe(0.1 * pace.piece(), Duration::from_millis(400), false);
        assert!(pace.piece() < 0.1 * 2e11, "{pace:?}");
        pace.observe(1.0, Duration::from_secs(3600), false);
        assert!(pace.piece() >= LEAST, "{pace:?}");
    }

    #[test]
    fn small_or_late_submissions_do_not_shrink_it() {
        let mut pace = Pace::default();
        // Mostly overhead.
        pace.observe(1e6, Duration::from_millis(5), false);
        assert_eq!(pace.piece().to_bits(), START.to_bits());
        // Looked at a second after it was finished, perhaps.
        pace.observe(1e9, Duration::from_secs(1), true);
        assert_eq!(pace.piece().to_bits(), START.to_bits());
        // Even so it was fast.
        pace.observe(START, Duration::from_millis(2), true);
        assert_eq!(pace.piece().to_bits(), (2.0 * START).to_bits());
    }
}
