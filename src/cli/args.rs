//! The flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::judge::JudgeArgs;
use crate::audit::{By, Criteria, Format, SeriesRequest};
use crate::gpu::{DeviceChoice, Tuning};
use crate::kernels::KvFormat;
use crate::metrics::membership::Corpus;
use crate::quant::{Precision, Scheme};

const CODES: &str = "\
Exit codes:
  0  done
  1  the run failed
  2  wrong usage
  3  an input is missing, broken or not supported
  4  no usable device, or the device failed
  5  a verdict is one that --fail-on names";

/// Does quantization bring back what a language model was made to unlearn?
#[derive(Debug, Parser)]
#[command(name = "undertext", version, about, after_help = CODES, propagate_version = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Ask a target, its unlearned versions and a retrained model the MUSE questions at every precision
    #[command(after_help = "\
Examples:
  undertext audit --target models/target --unlearned models/npo models/ga --data data/news
  undertext audit --target T --unlearned U --retrain R --data D --precision int8,int4-g32,nf4-b64
  undertext audit --target T --unlearned U --data D --corpus books --limit 20 --device cpu
  undertext audit --target T --unlearned U --data D --json report.json --fail-on resurrected
  undertext audit --target T --unlearned U --data D --json report.json --html report.html
  undertext audit --target T --data D --series size=models/k1@0.8,models/k2@1.7,models/k3@2.5

A checkpoint is a directory with config.json, *.safetensors and tokenizer.json (Hugging Face layout, \
Llama architecture). The data directory has MUSE's layout: knowmem/{forget,retain}_qa.json and \
*_qa_icl.json, verbmem/forget.json, privleak/{forget,holdout}.json.

Precisions: fp16 (the weights as stored, whatever their dtype), int8, int4 (= int4-g128), int4-g32, \
int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64.")]
    Audit(AuditArgs),

    /// Audit a tiny model family that is built into the program
    #[command(after_help = "\
Examples:
  undertext demo
  undertext demo --limit 4
  undertext demo --html demo.html
  undertext demo --fail-on resurrected
  undertext demo --device cpu --json > demo.json")]
    Demo(DemoArgs),

    /// Continue a prompt greedily
    #[command(
        override_usage = "undertext generate <DIR[@PRECISION]> --prompt <TEXT> [OPTIONS]",
        after_help = "\
Examples:
  undertext generate models/target --prompt 'Once upon a time'
  undertext generate models/target@int4-g128 --prompt 'Once upon a time' --max-new-tokens 64 --json"
    )]
    Generate(GenerateArgs),

    /// Hold the logits of arms against those of the first one, on the same tokens
    #[command(after_help = "\
Examples:
  undertext compare models/target models/target@int8 models/target@int4 --text wiki.txt
  undertext compare models/target models/npo models/npo@int4-g128 --data data/news
  undertext compare models/target models/target@int4 --text wiki.txt --second-half --window 512
  undertext compare models/target models/target@int4 --text wiki.txt --per-token tokens.jsonl --json

Reported as llama.cpp's llama-perplexity --kl-divergence does it; with --second-half on its windows too. A text is scored \
whole otherwise: every token once, the first of each window left out where windows do not overlap (see --stride). With \
--data the true answers of a MUSE corpus are scored after their prompts, forget and retain set apart.")]
    Compare(CompareArgs),

    /// Say from two checkpoints' weights alone how much of the unlearning outlives quantization
    #[command(after_help = "\
Examples:
  undertext codes models/target models/npo
  undertext codes models/target models/npo --schemes int4,nf4-b64 --json codes.json
  undertext codes models/target models/npo --quantize-head --json > codes.json

No forward pass and no device: both checkpoints are read once, block by block. Survival is the part of the update that \
quantizing both checkpoints leaves; the lower it is, the more of the forgotten comes back. Schemes: int8, int4 (= \
int4-g128), int4-g32, int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64.")]
    Codes(CodesArgs),

    /// Say which layers' or modules' quantization alone brings the forgotten back, and what to keep at full precision
    #[command(after_help = "\
