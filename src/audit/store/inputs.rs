//! What answers depend on, besides the questions.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::plan::Plan;
use super::super::released::Released;
use super::super::run::Audit;
use super::line::Key;
use super::malformed;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// What an audit's answers depend on, besides the questions and each arm's precision.
///
/// Weights are known by a hash of all their bytes, not by name, size or date: it costs one more read of each checkpoint (at
/// the disk's speed, once a session), and nothing else is sure to notice a checkpoint that was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// [`engine_revision`].
    pub engine: String,
    /// Name, backend and driver of the device, and what else of it answers may depend on.
    pub device: String,
    /// How keys and values are kept.
    pub kv: String,
    /// Whether the head is quantized too.
    pub quantize_head: bool,
    /// Hash of the tokenizer's files.
    pub tokenizer: String,
    /// As the plan's.
    pub models: Vec<ModelInputs>,
    /// As the plan's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub released: Vec<ModelInputs>,
}

/// What the answers of one model depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInputs {
    /// What reports call it.
    pub name: String,
    /// Hash of all bytes of its weight files.
    pub weights: String,
    /// Hash of its config.json.
    pub config: String,
}

/// A hash of the sources, shaders and dependencies that an answer depends on in this build of the program, and of its compiler
/// and target.
#[must_use]
pub fn engine_revision() -> &'static str {
    env!("UNDERTEXT_ENGINE")
}

impl ModelInputs {
    /// Reads and hashes a checkpoint that is called `name`; `watch` is that of [`Inputs::of`].
    ///
    /// # Errors
    ///
    /// [`Error::Read`], and what `watch` returns.
    pub(in super::super) fn of(
        name: String,
        checkpoint: &Checkpoint,
        watch: &mut dyn FnMut(&str, u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let weights = checkpoint.tensors().content_hash(&mut |done, total| watch(&name, done, total))?;
        let config = hash_of(&[&checkpoint.path().join("config.json")])?;
        Ok(Self { name, weights, config })
    }

    /// Whether both are one model, whatever they are called.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.weights == other.weights && self.config == other.config
    }
}

