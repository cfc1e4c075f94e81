"""Measure the exported checkpoints at every scheme with transformers, and write the figures.

    python measure.py            # reads ../models and ../data, writes measured.json and measured_generations.json

Weights are widened from float16 to float32 and computed in float32; a scheme quantizes and dequantizes the
linear layers first.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from export import MODELS
from protocol import Benchmark, auc, knowmem, min_k, privleak, verbmem
from quantize import SCHEMES, compare, quantized

FULL = "f16"
GOLDEN_SCHEMES = (FULL, "int4-g128")


def load(path: Path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    probe = "Question: Who?\nAnswer: "
    assert tokenizer(probe)["input_ids"] == tokenizer.backend_tokenizer.encode(probe).ids
    return model, tokenizer.backend_tokenizer


def measure_arm(model, tokenizer, benchmark: Benchmark) -> tuple[dict, dict]:
    """The arm's scores, and what it generated."""
    memory = verbmem(model, tokenizer, benchmark.verbmem)
    know = {s: knowmem(model, tokenizer, benchmark.questions[s], benchmark.shots[s]) for s in ("forget", "retain")}
    values = {s: min_k(model, tokenizer, benchmark.privleak[s]) for s in ("forget", "retain", "holdout")}
    scores = {
        "verbmem_forget": memory.score,
        "knowmem_forget": know["forget"].score,
        "knowmem_retain": know["retain"].score,
        "auc_forget_holdout_min40": auc(values["forget"], values["holdout"]),
    }
    golden = {
        "verbmem_forget": memory.ids,
        "knowmem_forget": know["forget"].ids,
        "knowmem_retain": know["retain"].ids,
        "min40": {split: [round(v, 5) for v in row] for split, row in values.items()},
    }
    return scores, golden


def recovery(arm: float, unlearned: float, target: float) -> float:
    """Share of the gap between the unlearned model and the target, both at full precision, that an arm closes."""
    return (arm - unlearned) / (target - unlearned)


def measure(root: Path, out: Path) -> None:
    benchmark = Benchmark.load(root / "data")
    models = {n: load(root / "models" / n) for n in MODELS if (root / "models" / n / "model.safetensors").exists()}
    target = models["target"][0]
    arms, golden = [], []
    for name, (model, tokenizer) in models.items():
        for scheme in (FULL, *SCHEMES):
            arm = model if scheme == FULL else quantized(model, scheme)
            scores, answers = measure_arm(arm, tokenizer, benchmark)
            facts = {"model": name, "scheme": scheme, **scores}
            if name not in ("target", "retrain") and scheme != FULL:
                facts |= compare(target, model, scheme)
            arms.append(facts)
            if scheme in GOLDEN_SCHEMES:
                golden.append({"model": name, "scheme": scheme, **answers})
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}, flush=True)
    by_key = {(a["model"], a["scheme"]): a for a in arms}
    auc_retrain = by_key["retrain", FULL]["auc_forget_holdout_min40"]
    for arm in arms:
        arm["privleak"] = privleak(arm["auc_forget_holdout_min40"], auc_retrain)
        if "survival" in arm:
            arm["knowmem_recovery"] = recovery(
                arm["knowmem_forget"],
                by_key[arm["model"], FULL]["knowmem_forget"],
                by_key["target", FULL]["knowmem_forget"],
            )
    packages = ("torch", "transformers", "tokenizers", "safetensors", "rouge_score")
    record = {
        "about": "Measured by measure.py on the exported files: weights widened to float32, float32 compute, greedy.",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "schemes": {
            FULL: "the file's own weights",
            "int8": "absmax / 127, one scale a row, codes -127..127",
            "int4-g32": "absmax / 7.5 over 32 neighbours in a row, codes -8..7",
            "int4-g128": "absmax / 7.5 over 128 neighbours in a row, codes -8..7",
        },
        "auc_retrain": auc_retrain,
        "arms": arms,
    }
    (out / "measured.json").write_text(json.dumps(record, indent=1) + "\n")
    about = {
        "about": "Generated ids of each prompt in file order, an ending EOS (2) included; Min-40% of each PrivLeak text.",
        "arms": golden,
    }
    (out / "measured_generations.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=here.parent, help="directory that holds models/ and data/")
    parser.add_argument("--out", type=Path, default=here, help="where the two result files go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.root, options.out)
