//! How far a run is, on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log;
use super::output::{is_quiet, mention};

/// Least time between two lines where stderr is not a terminal.
const QUIET: Duration = Duration::from_secs(30);

/// A bar with the time left on a terminal; elsewhere a plain line for each part of the work, and one every 30 s within
/// a part.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    unit: &'static str,
    name: String,
    before: usize,
    all: usize,
    /// Of the part, what was there at its beginning.
    there: Option<usize>,
    begun: Instant,
    said: Instant,
}

impl Progress {
    /// `unit` is what is counted.
    pub(super) fn new(unit: &'static str) -> Self {
        let bar = (std::io::stderr().is_terminal() && !is_quiet()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{wide_bar:.dim} {percent:>3} %  {msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self { bar, unit, name: String::new(), before: 0, all: 0, there: None, begun: now, said: now }
    }

    /// A part begins; `before` of `all` are done.
    pub(super) fn part(&mut self, name: &str, before: usize, all: usize) {
        (self.before, self.all) = (before, all);
        name.clone_into(&mut self.name);
        (self.begun, self.said, self.there) = (Instant::now(), Instant::now(), None);
        if let Some(bar) = &self.bar {
            bar.set_length(all as u64);
            bar.set_position(before as u64);
            bar.set_message(self.name.clone());
        }
    }

    /// The part has done so many.
    pub(super) fn done(&mut self, done: usize) {
        // The first of several was not done in no time.
        self.there.get_or_insert(if done > 1 { done } else { 0 });
        if let Some(bar) = &self.bar {
            bar.set_position((self.before + done) as u64);
        } else if self.said.elapsed() >= QUIET {
            self.said = Instant::now();
            let left = self.left(done).map_or_else(String::new, |left| format!(", about {left} s left"));
            mention(&format!("{}: {} of {} {}{left}", self.name, self.before + done, self.all, self.unit));
        }
    }

    /// Seconds that the rest still takes if it goes on as this part went so far.
    fn left(&self, done: usize) -> Option<u64> {
        let rest = self.all.checked_sub(self.before + done)? as u64;
        (self.begun.elapsed().as_secs() * rest).checked_div(done.checked_sub(self.there.unwrap_or(0))? as u64)
    }

    /// The part is done.
    pub(super) fn part_done(&mut self) {
        let line = format!("{}: {:.1} s", self.name, self.begun.elapsed().as_secs_f64());
        if self.bar.is_none() { mention(&line) } else { log::keep(&line) }
    }

    /// Nothing more comes; the result follows.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A [`Progress`] of something that comes in large numbers, counted by so many of them, and only shown once there is
/// some.
pub(super) struct Amount {
    unit: &'static str,
    /// Of the power of 2 that one step stands for.
    step_bits: u32,
    progress: Option<Progress>,
    current: String,
}

impl Amount {
    /// Weights, by the million.
    pub(super) fn weights() -> Self {
        Self::new("million weights", 20)
    }

    /// Bytes, by the MiB.
    pub(super) fn bytes() -> Self {
        Self::new("MiB", 20)
    }

    fn new(unit: &'static str, step_bits: u32) -> Self {
        Self { unit, step_bits, progress: None, current: String::new() }
    }

    /// Of the part of this name, `done` of `total` are done.
    pub(super) fn show(&mut self, name: &str, done: u64, total: u64) {
        let [done, total] =
            [done, total].map(|count| usize::try_from(count >> self.step_bits).unwrap_or(usize::MAX));
        let progress = self.progress.get_or_insert_with(|| Progress::new(self.unit));
        if self.current != name {
            name.clone_into(&mut self.current);
            progress.part(name, 0, total);
        }
        progress.done(done);
    }

    /// Nothing more comes; the result follows.
    pub(super) fn finish(self) {
        if let Some(mut progress) = self.progress {
            progress.finish();
        }
    }
}
