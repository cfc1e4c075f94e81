//! The one error type, and the exit code each kind of failure ends the program with.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the run failed (an output could not be written, a check of our own failed) |
//! | 2 | wrong usage (printed by clap) |
//! | 3 | an input is missing, broken or not supported |
//! | 4 | no usable device, or the device failed |
//! | 5 | the audit is complete and a verdict is one that `--fail-on` names |
//! | 130 | interrupted (Ctrl-C); what was measured is in the run folder |

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure.
///
/// Every variant names the file, the tensor, the kernel or the flag, what was found and what was
/// expected, so that one line of output is enough to act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input file or directory could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// An output could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file that must be there is not.
    #[error("{}: {what} is missing; {remedy}", path.display())]
    Missing {
        /// The file or directory that was looked for.
        path: PathBuf,
        /// What it is, in the user's words.
        what: &'static str,
        /// What to do about it.
        remedy: String,
    },

    /// A file is there but does not hold what its format demands.
    #[error("{}: {what}: found {found}, expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The place in the file: a key, a field, an index, the header.
        what: String,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },

    /// A checkpoint uses something this program does not implement.
    #[error("{}: {what} {found} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// The kind of thing: architecture, rope type, dtype, ...
        what: &'static str,
        /// What was asked for.
        found: String,
        /// What there is instead.
        supported: String,
    },

    /// A tensor that the architecture needs is in none of the files.
    #[error("{}: tensor {tensor} is missing", path.display())]
    TensorMissing {
        /// The checkpoint directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// A tensor's shape contradicts `config.json`.
    #[error("{}: tensor {tensor} has shape {found:?}, config.json asks for {expected:?}", path.display())]
    TensorShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape by `config.json`.
        expected: Vec<usize>,
    },

    /// A weight is NaN or infinite.
    #[error("{}: tensor {tensor} holds {value} at index {index}, expected finite weights", path.display())]
    NotFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat row-major index of the first such weight.
        index: usize,
        /// The weight.
        value: f32,
    },

    /// A tokenizer gives an id that the embedding has no row for.
    #[error("{}: token id {id} is beyond the vocabulary of {vocab} rows; the tokenizer does not belong to this model", path.display())]
    TokenId {
        /// The tokenizer's file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },

    /// Two checkpoints of one audit see the same text as different tokens.
    #[error(
        "the tokenizers of {} and {} encode the questions differently; checkpoints of one audit must share a tokenizer (--tokenizer names one for all)",
        path.display(), target.display()
    )]
    TokenizersDiffer {
        /// A checkpoint directory.
        path: PathBuf,
        /// The target's.
        target: PathBuf,
    },

    /// Two checkpoints that are to be compared are not of one architecture.
    #[error(
        "{}: {what} is {found}, in {} it is {expected}; only checkpoints of one architecture can be compared",
        path.display(), target.display()
    )]
    CheckpointsDiffer {
        /// A checkpoint directory.
        path: PathBuf,
        /// The target's.
        target: PathBuf,
        /// What differs.
        what: String,
        /// What it is in `path`.
        found: String,
        /// What it is in `target`.
        expected: String,
    },

    /// A value on the command line or in a plan cannot be used.
    #[error("{flag}: {found} cannot be used: {expected}")]
    Flag {
        /// The flag or plan field.
        flag: &'static str,
        /// What was given.
        found: String,
        /// What it should be.
        expected: String,
    },

    /// No device fits the request.
    #[error("no usable device: {reason}")]
    NoDevice {
        /// What was looked for and what there is.
        reason: String,
    },

    /// The device cannot hold or bind something this large.
    #[error("{what} needs {needed} bytes, {device} allows {limit}")]
    DeviceLimit {
        /// What would have been allocated or bound.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// The device's limit in bytes.
        limit: u64,
        /// The device's name.
        device: String,
    },

    /// The device ran out of memory.
    #[error("out of device memory while allocating {what} ({bytes} bytes): {report}")]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Its size in bytes.
        bytes: u64,
        /// The driver's words.
        report: String,
    },

    /// A model does not fit the memory it may use, however it is laid out.
    #[error("{needed} bytes of device memory are needed at least, there are {budget} ({source_of_budget})")]
    MemoryTooSmall {
        /// Bytes that the smallest layout takes.
        needed: u64,
        /// Bytes that may be used.
        budget: u64,
        /// Where that number comes from.
        source_of_budget: String,
    },

    /// The device or its driver refused or lost a piece of work.
    #[error("the device failed during {during}: {report}")]
    Device {
        /// The step that failed.
        during: String,
        /// The driver's words.
        report: String,
    },

    /// A shader did not compile. Always our bug: the tests compile every shader.
    #[error("shader {kernel} was rejected: {report}")]
    Shader {
        /// The kernel, with its format.
        kernel: String,
        /// The compiler's report, with file and line.
        report: String,
    },

    /// A dimension does not meet a kernel's contract.
    #[error("{kernel}: {what} is {got}, expected {expected}")]
    Shape {
        /// The kernel or function.
        kernel: &'static str,
        /// The dimension.
        what: &'static str,
        /// Its value.
        got: usize,
        /// What the contract says.
        expected: String,
    },

    /// An answer does not belong to its task: a bug of ours, or a run's store that belongs to other data.
    #[error("task {task} was answered with {found}, expected {expected}")]
    Observation {
        /// Index of the task in its suite.
        task: usize,
        /// What kind of answer there is, and how long.
        found: String,
        /// What was asked for.
        expected: String,
    },

    /// A task's tokens do not fit into the cache, even alone.
    #[error("task {task} needs a cache of {needed} tokens, the device has room for {limit}")]
    CacheTooSmall {
        /// Index of the task.
        task: usize,
        /// Tokens whose keys and values it needs at one time.
        needed: usize,
        /// Tokens that the cache can hold.
        limit: usize,
    },

    /// The audit found what `--fail-on` names. Not a failure of the program: its report is complete.
    #[error("--fail-on: {}", verdicts.join(", "))]
    Verdict {
        /// Each such verdict, with what it is on.
        verdicts: Vec<String>,
    },

    /// The user wants no more (Ctrl-C).
    #[error("interrupted{}", resume.as_ref().map_or_else(String::new, |folder| {
        format!("; `undertext audit --resume {}` goes on from here", folder.display())
    }))]
    Interrupted {
        /// The run folder that holds what was measured, if there is one.
        resume: Option<PathBuf>,
    },

    /// Another process writes to a run folder.
    #[error("{}: another run is using this folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },

    /// A run folder holds a run with another plan.
    #[error(
        "{}: {field} is {found} there and {asked} here; one folder holds one plan (name another with --out)",
        path.display()
    )]
    PlansDiffer {
        /// The plan in the folder.
        path: PathBuf,
        /// The first field that differs.
        field: String,
        /// Its value in the folder's plan.
        found: String,
        /// Its value in the plan that was asked for.
        asked: String,
    },

    /// A forward pass gave logits that are not finite.
    #[error("{model}: the logits of token {position} of task {task} are not finite")]
    LogitsNotFinite {
        /// The arm.
        model: String,
        /// Index of the task.
        task: usize,
        /// Position in the task's tokens.
        position: usize,
    },
}

