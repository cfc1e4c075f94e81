//! Ctrl-C: once to stop when it is convenient, twice to stop at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::output;
use crate::error::Error;

/// What a signal does.
#[derive(Debug, Default)]
struct State {
    /// Whether the user wants no more.
    stop: Arc<AtomicBool>,
    /// Whether nothing would be lost by stopping at once.
    at_once: AtomicBool,
    /// The folder that the run can be resumed from.
    folder: Mutex<Option<PathBuf>>,
}

static STATE: OnceLock<State> = OnceLock::new();

fn state() -> &'static State {
    STATE.get_or_init(State::default)
}

/// Listens to Ctrl-C from now on; true once the user wants no more.
pub(super) fn listen() -> Arc<AtomicBool> {
    let stop = state().stop.clone();
    // Where there are no signals to listen to, Ctrl-C kills; what was measured is on the disk all the same.
    let _ = ctrlc::set_handler(|| {
        let state = state();
        let again = state.stop.swap(true, Ordering::Relaxed);
        if again || state.at_once.load(Ordering::Relaxed) {
            let error = interrupted();
            output::error(&error);
            std::process::exit(i32::from(error.exit_code()));
        }
        output::notice("stopping after this pass; Ctrl-C again stops at once");
    });
    stop
}

/// Whether the user wants no more.
///
/// # Errors
///
/// [`Error::Interrupted`] if so.
pub(super) fn check() -> Result<(), Error> {
    if state().stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
}

/// From now on nothing would be lost by stopping at once.
pub(super) fn at_once() {
    state().at_once.store(true, Ordering::Relaxed);
}

/// Says where a run that is stopped goes on from.
pub(super) fn resume_from(folder: Option<PathBuf>) {
    *state().folder.lock().unwrap_or_else(PoisonError::into_inner) = folder;
}

/// The error of a run that the user stopped.
pub(super) fn interrupted() -> Error {
    let resume = state().folder.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Error::Interrupted { resume }
}
