//! How far a run is, on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;

/// Least time between two lines where stderr is not a terminal.
const QUIET: Duration = Duration::from_secs(30);

/// A bar with the time left on a terminal; elsewhere a plain line for each arm, and one every 30 s within an arm.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    unit: &'static str,
    name: String,
    index: usize,
    total: usize,
    tasks: usize,
    begun: Instant,
    said: Instant,
}

impl Progress {
    /// `unit` is what an arm's tasks are called.
    pub(super) fn new(unit: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{wide_bar:.dim} {percent:>3} %  {msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self { bar, unit, name: String::new(), index: 0, total: 0, tasks: 0, begun: now, said: now }
    }

    /// Arm `index` of `total` begins; it has `tasks` tasks, as every arm has.
    pub(super) fn arm(&mut self, name: &str, index: usize, total: usize, tasks: usize) {
        (self.index, self.total, self.tasks) = (index, total, tasks);
        self.name = format!("[{}/{total}] {name}", index + 1);
        (self.begun, self.said) = (Instant::now(), Instant::now());
        if let Some(bar) = &self.bar {
            bar.set_length((total * tasks) as u64);
            bar.set_message(self.name.clone());
        }
    }

    /// The arm has answered `done` tasks.
    pub(super) fn task(&mut self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position((self.index * self.tasks + done) as u64);
        } else if self.said.elapsed() >= QUIET {
            self.said = Instant::now();
            let left = self.left(done).map_or_else(String::new, |left| format!(", about {left} s left"));
            say(&format!("{}: {done} of {} {}{left}", self.name, self.tasks, self.unit));
        }
    }

    /// Seconds that the arm still takes if it goes on as it went so far.
    fn left(&self, done: usize) -> Option<u64> {
        let tasks = self.tasks.checked_sub(done)? as u64;
        (self.begun.elapsed().as_secs() * tasks).checked_div(done as u64)
    }

    /// The arm is measured.
    pub(super) fn arm_done(&mut self) {
        if self.bar.is_none() {
            say(&format!("{}: {:.1} s", self.name, self.begun.elapsed().as_secs_f64()));
        }
    }

    /// Nothing more comes; the result follows.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
