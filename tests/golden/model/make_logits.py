#!/usr/bin/env python3
"""Golden logits of a checkpoint by transformers in float32, at full precision and with quantized weights.

    python make_logits.py DIR OUT [--scheme int8]... [--lengths 1 17 45 | --prompts FILE] [--last N]

DIR is any Llama checkpoint; OUT is a directory, which gets

- logits.safetensors: f32 tensors `<precision>/<sequence>`, `[positions, v]`; precision is `fp16` (the weights as
  stored) or a scheme's name;
- logits.json: the token ids, which positions are kept, versions, and for every quantized matrix the FNV-1a hash of its
  dequantized f32 weights (little-endian, row-major): if `decode(encode(w))` of the host codec has another hash, the
  codecs differ and not the forward passes.

Sequences are random token ids (seeded) of the lengths asked for, or the texts of a JSON array encoded with DIR's
tokenizer. `--last N` keeps the logits of each sequence's last N positions only (for large vocabularies).

How to compare: over all kept positions of a sequence, the largest |difference| is at most 1e-3 of the range (max - min)
of the golden logits, and the argmax is equal at every position. This script prints the smallest margin between the two
top logits, so that an argmax that differs can be told from a near tie.

The quantized matrices are the seven of each layer; embedding, norms, biases and head stay as they are. The grids are
written out here in NumPy, in float32: step = absmax / 127 (int8, one a row) or absmax / 7.5 (int4-gN, N neighbours in
a row, the last group may be shorter); code = w / step, rounded half to even and clamped; value = code * step. As in
undertext's codec the rounding is settled by products, not by the quotient: the code of a magnitude is the least c with
magnitude < (c + 0.5) * step, or equal to it and c even.
"""

import argparse
import json
import pathlib
import re

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

F = np.float32
LINEAR = re.compile(r"layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight$")


def grid(scheme, cols):
    """Group, divisor of twice the absmax, least and greatest code."""
    if scheme == "int8":
        return cols, F(254), -127, 127
    if match := re.fullmatch(r"int4-g(32|64|128)", scheme):
        return int(match[1]), F(15), -8, 7
    raise SystemExit(f"--scheme {scheme}: only int8 and int4-g32, -g64, -g128 are written out here")


def dequantize(scheme, weight):
    group, divisor, low, high = grid(scheme, weight.shape[1])
    out = np.empty_like(weight)
    for start in range(0, weight.shape[1], group):
        w = weight[:, start : start + group]
        absmax = np.abs(w).max(axis=1, keepdims=True)
        step = (F(2) * absmax) / divisor
        magnitude = np.abs(w)
        safe = np.where(step == 0, F(1), step)
        code = np.floor(magnitude / safe + F(0.5))

        def at_most(c):
            edge = (c + F(0.5)) * safe
            return (magnitude < edge) | ((magnitude == edge) & (c % 2 == 0))

        below, here = at_most(code - 1) & (code > 0), at_most(code)
        code = np.where(below, code - 1, np.where(here, code, code + 1)).astype(F)
        code = np.clip(np.copysign(code, w), low, high)
        out[:, start : start + group] = np.where(step == 0, F(0), code * step)
    assert out.dtype == F
    # Hashed by its bits: the codec has no negative zero.
    return out + F(0)


def fnv1a(array):
    value = 0xCBF29CE484222325
    for byte in array.astype("<f4").tobytes():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


@torch.no_grad()
def run(model, sequences, last):
    return [model(torch.tensor([ids])).logits[0][-last:].contiguous() for ids in sequences]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scheme", action="append", default=[])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 17, 45])
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--last", type=int, default=0)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    if args.prompts:
        tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
        sequences = [tokenizer(text)["input_ids"] for text in json.loads(args.prompts.read_text())]
    else:
        rng = np.random.default_rng(20261123)
        sequences = [rng.integers(0, model.config.vocab_size, length).tolist() for length in args.lengths]

    weights = {name: p for name, p in model.named_parameters() if LINEAR.search(name)}
    stored = {name: p.detach().numpy().copy() for name, p in weights.items()}
    tensors, hashes = {}, {}
    for precision in ["fp16", *args.scheme]:
        if precision != "fp16":
            hashes[precision] = {}
            for name, parameter in weights.items():
                values = dequantize(precision, stored[name])
                hashes[precision][name] = fnv1a(values)
                parameter.data.copy_(torch.from_numpy(values))
        for index, logits in enumerate(run(model, sequences, args.last)):
            tensors[f"{precision}/{index}"] = logits
            top = logits.topk(2, dim=-1).values
            full = tensors[f"fp16/{index}"]
            print(
                f"{precision}/{index}: {len(sequences[index])} tokens, range {logits.max() - logits.min():.3f}, "
                f"least margin {(top[:, 0] - top[:, 1]).min():.5f}, largest difference to fp16 "
                f"{(logits - full).abs().max():.3f}, same argmax {(logits.argmax(-1) == full.argmax(-1)).float().mean():.2f}"
            )

    args.out.mkdir(exist_ok=True)
    save_file(tensors, args.out / "logits.safetensors")
    record = {
        "made_by": "tests/golden/model/make_logits.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "rule": "largest |difference| <= 1e-3 of the golden logits' range, argmax equal everywhere",
        "kept": f"last {args.last} positions" if args.last else "all positions",
        "sequences": sequences,
        "dequantized_fnv1a": hashes,
    }
    text = json.dumps(record, indent=1)
    # One sequence a line.
    text = re.sub(r"\[\s+(\d[\d,\s]*)\]", lambda ids: "[" + " ".join(ids[1].split()) + "]", text)
    (args.out / "logits.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