impl Error {
    /// The exit code this failure ends the program with; see the [module's table](self).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { .. }
            | Self::Missing { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::TensorMissing { .. }
            | Self::TensorShape { .. }
            | Self::NotFinite { .. }
            | Self::TokenId { .. }
            | Self::TokenizersDiffer { .. }
            | Self::CheckpointsDiffer { .. }
            | Self::PlansDiffer { .. } => 3,
            Self::Flag { .. } => 2,
            Self::Verdict { .. } => 5,
            Self::Interrupted { .. } => 130,
            Self::NoDevice { .. }
            | Self::DeviceLimit { .. }
            | Self::CacheTooSmall { .. }
            | Self::OutOfMemory { .. }
            | Self::MemoryTooSmall { .. }
            | Self::Device { .. }
            | Self::Shader { .. } => 4,
            Self::Write { .. }
            | Self::Locked { .. }
            | Self::Shape { .. }
            | Self::Observation { .. }
            | Self::LogitsNotFinite { .. } => 1,
        }
    }

    /// For `map_err` on reading `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Read { path, source }
    }

    /// For `map_err` on writing `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Write { path, source }
    }
}

/// `; did you mean NAME?` if one of the names is nearly `text`, whatever the case, or begins with it; otherwise nothing.
pub(crate) fn did_you_mean<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let text = text.trim().to_lowercase();
    let length = text.chars().count();
    let near = names.into_iter().filter_map(|name| {
        let lower = name.to_lowercase();
        let edits = strsim::damerau_levenshtein(&text, &lower);
        // A beginning before one slip in three characters; of equally near names the first counts.
        let begins = length > 1 && lower.starts_with(&text);
        (begins || 3 * edits <= length && length > 0).then_some(((!begins, edits), name))
    });
    near.min_by_key(|(order, _)| *order)
        .map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn near_misses_are_named_and_others_are_not() {
        let names = ["fp16", "int4", "int8", "int4-g32", "int4-g128", "nf4-b64"];
        for (text, meant) in [
            ("int4-128", "int4-g128"),
            ("INT8", "int8"),
            ("itn8", "int8"),
            ("nf4", "nf4-b64"),
            ("fp61", "fp16"),
            ("int4-g12", "int4-g128"),
        ] {
            assert_eq!(did_you_mean(text, names), format!("; did you mean {meant}?"), "{text}");
        }
        for text in ["", "q", "gguf", "bfloat16", "int16x2"] {
            assert_eq!(did_you_mean(text, names), "", "{text}");
        }
    }
}
