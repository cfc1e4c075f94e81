//! How far a run is, on stderr.
//!
//! A JSON line of progress (`--log-format json`) has the fields `part` (which arms, or which file), `stage` (`loading`,
//! `scoring`, `generating`, `reading`, `comparing`, `rounding` or `done`), `done`, `total`, `unit`, `seconds` (since the part began),
//! `tokens_per_second` and `eta_seconds`; the last two are `null` while they are not known.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Map, json};

use super::log as run_log;
use super::meter;
use super::stderr::{Level, is_json, is_quiet, mention, set_bar};

/// Time between two lines where there is no bar.
const SILENCE: Duration = Duration::from_secs(30);

/// No time left is foretold from less than one part in so many of the rest: the first answers are the short ones.
const FORETOLD: u64 = 50;

/// A bar with pace and time left on a terminal; elsewhere a line for each part of the work, and one every 30 s within a
/// part, whether or not anything was finished.
pub(super) struct Progress {
    state: Arc<Mutex<State>>,
    bar: Option<ProgressBar>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

/// How far a part of the work is.
#[derive(Clone, Debug)]
struct State {
    unit: &'static str,
    /// What is done, if it is not passes over the weights.
    stage: Option<&'static str>,
    part: String,
    /// Done before the part.
    before: usize,
    /// Done in the part.
    done: usize,
    all: usize,
    /// Of the part, what was there at its beginning.
    there: Option<usize>,
    /// Tokens before the part.
    tokens: u64,
    begun: Instant,
    said: Instant,
    /// Whether a part is under way.
    running: bool,
}

impl State {
    fn new(unit: &'static str, stage: Option<&'static str>) -> Self {
        let now = Instant::now();
        Self {
            unit,
            stage,
            part: String::new(),
            before: 0,
            done: 0,
            all: 0,
            there: None,
            tokens: 0,
            begun: now,
            said: now,
            running: false,
        }
    }

    fn stage(&self) -> &'static str {
        self.stage.unwrap_or_else(meter::stage)
    }

    fn position(&self) -> usize {
        self.before + self.done
    }

