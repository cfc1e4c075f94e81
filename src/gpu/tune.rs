//! Which of several equivalent kernels is fastest here: timed once, remembered in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use super::{DeviceInfo, Gpu, Source};
use crate::error::Result;

/// Of the file's layout.
const VERSION: u32 = 1;

/// Where choices between kernels come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// The safe default always.
    #[default]
    Off,
    /// The file's choice; what is not there is timed.
    Remembered,
    /// Everything is timed; the file is rewritten.
    Afresh,
}

/// The folder of the user's caches, if this system has one.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("undertext"))
}

/// The file of one device.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    device: String,
    choices: BTreeMap<String, Choice>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Choice {
    /// Of the candidates' texts: a changed shader is timed again.
    shaders: String,
    kernel: String,
}

/// What was chosen so far, and where it is kept.
#[derive(Debug, Default)]
pub(super) struct Tuner {
    tuning: Tuning,
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: File,
    /// In this run, by class.
    chosen: BTreeMap<String, String>,
    /// Choices that go before all others, and the file that remembers them.
    kept: Option<(PathBuf, File)>,
}

impl Tuner {
    fn new(info: &DeviceInfo, tuning: Tuning, folder: Option<&Path>) -> Self {
        let device = format!("{} ({}), {}", info.name, info.backend, info.driver);
        let path = folder.map(|folder| folder.join(format!("kernels-{}.json", hash([device.as_bytes()]))));
        let file = path
            .as_ref()
            .filter(|_| tuning == Tuning::Remembered)
            .and_then(|path| load(path, &device))
            .unwrap_or_else(|| File { version: VERSION, device, choices: BTreeMap::new() });
        Self { tuning, path, state: Mutex::new(State { file, ..State::default() }) }
    }
}

/// A file of this version for this device. One that is missing, broken, of another version or of another device is none.
fn load(path: &Path, device: &str) -> Option<File> {
    let file: File = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (file.version == VERSION && file.device == device).then_some(file)
}

/// Writes the whole file or nothing. That it cannot be written only means timing again next time.
fn save(path: &Path, file: &File) -> Option<()> {
    let folder = path.parent()?;
    std::fs::create_dir_all(folder).ok()?;
    let written = tempfile::NamedTempFile::new_in(folder).ok()?;
    serde_json::to_writer_pretty(&written, file).ok()?;
    written.persist(path).ok().map(drop)
}

/// FNV-1a of the parts, the same in every build.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // 0xff ends a part: no UTF-8 text holds it.
        for byte in part.iter().chain(&[0xff]) {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{state:016x}")
}

impl Gpu {
    /// Lets kernels be chosen by what is fast here. The file lies in `folder`; without one every run times anew.
    #[must_use]
    pub fn with_tuning(mut self, tuning: Tuning, folder: Option<&Path>) -> Self {
        self.tuner = Tuner::new(self.info(), tuning, folder);
        self
    }

    /// Makes the choices that the file at `path` holds before any other, and keeps in it what is chosen from now on: a run
    /// that goes on later computes with the kernels that it began with. Without tuning there is nothing to keep.
    pub fn keep_choices(&self, path: &Path) {
        if self.tuner.tuning == Tuning::Off {
            return;
        }
        let mut state = self.tuner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let device = state.file.device.clone();
        let empty = || File { version: VERSION, device: device.clone(), choices: BTreeMap::new() };
        let kept = load(path, &device).unwrap_or_else(empty);
        state.kept = Some((path.to_path_buf(), kept));
    }

    /// The kernels chosen since the device was opened, and those that were kept, by class of problem.
    #[must_use]
    pub fn chosen_kernels(&self) -> BTreeMap<String, String> {
        let state = self.tuner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = state.kept.iter().flat_map(|(_, file)| &file.choices);
        let mut all: BTreeMap<_, _> =
            kept.map(|(class, choice)| (class.clone(), choice.kernel.clone())).collect();
        all.extend(state.chosen.clone());
        all
    }

    /// The number of the candidate to use for problems of `class`: the first without tuning, else the fastest.
    ///
    /// The answer for a class never changes while the device is open. `seconds` runs a candidate, `None` if it
    /// cannot be used after all; it is not called if the answer is known.
    ///
    /// # Errors
    ///
    /// Those of `seconds`.
    pub fn choose(
        &self,
        class: &str,
        candidates: &[(&'static str, Source)],
        seconds: &mut dyn FnMut(usize) -> Result<Option<f64>>,
    ) -> Result<usize> {
        let number = |name: &str| candidates.iter().position(|(candidate, _)| *candidate == name);
        let texts: Vec<_> =
            candidates.iter().map(|(name, source)| format!("{name} {}", source.text())).collect();
        let shaders = hash(texts.iter().map(String::as_bytes));

        let mut state = self.tuner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = state.chosen.get(class).and_then(|name| number(name)) {
            return Ok(index);
        }
        let of = |file: &File| {
            let choice = file.choices.get(class).filter(|choice| choice.shaders == shaders)?;
            number(&choice.kernel)
        };
        let kept = state.kept.as_ref().and_then(|(_, file)| of(file));
        let known = kept.or_else(|| of(&state.file));
        let (index, origin) = match (self.tuner.tuning, known) {
            (Tuning::Off, _) => (0, "the safe one"),
            (_, Some(index)) if kept.is_some() => (index, "the run's"),
            (_, Some(index)) => (index, "remembered"),
            (_, None) => {
                let index = fastest(candidates.len(), seconds)?;
                let kernel = candidates[index].0.to_owned();
                state.file.choices.insert(class.to_owned(), Choice { shaders: shaders.clone(), kernel });
                if let Some(path) = &self.tuner.path {
                    let _ = save(path, &state.file);
                }
                (index, "timed just now")
            }
        };
        let kernel = candidates[index].0.to_owned();
        log::debug!(class, kernel = kernel.as_str(), origin; "kernel of {class}: {kernel}, {origin}");
        state.chosen.insert(class.to_owned(), kernel.clone());
        if let Some((path, file)) = state.kept.as_mut().filter(|_| kept.is_none()) {
            file.choices.insert(class.to_owned(), Choice { shaders, kernel });
            let _ = save(path, file);
        }
        Ok(index)
    }
}

/// The first of equals; 0 if none can be used.
fn fastest(count: usize, seconds: &mut dyn FnMut(usize) -> Result<Option<f64>>) -> Result<usize> {
    let mut best = (f64::INFINITY, 0);
    for index in 0..count {
        if let Some(time) = seconds(index)?
            && time < best.0
        {
            best = (time, index);
        }
    }
    Ok(best.1)
}