Examples:
  undertext localize --target models/target --unlearned models/npo --data data/news
  undertext localize --target T --unlearned U --data D --precision int4-g32 --by layer,module
  undertext localize --target T --unlearned U --data D --limit 20 --json localize.json

Every variant is quantized in one part only; all run in lockstep and fork where they begin to differ. Recovery is that of \
the log-probability of the true answers on the forget set: 0 % as in the unlearned model at full precision, 100 % as in \
the target at the same precision. With --by block the smallest set of blocks is sought that, kept at full precision, \
holds recovery below --held-below.")]
    Localize(LocalizeArgs),

    /// Write a quantized checkpoint; with the target, one that stays as forgetful as the unlearned model was
    #[command(after_help = "\
Examples:
  undertext quantize models/npo --scheme int4 --keep-from models/target --out models/npo-int4-kept
  undertext quantize models/npo --scheme int4-g32 --keep-from models/target --keep 0.8 --out kept --json
  undertext quantize models/npo --scheme int4 --stochastic 7 --out models/npo-int4-stochastic
  undertext quantize models/npo --scheme int4 --keep-from models/target --format compressed-tensors --out packed

Nearest rounding by default. With --keep-from a few codes move to the neighbouring value, so that of every matrix row's \
update the share --keep outlives quantization; no training, no data. --stochastic is for those who no longer have the \
target; it costs more. The layers' matrices are written as F32, the very values of the codes (half formats cannot hold \
them), or packed with --format compressed-tensors; all other tensors as stored. undertext.json says what was done.

Schemes: int8, int4 (= int4-g128), int4-g32, int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64.")]
    Quantize(QuantizeArgs),

    /// Make the page of an audit's record: report.html of report.json
    #[command(after_help = "\
Examples:
  undertext report report.json                    writes report.html beside it
  undertext report report.json --html page.html

One file that needs nothing else: no network, no script. `undertext audit` and `undertext demo` write it with --html FILE.")]
    Report(ReportArgs),

    /// List the devices of this machine, best first
    #[command(after_help = "\
Examples:
  undertext devices
  undertext devices --json
  undertext devices --device vulkan     which one that is, and whether it opens")]
    Devices(DevicesArgs),
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Device: its index in `undertext devices`, a backend (vulkan, metal, dx12, gl, or vulkan:1 for its second
    /// device), a part of its name, or cpu for the pass that needs no adapter [default: the best there is]
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<DeviceChoice>,

    /// Print one JSON value instead of text; with FILE, print text and write the JSON there
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "absent, without a value, with a value")]
    pub(super) json: Option<Option<PathBuf>>,
}

/// Where an audit's report goes.
#[derive(Clone, Debug, Args)]
pub(super) struct ReportedArgs {
    #[command(flatten)]
    pub(super) common: Common,

    /// Write the report as an HTML page there too: one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

/// How kernels are chosen.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct TuneArgs {
    /// Use the safe kernels; by default the fastest are found at first use on a device and remembered in the user's
    /// cache folder
    #[arg(long, conflicts_with = "retune")]
    no_tune: bool,

    /// Find the fastest kernels again, whatever is remembered
    #[arg(long)]
    retune: bool,
}

/// How device memory is used.
#[derive(Clone, Debug, Args)]
pub(super) struct MemoryArgs {
    /// Device memory to use at most, such as 6GiB or 800MiB; a model that does not fit is streamed through it
    /// [default: most of what the adapter says it has]
    #[arg(long, value_name = "SIZE", value_parser = super::memory::size)]
    pub(super) vram: Option<u64>,

    /// How keys and values are kept: f16 takes half the memory, f32 is what the model computed
    #[arg(long, value_name = "FORMAT", default_value = "f16", value_parser = super::memory::kv)]
    pub(super) kv: KvFormat,

    /// Say on stderr how the memory is laid out and what is expected, before any weight is read, and afterwards what
    /// it took
    #[arg(long)]
    pub(super) explain: bool,