    /// Tokens a second, if any were computed.
    fn pace(&self) -> Option<f64> {
        let tokens = meter::tokens().saturating_sub(self.tokens);
        let seconds = self.begun.elapsed().as_secs_f64();
        (self.stage.is_none() && tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Seconds that the rest still takes if it goes on as this part went so far, once enough is done to tell.
    fn left(&self) -> Option<u64> {
        let rest = self.all.checked_sub(self.position())? as u64;
        let done = self.done.checked_sub(self.there.unwrap_or(0))? as u64;
        let enough = done * FORETOLD >= rest;
        (self.begun.elapsed().as_secs() * rest).checked_div(done).filter(|_| enough)
    }

    /// Pace and time left, as far as they are known.
    fn outlook(&self) -> impl Iterator<Item = String> {
        let pace = self.pace().map(|pace| format!("{pace:.0} tokens/s"));
        let left = self.left().map(|left| format!("{} left", span(left)));
        pace.into_iter().chain(left)
    }

    /// The line that is due after a silence.
    fn line(&self) -> String {
        let Self { part, unit, all, .. } = self;
        let done = format!("{part}, {}: {} of {all} {unit}", self.stage(), self.position());
        [done].into_iter().chain(self.outlook()).collect::<Vec<_>>().join(", ")
    }

    fn fields(&self, stage: &str) -> Map<String, serde_json::Value> {
        let fields = [
            ("part", json!(self.part)),
            ("stage", json!(stage)),
            ("done", json!(self.position())),
            ("total", json!(self.all)),
            ("unit", json!(self.unit)),
            ("seconds", json!(self.begun.elapsed().as_secs_f64())),
            ("tokens_per_second", json!(self.pace())),
            ("eta_seconds", json!(self.left())),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Says how far the part is if nothing was said of it for so long.
    fn speak(&mut self, silence: Duration) {
        if self.running && self.said.elapsed() >= silence {
            self.said = Instant::now();
            mention(Level::Info, &self.line(), &self.fields(self.stage()));
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds for people.
fn span(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

impl Progress {
    /// Of passes over the weights; `unit` is what is counted.
    pub(super) fn new(unit: &'static str) -> Self {
        Self::of(State::new(unit, None))
    }

    fn of(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let bar = shows_bars().then(|| bar(&state));
        set_bar(bar.clone());
        let ticker = if bar.is_none() { ticker(&state, SILENCE) } else { None };
        Self { state, bar, ticker }
    }

    /// A part begins; `before` of `all` are done.
    pub(super) fn part(&mut self, name: &str, before: usize, all: usize) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let State { unit, stage, .. } = *state;
        *state = State {
            before,
            all,
            tokens: meter::tokens(),
            begun: now,
            said: now,
            running: true,
            ..State::new(unit, stage)
        };
        name.clone_into(&mut state.part);
        drop(state);
        meter::loading();
        if let Some(bar) = &self.bar {
            bar.set_length(all as u64);
            bar.set_position(before as u64);
            bar.set_message(name.to_owned());
        }
    }

    /// The part has done so many.
    pub(super) fn done(&mut self, done: usize) {
        let mut state = lock(&self.state);
        // The first of several was not done in no time.
        state.there.get_or_insert(if done > 1 { done } else { 0 });
        state.done = done;
        if let Some(bar) = &self.bar {
            let position = state.position();
            // The bar asks for the state when it is drawn.
            drop(state);
            bar.set_position(position as u64);
        }
    }

    /// The part is done.
    pub(super) fn part_done(&mut self) {
        let state = self.end_part();
        let (pace, seconds) = (state.pace(), state.begun.elapsed().as_secs_f64());
        let pace = pace.map_or_else(String::new, |pace| format!(", {pace:.0} tokens/s"));
        let line = format!("{}: {seconds:.1} s{pace}", state.part);
        if self.bar.is_none() {
            mention(Level::Info, &line, &state.fields("done"));
        } else {
            run_log::keep(&line);
        }
    }

    /// Nothing more is said of the part; how far it came.
    fn end_part(&self) -> State {
        let mut state = lock(&self.state);
        state.running = false;
        state.clone()
    }

    /// Nothing more comes; the result follows.
    pub(super) fn finish(&mut self) {
        self.end_part();
        if let Some(bar) = self.bar.take() {
            set_bar(None);
            bar.finish_and_clear();
        }
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            // It only ever prints.
            let _ = thread.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Whether stderr is a terminal that can show a bar, and is for people.
fn shows_bars() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
    std::io::stderr().is_terminal() && !dumb && !is_quiet() && !is_json()
}

fn bar(state: &Arc<Mutex<State>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // What does not fit the terminal is cut off the name.
    let style = ProgressStyle::with_template("{bar:10} {percent:>3} %{outlook}  {wide_msg}");
    let shown = state.clone();
    let outlook = move |_: &ProgressState, text: &mut dyn Write| {
        let state = lock(&shown);
        for part in [state.stage().to_owned()].into_iter().chain(state.outlook()) {
            let _ = write!(text, "  {part}");
        }
    };
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("outlook", outlook);
    bar.set_style(style.progress_chars("━╸─"));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Says every so often how far it is, even in the midst of a long pass.
fn ticker(state: &Arc<Mutex<State>>, silence: Duration) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel();
    let state = state.clone();
    let tick = move || {
        while stopped.recv_timeout(silence.min(Duration::from_secs(1))) == Err(RecvTimeoutError::Timeout) {
            lock(&state).speak(silence);
        }
    };
    // Without a thread there is no progress, which is no reason to stop.
    let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(tick).ok()?;
    Some((stop, thread))
}

/// A [`Progress`] of something that comes in large numbers, counted by so many of them, and only shown once there is
/// some.
pub(super) struct Amount {
    unit: &'static str,
    stage: &'static str,
    /// How many one step stands for.
    step: u64,
    progress: Option<Progress>,
    current: String,
}

impl Amount {
    /// Weights, by the million; `stage` is what is done with them.
    pub(super) fn weights(stage: &'static str) -> Self {
        Self::new("million weights", stage, 1_000_000)
    }

    /// Bytes, by the MiB.
    pub(super) fn bytes() -> Self {
        Self::new("MiB", "reading", 1 << 20)
    }

    fn new(unit: &'static str, stage: &'static str, step: u64) -> Self {
        Self { unit, stage, step, progress: None, current: String::new() }
    }

    /// Of the part of this name, `done` of `total` are done.
    pub(super) fn show(&mut self, name: &str, done: u64, total: u64) {
        let [done, total] =
            [done, total].map(|count| usize::try_from(count / self.step).unwrap_or(usize::MAX));
        if self.current != name {
            self.part_done();
            name.clone_into(&mut self.current);
            let new = || Progress::of(State::new(self.unit, Some(self.stage)));
            self.progress.get_or_insert_with(new).part(name, 0, total);
        }
        if let Some(progress) = &mut self.progress {
            progress.done(done);
        }
    }

    /// What took no time worth a line is only said to those who ask.
    fn part_done(&self) {
        let Some(state) = self.progress.as_ref().map(Progress::end_part) else { return };
        let seconds = state.begun.elapsed().as_secs_f64();
        log::debug!(
            part = state.part.as_str(), stage = state.stage(), done = state.done, total = state.all, unit = state.unit,
            seconds;
            "{}: {} {} in {seconds:.2} s", state.part, state.done, state.unit
        );
    }

    /// Nothing more comes; the result follows.
    pub(super) fn finish(self) {
        self.part_done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let begun = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        State {
            part: "[1-6/6] a to b".to_owned(),
            before: 10,
            done: 25,
            there: Some(5),
            all: 95,
            begun,
            said: begun,
            running: true,
            ..State::new("answers", Some("reading"))
        }
    }

    #[test]
    fn lines_say_how_far_it_is() {
        let line = state().line();
        // 20 in 100 s, 60 are left.
        assert_eq!(line, "[1-6/6] a to b, reading: 35 of 95 answers, 5 min 00 s left");
        let fields = state().fields("reading");
        assert_eq!(
            (&fields["done"], &fields["total"], &fields["eta_seconds"]),
            (&json!(35), &json!(95), &json!(300))
        );
        assert_eq!((&fields["stage"], &fields["tokens_per_second"]), (&json!("reading"), &json!(null)));
    }

    #[test]
    fn nothing_is_foretold_from_nothing() {
        let none = State { done: 5, ..state() };
        assert_eq!(none.line(), "[1-6/6] a to b, reading: 15 of 95 answers");
        assert_eq!(none.fields("reading")["eta_seconds"], json!(null));
        let little = State { done: 6, all: 95_000, ..state() };
        assert_eq!(little.line(), "[1-6/6] a to b, reading: 16 of 95000 answers");
    }

    #[test]
    fn silence_ends_after_a_while() {
        let mut state = state();
        let before = state.said;
        state.speak(Duration::from_secs(200));
        assert_eq!(state.said, before);
        state.speak(SILENCE);
        assert!(state.said > before, "it was said");
        let shared = Arc::new(Mutex::new(State { said: before, ..state.clone() }));
        let (stop, thread) = ticker(&shared, Duration::from_millis(1)).unwrap();
        while lock(&shared).said == before {
            std::thread::yield_now();
        }
        drop(stop);
        thread.join().unwrap();
        // A part that is over is not spoken of.
        let mut over = State { said: before, running: false, ..state };
        over.speak(Duration::ZERO);
        assert_eq!(over.said, before);
    }

    #[test]
    fn spans_are_readable() {
        assert_eq!([7, 61, 3661].map(span), ["7 s", "1 min 01 s", "1 h 01 min"]);
    }
}
