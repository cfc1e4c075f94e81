//! Timing a launch on the device, as the tuners do.

use std::time::Instant;

use crate::error::Result;
use crate::gpu::{Commands, Gpu};

/// A timed submission lasts about so long, in seconds, in no more than so many launches.
const SECONDS: f64 = 0.001;
const MAX_LAUNCHES: f64 = 64.0;

/// Launches that fill a timed submission, of which one takes `once` seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to MAX_LAUNCHES")]
pub(super) fn launches(once: f64) -> usize {
    (SECONDS / once.max(1e-9)).clamp(1.0, MAX_LAUNCHES) as usize
}

/// Wall seconds of one submission in which `record` is called so many times.
pub(super) fn seconds(gpu: &Gpu, launches: usize, record: &dyn Fn(&mut Commands)) -> Result<f64> {
    let mut commands = Commands::new();
    for _ in 0..launches {
        record(&mut commands);
    }
    let start = Instant::now();
    commands.submit(gpu)?;
    gpu.wait("a trial")?;
    Ok(start.elapsed().as_secs_f64())
}

/// Wall seconds of what `record` records once: the best of `runs` submissions of several, after two to warm up.
pub(super) fn best(gpu: &Gpu, runs: usize, record: &dyn Fn(&mut Commands)) -> Result<f64> {
    // Drivers finish compiling at the first launch.
    seconds(gpu, 1, record)?;
    let mut best = seconds(gpu, 1, record)?;
    let launches = launches(best);
    for _ in 0..runs {
        best = best.min(seconds(gpu, launches, record)? / launches as f64);
    }
    Ok(best)
}