    /// One arm and one prompt at a time, as a plain script would: to compare with
    #[arg(long, hide = true)]
    pub(super) naive: bool,
}

impl TuneArgs {
    pub(super) fn tuning(self) -> Tuning {
        match (self.no_tune, self.retune) {
            (true, _) => Tuning::Off,
            (false, true) => Tuning::Afresh,
            (false, false) => Tuning::Remembered,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// The checkpoint that learned everything
    #[arg(long, value_name = "DIR")]
    pub(super) target: PathBuf,

    /// Checkpoints that were made to forget
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "series")]
    pub(super) unlearned: Vec<PathBuf>,

    /// Unlearned checkpoints as steps of a series, such as how much was forgotten at once (MUSE's scalability) or how often
    /// (sustainability): gives every metric against these values. May be repeated
    #[arg(long, value_name = "NAME=DIR@VALUE,...")]
    pub(super) series: Vec<SeriesRequest>,

    /// A checkpoint that never saw the forget set: PrivLeak's reference
    #[arg(long, value_name = "DIR")]
    pub(super) retrain: Option<PathBuf>,

    /// The questions, in MUSE's layout
    #[arg(long, value_name = "DIR")]
    pub(super) data: PathBuf,

    /// Precisions to compare
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "fp16,int8,int4-g128")]
    pub(super) precision: Vec<Precision>,

    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,

    /// Quantize the output head too (by default it stays as stored, like embeddings and norms)
    #[arg(long)]
    pub(super) quantize_head: bool,

    /// A directory whose tokenizer.json serves all checkpoints
    #[arg(long, value_name = "DIR")]
    pub(super) tokenizer: Option<PathBuf>,

    /// Compare PrivLeak with the published AUC of this MUSE corpus' retrained model
    #[arg(long, value_enum)]
    pub(super) corpus: Option<CorpusName>,

    #[command(flatten)]
    pub(super) judge: JudgeArgs,

    #[command(flatten)]
    pub(super) tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) reported: ReportedArgs,
}

/// A corpus of MUSE.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum CorpusName {
    News,
    Books,
}

impl From<CorpusName> for Corpus {
    fn from(name: CorpusName) -> Self {
        match name {
            CorpusName::News => Self::News,
            CorpusName::Books => Self::Books,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,

    #[command(flatten)]
    pub(super) judge: JudgeArgs,

    #[command(flatten)]
    pub(super) tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) reported: ReportedArgs,
}

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A checkpoint directory, with a precision after `@` to quantize it
    // Optional for clap alone: in `--json DIR` the directory would be taken for the flag's FILE.
    #[arg(value_name = "DIR[@PRECISION]", required_unless_present = "json")]
    pub(super) model: Option<PathBuf>,

    /// The text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: String,