impl Inputs {
    /// Reads and hashes every checkpoint of the audit. `watch` is told the checkpoint, and how many of how many bytes are
    /// done; its error ends the reading.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], and what `watch` returns.
    pub fn of(
        audit: &Audit,
        device: &str,
        kv: &str,
        watch: &mut dyn FnMut(&str, u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let plan = audit.plan();
        let target = &plan.models[Plan::TARGET].path;
        let tokenizer = plan.tokenizer.as_ref().unwrap_or(target);
        let mut read = |name: String, checkpoint: &Checkpoint| ModelInputs::of(name, checkpoint, watch);
        let models = plan.models.iter().zip(audit.checkpoints());
        let models =
            models.map(|(model, checkpoint)| read(model.name.clone(), checkpoint)).collect::<Result<_>>()?;
        let released = plan.released.iter().zip(audit.released());
        let name = |file: &Released| format!("{}@{}", plan.models[file.model].name, file.precision());
        let released =
            released.map(|(file, checkpoint)| read(name(file), checkpoint)).collect::<Result<_>>()?;
        Ok(Self {
            engine: engine_revision().to_owned(),
            device: device.to_owned(),
            kv: kv.to_owned(),
            quantize_head: plan.quantize_head,
            tokenizer: hash_of_tokenizer(tokenizer)?,
            models,
            released,
        })
    }

    /// What the run in `folder` wrote down; nothing if it has not got so far.
    ///
    /// # Errors
    ///
    /// If it is there but cannot be read.
    pub fn of_run(folder: &Path) -> Result<Option<Self>> {
        Self::read(&folder.join(super::INPUTS), super::INPUTS_BYTES)
    }

    /// The weights of the model of this name.
    #[must_use]
    pub fn weights(&self, name: &str) -> Option<&str> {
        self.models.iter().find(|model| model.name == name).map(|model| model.weights.as_str())
    }

    /// What the answers of an arm depend on.
    pub(super) fn arm(&self, audit: &Audit, place: usize) -> Key {
        let (model, precision, scheme) = audit.arm(place);
        let model = match audit.plan().released_as(model, precision) {
            Some(file) => &self.released[file],
            None => &self.models[model],
        };
        let keeps = precision.rounding().needs_target();
        let precision = precision.to_string();
        // A rounding that keeps an update depends on the target's weights, too.
        let target = if keeps { &*self.models[Plan::TARGET].weights } else { "" };
        let mut hasher = blake3::Hasher::new();
        for part in [
            &*self.engine,
            &self.device,
            &self.kv,
            &self.quantize_head.to_string(),
            &self.tokenizer,
            &model.weights,
            &model.config,
            &precision,
            target,
            &scheme.to_string(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Key::from(&hasher)
    }

    /// The first that is not as in `other`: what it is, here and there.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let Self { engine, device, kv, quantize_head, tokenizer, models, released } = self;
        let mut fields = vec![
            ("device".to_owned(), device.clone(), other.device.clone()),
            ("engine (the program's build)".to_owned(), engine.clone(), other.engine.clone()),
            ("kv".to_owned(), kv.clone(), other.kv.clone()),
            ("quantize_head".to_owned(), quantize_head.to_string(), other.quantize_head.to_string()),
            ("tokenizer".to_owned(), tokenizer.clone(), other.tokenizer.clone()),
            ("number of models".to_owned(), models.len().to_string(), other.models.len().to_string()),
            (
                "number of released files".to_owned(),
                released.len().to_string(),
                other.released.len().to_string(),
            ),
        ];
        let released = released.iter().zip(&other.released);
        for (model, other) in models.iter().zip(&other.models).chain(released) {
            let name = &model.name;
            fields.push(("name of a model".to_owned(), name.clone(), other.name.clone()));
            fields.push((format!("weights of {name}"), model.weights.clone(), other.weights.clone()));
            fields.push((format!("config.json of {name}"), model.config.clone(), other.config.clone()));
        }
        fields.into_iter().find(|(_, here, there)| here != there)
    }

    /// What has changed since `before`, one sentence each.
    pub(super) fn changes(&self, before: &Self) -> Vec<String> {
        let Self { engine, device, kv, quantize_head, tokenizer, models, released } = self;
        let mut changes = Vec::new();
        let mut changed = |what: &str| {
            changes.push(format!("{what} since this run was begun; what depends on it is asked again"));
        };
        if *engine != before.engine {
            changed("the program has changed");
        }
        if *device != before.device {
            changed(&format!("the device has changed from {} to {device}", before.device));
        }
        if *kv != before.kv || *quantize_head != before.quantize_head {
            changed("how models are run has changed");
        }
        if *tokenizer != before.tokenizer {
            changed("the tokenizer has changed");
        }
        let before_models = || before.models.iter().chain(&before.released);
        for model in models.iter().chain(released) {
            let Some(other) = before_models().find(|other| other.name == model.name) else { continue };
            if other.weights != model.weights {
                changed(&format!("the weights of {} have changed", model.name));
            }
            if other.config != model.config {
                changed(&format!("config.json of {} has changed", model.name));
            }
        }
        changes
    }

    /// Reads what was written; nothing if there is no such file.
    ///
    /// # Errors
    ///
    /// If it is there but cannot be read.
    pub(super) fn read(path: &Path, limit_bytes: u64) -> Result<Option<Self>> {
        use crate::checkpoint::files::read_text;
        if !path.exists() {
            return Ok(None);
        }
        let text = read_text(path, "the run's inputs", "", limit_bytes)?;
        let broken = |error: serde_json::Error| {
            malformed(
                path,
                "inputs",
                error.to_string(),
                "what a run wrote (without the file, only what changed cannot be said)",
            )
        };
        serde_json::from_str(&text).map(Some).map_err(broken)
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::write(path)(error.into()))?;
        crate::checkpoint::files::replace(path, (text + "\n").as_bytes())
    }
}

/// Hash of what a checkpoint's directory says of its tokenizer.
pub(in super::super) fn hash_of_tokenizer(directory: &Path) -> Result<String> {
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| directory.join(name));
    hash_of(&files.each_ref().map(AsRef::as_ref))
}

/// Of the files' contents; one that is not there counts as empty.
fn hash_of(paths: &[&Path]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(Error::read(path))?,
        };
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
