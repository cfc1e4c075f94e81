//! `undertext generate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::args::RunArgs;
use super::arms::open_one;
use super::output::{Output, notice, say};
use crate::checkpoint::Checkpoint;
use crate::engine::{Ask, Engine, Needs, Observation, Options, Task};
use crate::error::{Error, Result};
use crate::model::{Source, check_tensors, stored_scheme};
use crate::quant::Precision;
use crate::report::{counters_text, printable, schema};

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A checkpoint directory, with a precision after `@` to quantize it
    #[arg(value_name = "DIR[@PRECISION]")]
    model: PathBuf,

    /// The text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,

    /// Stop after this many new tokens
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,

    /// The checkpoint that DIR was made from, for +keep and +aligned: the update that their rounding looks at leads from it
    #[arg(long, value_name = "TARGET")]
    keep_from: Option<PathBuf>,

    /// Quantize the output head too
    #[arg(long)]
    quantize_head: bool,

    #[command(flatten)]
    run: RunArgs,
}

/// Continues the prompt.
pub(super) fn run(args: GenerateArgs) -> Result<()> {
    let GenerateArgs { model, prompt, max_new_tokens, keep_from, quantize_head, run } = args;
    let output = Output::new(run.common.json.clone());
    let (directory, precision) = split(&model)?;
    let checkpoint = Arc::new(Checkpoint::open(&directory)?);
    check_tensors(&checkpoint)?;
    let target = keep_from.map(|path| Checkpoint::open(&path).map(Arc::new)).transpose()?;
    target.iter().try_for_each(|target| check_tensors(target))?;
    let source = Source { target, ..Source::new(&checkpoint, precision) };
    source.check()?;
    let tokenizer = checkpoint.tokenizer()?;
    let prompt_ids = tokenizer.encode(&prompt)?;
    let max_new = fit(prompt_ids.len(), max_new_tokens, checkpoint.config().context)?;

    let device = run.open_device()?;
    let stop = checkpoint.config().eos.clone();
    let tasks = [Task { tokens: prompt_ids, ask: Ask::Generate { max_new, stop } }];
    let name = model.display().to_string();
    let (lockstep, laid_out) =
        open_one(&device, source, &name, quantize_head, Needs::of(&tasks), &run.memory)?;
    let mut engine = Engine::new(vec![name], lockstep, Options::default());
    let mut observations = Vec::new();
    for arm in engine.run(&tasks, &mut |_| Ok(()))? {
        observations.extend(arm?);
    }
    let [Task { tokens: prompt_ids, .. }] = tasks;
    let token_ids = match observations.into_iter().next() {
        Some(Observation::Generated { tokens, .. }) => tokens,
        _ => Vec::new(),
    };
    let (gpu_seconds, gpu_timed_dispatches) = device.seconds();
    let generated = schema::Generated {
        text: tokenizer.decode(&token_ids)?,
        prompt_ids,
        token_ids,
        device: (&device.info()).into(),
        precision: precision.to_string(),
        scheme: precision.scheme(stored_scheme(&checkpoint)?).name().to_owned(),
        kernels: device.kernels(),
        gpu_seconds,
        gpu_timed_dispatches,
        memory: laid_out,
        counters: engine.counters().into(),
    };
    if run.memory.explain {
        say(&counters_text(&generated.counters, &generated.gpu_seconds));
    }
    output.emit(&generated, |style| {
        // What a terminal would obey stays only where none reads it.
        let text = if style.width.is_some() { printable(&generated.text) } else { generated.text.clone() };
        format!("{text}\n")
    })
}

fn usage(flag: &'static str, found: &str, expected: &str) -> Error {
    Error::Flag { flag, found: found.to_owned(), expected: expected.to_owned() }
}

/// `DIR` or `DIR@PRECISION`; a directory whose own name holds an `@` is taken as it stands.
pub(super) fn split(model: &Path) -> Result<(PathBuf, Precision)> {
    let text = model.to_string_lossy();
    match text.rsplit_once('@') {
        Some((directory, precision)) if !model.is_dir() => {
            let precision = precision.parse().map_err(|error| match error {
                Error::Flag { found, expected, .. } => usage("DIR@PRECISION", &found, &expected),
                other => other,
            })?;
            Ok((PathBuf::from(directory), precision))
        }
        _ => Ok((model.to_path_buf(), Precision::Full)),
    }
}

/// How many tokens a prompt of `prompt` tokens may grow by, at most `asked`.
fn fit(prompt: usize, asked: usize, context: usize) -> Result<usize> {
    if prompt == 0 {
        let expected = "a text that gives at least one token (this tokenizer adds no BOS)";
        return Err(usage("--prompt", "an empty text", expected));
    }
    if prompt > context {
        let expected = format!("at most the {context} tokens of the model's context");
        return Err(usage("--prompt", &format!("a text of {prompt} tokens"), &expected));
    }
    let room = context - prompt;
    if asked > room {
        notice(&format!("the context of {context} tokens leaves room for {room} new ones, not {asked}"));
    }
    Ok(asked.min(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_follows_the_last_at() {
        let split = |text: &str| split(Path::new(text));
        assert_eq!(split("a/b").unwrap(), (PathBuf::from("a/b"), Precision::Full));
        let int8 = Precision::nearest(crate::quant::Scheme::Int8);
        assert_eq!(split("a@1/b@int8").unwrap(), (PathBuf::from("a@1/b"), int8));
        let error = split("a@int9").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("int9"), "{error}");
    }

    #[test]
    fn new_tokens_fit_the_context() {
        assert_eq!(fit(10, 5, 16).unwrap(), 5);
        assert_eq!(fit(10, 7, 16).unwrap(), 6);
        assert_eq!(fit(16, 7, 16).unwrap(), 0);
        assert!(fit(17, 1, 16).is_err());
        assert!(fit(0, 1, 16).is_err());
    }
}