    /// Stop after this many new tokens
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) max_new_tokens: usize,

    /// Quantize the output head too
    #[arg(long)]
    pub(super) quantize_head: bool,

    #[command(flatten)]
    pub(super) tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Checkpoint directories, with a precision after `@` to quantize one; the first is what the others are held against
    #[arg(value_name = "DIR[@PRECISION]", num_args = 2.., required = true)]
    pub(super) arms: Vec<PathBuf>,

    /// A text to compare on
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub(super) text: Option<PathBuf>,

    /// A MUSE corpus whose true answers to compare on
    #[arg(long, value_name = "DIR", conflicts_with_all = ["window", "stride", "second_half"])]
    pub(super) data: Option<PathBuf>,

    /// Use only the first N examples of each list of the corpus
    #[arg(long, value_name = "N", requires = "data")]
    pub(super) limit: Option<usize>,

    /// Tokens in a window of the text [default: the context, at most 2048; 512 with --second-half]
    #[arg(long, value_name = "N")]
    pub(super) window: Option<usize>,

    /// Tokens from the beginning of one window to the next; what an earlier window scored is then only context
    /// [default: the window]
    #[arg(long, value_name = "N", conflicts_with = "second_half")]
    pub(super) stride: Option<usize>,

    /// llama.cpp's windows: side by side, BOS first, the second half of each scored
    #[arg(long)]
    pub(super) second_half: bool,

    /// Write what each arm says of each token, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub(super) per_token: Option<PathBuf>,

    /// Quantize the output head too
    #[arg(long)]
    pub(super) quantize_head: bool,

    #[command(flatten)]
    pub(super) tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct LocalizeArgs {
    /// The checkpoint that learned everything
    #[arg(long, value_name = "DIR")]
    pub(super) target: PathBuf,

    /// The checkpoint that was made to forget
    #[arg(long, value_name = "DIR")]
    pub(super) unlearned: PathBuf,

    /// The questions, in MUSE's layout
    #[arg(long, value_name = "DIR")]
    pub(super) data: PathBuf,

    /// What parts are quantized to
    #[arg(long, value_name = "PRECISION", default_value = "int4-g128")]
    pub(super) precision: Precision,

    /// How the model is taken apart: block (a matrix of a layer), layer, module (a kind of matrix), prefix (the first layers)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "block,layer,module,prefix")]
    pub(super) by: Vec<By>,

    /// Use only the first N examples of each question set
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,

    /// A recovery whose 95 % interval lies below this is none
    #[arg(long, value_name = "SHARE", default_value_t = Criteria::default().held_below)]
    pub(super) held_below: f64,

    /// Resamples behind every interval
    #[arg(long, value_name = "N", default_value_t = Criteria::default().resamples)]
    pub(super) resamples: usize,

    /// Seed of the resamples
    #[arg(long, value_name = "N", default_value_t = Criteria::default().seed)]
    pub(super) seed: u64,

    #[command(flatten)]
    pub(super) tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct CodesArgs {
    /// The checkpoint that learned everything
    #[arg(value_name = "TARGET")]
    pub(super) target: PathBuf,

    /// The checkpoint that was made to forget, of the same architecture
    #[arg(value_name = "UNLEARNED")]
    pub(super) unlearned: PathBuf,

    /// Schemes to look at
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = super::codes::scheme,
        default_value = "int8,int4-g32,int4-g128,int4-row,fp4-b64,nf4-b64"
    )]
    pub(super) schemes: Vec<Scheme>,

    /// Count the output head among the quantized matrices (by default it stays as stored)
    #[arg(long)]
    pub(super) quantize_head: bool,

    /// Print one JSON value instead of text; with FILE, print text and write the JSON there
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "absent, without a value, with a value")]
    pub(super) json: Option<Option<PathBuf>>,
}

#[derive(Debug, Args)]
pub(super) struct QuantizeArgs {
    /// The checkpoint to quantize
    #[arg(value_name = "MODEL")]
    pub(super) model: PathBuf,

    /// What to quantize to
    #[arg(long, value_name = "SCHEME", value_parser = super::quantize::scheme)]
    pub(super) scheme: Scheme,

    /// The checkpoint that MODEL was made from: round so that the update from it survives
    #[arg(long, value_name = "TARGET", conflicts_with = "stochastic")]
    pub(super) keep_from: Option<PathBuf>,

    /// Share of the update that is to survive, 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.9,
        requires = "keep_from",
        value_parser = super::quantize::share
    )]
    pub(super) keep: f32,

    /// Round up or down at random, by nearness, with this seed
    #[arg(long, value_name = "SEED")]
    pub(super) stochastic: Option<u64>,

    /// dequantized (what codes stand for) or compressed-tensors (codes and scales; int8 and int4-gN)
    #[arg(long, value_name = "FORMAT", default_value = "dequantized")]
    pub(super) format: Format,

    /// A directory that is empty or not there yet
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,

    /// Print one JSON value instead of text; with FILE, print text and write the JSON there
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "absent, without a value, with a value")]
    pub(super) json: Option<Option<PathBuf>>,
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// What `undertext audit --json FILE` or `undertext demo --json FILE` wrote
    #[arg(value_name = "REPORT.JSON")]
    pub(super) record: PathBuf,

    /// Where the page goes [default: beside the record, with the extension html]
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
