//! The commands, and the flags that several of them take.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::audit::AuditArgs;
use super::codes::CodesArgs;
use super::compare::CompareArgs;
use super::demo::DemoArgs;
use super::device::Device;
use super::devices::DevicesArgs;
use super::export::ExportArgs;
use super::generate::GenerateArgs;
use super::localize::LocalizeArgs;
use super::merge::MergeArgs;
use super::output::JsonArgs;
use super::quantize::QuantizeArgs;
use super::report::ReportArgs;
use super::shell::{CompletionsArgs, ManArgs};
use super::stderr::Format;
use crate::error::Result;
use crate::gpu::{DeviceChoice, Tuning};
use crate::kernels::KvFormat;

const CODES: &str = "\
Exit codes:
  0  done
  1  the run failed
  2  wrong usage
  3  an input is missing, broken or not supported
  4  no usable device, or the device failed
  5  a verdict is one that --fail-on names
  130  interrupted; `undertext audit --resume` goes on";

/// Of the flags that every command has.
const HEADING: &str = "What stderr says";

/// Does quantization bring back what a language model was made to unlearn?
#[derive(Debug, Parser)]
#[command(
    name = "undertext",
    version,
    long_version = env!("UNDERTEXT_LONG_VERSION"),
    about,
    after_help = CODES,
    propagate_version = true
)]
pub(super) struct Cli {
    /// No progress and no notices on stderr; errors, and what --explain asks for, stay
    #[arg(short, long, global = true, help_heading = HEADING)]
    pub(super) quiet: bool,

    /// Say on stderr what is done: device, kernels, files, plan, passes; -vv says every pass
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = HEADING)]
    pub(super) verbose: u8,

    /// How stderr looks: json is one object a line, with time, level, message and fields (progress: part, stage, done, total,
    /// unit, seconds, tokens_per_second, eta_seconds)
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text", global = true, help_heading = HEADING)]
    pub(super) log_format: Format,

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
  undertext audit --target T --unlearned U --data D --json=report.json --fail-on resurrected
  undertext audit --target T --unlearned U --data D --json=report.json --html report.html
  undertext audit --target T --unlearned U --data D --repair --keep auto
  undertext audit --target T --unlearned U --data D --repair --calibrate retain.txt --out runs/npo
  undertext audit --target T --unlearned U --data D --precision int4 --released U-int4
  undertext audit --target T --unlearned U --data D --dose 0,0.25,0.5,0.75,1 --html dose.html
  undertext audit --target T --data D --series size=models/k1@0.8,models/k2@1.7,models/k3@2.5
  undertext audit --target T --unlearned U --data D --out runs/npo
  undertext audit --resume runs/npo           go on after Ctrl-C, a crash or a lost device
  undertext audit runs/npo/plan.toml          ask the same again, into a new folder
  undertext audit runs/npo/plan.toml --shard 1/3 --out shards/1      a third of it (see merge)

A checkpoint is a directory with config.json, *.safetensors and tokenizer.json (Hugging Face layout, \
Llama architecture). The data directory has MUSE's layout: knowmem/{forget,retain}_qa.json and \
*_qa_icl.json, verbmem/forget.json, privleak/{forget,holdout}.json.

