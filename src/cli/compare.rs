//! `undertext compare`.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use clap::Args;

use super::args::RunArgs;
use super::arms::Arms;
use super::generate::split;
use super::output::{Output, say};
use super::progress::Progress;
use crate::audit::{ArmToken, Comparison, ComparisonFound, ComparisonPlan, OpenArms, Passages};
use crate::error::{Error, Result};
use crate::report::{Comparisons, compare_text, counters_text};

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Checkpoint directories, with a precision after `@` to quantize one; the first is what the others are held against
    #[arg(value_name = "DIR[@PRECISION]", num_args = 2.., required = true)]
    arms: Vec<PathBuf>,

    /// A text to compare on
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    text: Option<PathBuf>,

    /// A MUSE corpus whose true answers to compare on
    #[arg(long, value_name = "DIR", conflicts_with_all = ["window", "stride", "second_half"])]
    data: Option<PathBuf>,

    /// Use only the first N examples of each list of the corpus
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<usize>,

    /// Tokens in a window of the text [default: the context, at most 2048; 512 with --second-half]
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Tokens from the beginning of one window to the next; what an earlier window scored is then only context
    /// [default: the window]
    #[arg(long, value_name = "N", conflicts_with = "second_half")]
    stride: Option<usize>,

    /// llama.cpp's windows: side by side, BOS first, the second half of each scored
    #[arg(long)]
    second_half: bool,

    /// Write what each arm says of each token, a JSON object a line
    #[arg(long, value_name = "FILE")]
    per_token: Option<PathBuf>,

    /// The checkpoint that arms in +keep and +aligned were made from: the update that their rounding looks at leads from it
    #[arg(long, value_name = "TARGET")]
    keep_from: Option<PathBuf>,

    /// Quantize the output head too
    #[arg(long)]
    quantize_head: bool,

    #[command(flatten)]
    run: RunArgs,
}

/// Compares the arms.
pub(super) fn run(args: CompareArgs) -> Result<()> {
    let CompareArgs { arms: asked, text, data, limit, window, stride, second_half, per_token, .. } = args;
    let output = Output::new(args.run.common.json.clone());
    let mut arms = Vec::new();
    for arm in &asked {
        let (directory, precision) = split(arm)?;
        arms.push((directory, precision));
    }
    let passages = match (text, data) {
        (Some(path), _) => Passages::Text { path, window, stride, second_half },
        (None, Some(path)) => Passages::Data { path, limit },
        (None, None) => {
            let expected = "--text FILE or --data DIR: what to compare on".to_owned();
            return Err(Error::Flag { flag: "--text", found: "nothing".to_owned(), expected });
        }
    };
    let comparison = Comparison::open(&ComparisonPlan { arms, target: args.keep_from, passages })?;
    // Now, and not after hours, is the time to find out that the file cannot be written.
    let mut lines = match &per_token {
        Some(path) => Some(BufWriter::new(std::fs::File::create(path).map_err(Error::write(path))?)),
        None => None,
    };
    let device = args.run.open_device()?;
    let (sources, names) = (comparison.sources().to_vec(), comparison.names().to_vec());
    let arms = Arms::new(&device, sources, names, args.quantize_head, comparison.needs(), &args.run.memory);
    let arms = arms.together();
    let mut open = &arms;
    let all = 0..comparison.names().len();
    open.part(all.clone(), 0)?;
    let mut progress = Progress::new("answers");
    progress.part("comparing", 0, all.len() * comparison.tasks());
    let compared = comparison.run(open.open(all)?, &mut |done| progress.done(done));
    progress.finish();
    let compared = compared?;
    let mut record = Comparisons::new(&comparison, &compared, &device.info());
    record.memory = arms.record();
    record.kernels = device.kernels();
    if args.run.memory.explain {
        let (seconds, _) = device.seconds();
        say(&counters_text(&record.counters, &seconds));
    }
    if let (Some(path), Some(lines)) = (&per_token, &mut lines) {
        write_tokens(path, lines, &comparison, &compared)?;
    }
    output.emit(&record, |style| compare_text(&record, style))
}

/// A line of `--per-token`.
#[derive(Serialize)]
struct TokenLine<'a> {
    /// Which window or answer.
    text: usize,
    /// Place of the token in it.
    position: usize,
    /// The token.
    id: u32,
    /// Its text.
    token: String,
    /// By the arm's name.
    arms: BTreeMap<&'a str, ArmLine>,
}

#[derive(Serialize)]
struct ArmLine {
    log_prob: f32,
    rank: u32,
    entropy: f64,
    top: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reverse_kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jensen_shannon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_variation: Option<f64>,
}

impl From<&ArmToken<'_>> for ArmLine {
    fn from(token: &ArmToken<'_>) -> Self {
        Self {
            log_prob: token.log_prob,
            rank: token.detail.rank,
            entropy: token.detail.entropy,
            top: token.detail.top.iter().copied().filter(|token| *token != u32::MAX).collect(),
            kl: token.apart.map(|apart| apart.kl),
            reverse_kl: token.apart.map(|apart| apart.reverse_kl),
            jensen_shannon: token.apart.map(|apart| apart.jensen_shannon),
            total_variation: token.apart.map(|apart| apart.total_variation),
        }
    }
}

fn write_tokens(
    path: &Path,
    lines: &mut impl Write,
    comparison: &Comparison,
    compared: &ComparisonFound,
) -> Result<()> {
    for (text, position, id, arms) in comparison.tokens(compared) {
        let token = comparison.tokenizer().decode(&[id])?;
        let arms = comparison.names().iter().map(String::as_str).zip(arms.iter().map(ArmLine::from));
        let line = TokenLine { text, position, id, token, arms: arms.collect() };
        let line = serde_json::to_string(&line).map_err(|error| Error::write(path)(error.into()))?;
        writeln!(lines, "{line}").map_err(Error::write(path))?;
    }
    lines.flush().map_err(Error::write(path))
}