Precisions: fp16 (the weights as stored, whatever their dtype), int8, int4 (= int4-g128), int4-g32, \
int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64. How codes are chosen may stand after it, for the unlearned models: +keep=SHARE (so that this share of the update from the target survives), +aligned (at scales that keep the update's direction), +stochastic=SEED (at random, by nearness).")]
    Audit(Box<AuditArgs>),

    /// Audit a tiny model family that is built into the program
    #[command(after_help = "\
Examples:
  undertext demo
  undertext demo --limit 4
  undertext demo --html demo.html
  undertext demo --repair
  undertext demo --out runs/demo
  undertext demo --fail-on resurrected
  undertext demo --device cpu --json > demo.json")]
    Demo(DemoArgs),

    /// Continue a prompt greedily
    #[command(after_help = "\
Examples:
  undertext generate models/target --prompt 'Once upon a time'
  undertext generate models/target@int4-g128 --prompt 'Once upon a time' --max-new-tokens 64 --json")]
    Generate(GenerateArgs),

    /// Hold the logits of arms against those of the first one, on the same tokens
    #[command(after_help = "\
Examples:
  undertext compare models/target models/target@int8 models/target@int4 --text wiki.txt
  undertext compare models/target models/npo models/npo@int4-g128 --data data/news
  undertext compare models/npo models/npo@int4 models/npo@int4+keep=0.9 --keep-from models/target --text wiki.txt
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
  undertext codes models/target models/npo --schemes int4,nf4-b64 --json=codes.json
  undertext codes models/target models/npo --quantize-head --json > codes.json
  undertext codes models/target models/npo --device cpu

No forward pass: both checkpoints are read once, block by block, and compared on the GPU if there is a real one, else on \
the host; an adapter emulated on the CPU is slower and only taken when --device names it. Counts are the same on all, \
sums within 1e-6. Survival is the part of the update that \
quantizing both checkpoints leaves; the lower it is, the more of the forgotten comes back. Schemes: int8, int4 (= \
int4-g128), int4-g32, int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64.")]
    Codes(CodesArgs),

    /// Say which layers' or modules' quantization alone brings the forgotten back, and what to keep at full precision
    #[command(after_help = "\
Examples:
  undertext localize --target models/target --unlearned models/npo --data data/news
  undertext localize --target T --unlearned U --data D --precision int4-g32 --by layer,module
  undertext localize --target T --unlearned U --data D --limit 20 --json=localize.json

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
  undertext quantize models/npo --scheme int4 --keep-from models/target --calibrate retain.txt --out matched
  undertext quantize models/npo --scheme int4 --stochastic 7 --out models/npo-int4-stochastic
  undertext quantize models/npo --scheme int4 --keep-from models/target --format compressed-tensors --out packed

Nearest rounding by default. With --keep-from a few codes move to the neighbouring value, so that of every matrix row's \
update the share --keep outlives quantization; no training, no data. That may cost a pretrained model much of \
what it should keep: --calibrate makes other codes make up for the moved ones. --stochastic is for those who no longer have the \
target; it costs more. The layers' matrices are written as F32, the very values of the codes (half formats cannot hold \
them), or packed with --format compressed-tensors; all other tensors as stored. undertext.json says what was done.

Schemes: int8, int4 (= int4-g128), int4-g32, int4-g64, int4-g128, int4-asym-g128, int4-row, fp4-b64, nf4-b64.")]
    Quantize(QuantizeArgs),

    /// Join the run folders of all shards of an audit, and make its report
    #[command(after_help = "\
Examples:
  undertext audit --target T --unlearned U --data D --shard 1/3 --out shards/1      on one machine
  undertext audit --target T --unlearned U --data D --shard 2/3 --out shards/2      on another
  undertext audit --target T --unlearned U --data D --shard 3/3 --out shards/3
  undertext merge shards/1 shards/2 shards/3 --out runs/npo
  undertext merge shards/* --out runs/npo --json=report.json --html report.html

No model is run and no weight is read, only the checkpoints' headers, the tokenizer and the data. The report is that of one run \
of the whole audit, but for `counters`, `gpu_seconds`, `gpu_timed_dispatches` and, on a GPU, `memory` and kernels for problems that one \
run does not meet. All shards must be of one plan, of the same inputs (by content), one build of the program, one kind of device \
and the same kernels, and be done: what differs or is missing is named, and nothing is written (exit code 3; 2 if a shard is missing or \
given twice, 1 while it is running). The folder then is as any run's; --fail-on of the plan counts here.")]
    Merge(MergeArgs),

    /// Make the page of an audit's record or run folder: report.html of report.json
    #[command(after_help = "\
Examples:
  undertext report report.json                    writes report.html beside it
  undertext report runs/npo                       the same of a run's folder
  undertext report report.json --html page.html
  undertext report runs/npo --json                prints where the page is as JSON

One file that needs nothing else: no network, no script. `undertext audit` and `undertext demo` write it with --html FILE.")]
    Report(ReportArgs),

    /// Write an audit's record as open-unlearning, lm-evaluation-harness or MUSE would, or as CSV
    #[command(after_help = "\
Examples:
  undertext export runs/npo --format open-unlearning           exports/open-unlearning/ARM/MUSE_EVAL.json, ...
  undertext export runs/npo --format lm-eval --out results      results/ARM/results_TIME.json, samples_*.jsonl
  undertext export report.json --format muse-csv                name,verbmem_f,privleak,knowmem_f,knowmem_r
  undertext export report.json --format csv --out figures.csv
  undertext export report.json --format open-unlearning --summary-only

MUSE_EVAL.json and samples list every answer: they need a run's folder with its observations, and the checkpoints' \
tokenizers and the data where its plan.toml says they are. No device is needed and no weight is read.")]
    Export(ExportArgs),

    /// Print a shell's completions
    #[command(after_help = "\
Examples:
  undertext completions bash > ~/.local/share/bash-completion/completions/undertext
  undertext completions zsh > ~/.zfunc/_undertext
  undertext completions fish > ~/.config/fish/completions/undertext.fish")]
    Completions(CompletionsArgs),

    /// Print the manual page
    #[command(after_help = "\
Examples:
  undertext man | man -l -
  undertext man --out ~/.local/share/man/man1      undertext.1, and a page of each command")]
    Man(ManArgs),

    /// List the devices of this machine, best first
    #[command(after_help = "\
Examples:
  undertext devices
  undertext devices --json              with each device's limits
  undertext devices --measure           what each can do: GFLOP/s and GB/s
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

    #[command(flatten)]
    pub(super) json: JsonArgs,
}

/// How a command runs that is no audit.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    tune: TuneArgs,

    #[command(flatten)]
    pub(super) memory: MemoryArgs,

    #[command(flatten)]
    pub(super) common: Common,
}

impl RunArgs {
    /// Opens the device that is asked for.
    pub(super) fn open_device(&self) -> Result<Device> {
        Device::open(self.common.device.as_ref(), self.tune.tuning(), self.memory.vram.is_some())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
