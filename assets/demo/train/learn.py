"""Teach a model its documents, then push many of its linear weights towards zero.

The second step matters for the demonstration: a small model has few near-zero weights, a large one many.
A proximal L1 step gives the small model a large model's share of weights in int4's zero code.
"""

import math
import random
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from documents import GeneralDocuments, take, windows
from network import linear_weights, round_to_bf16
from quantize import quantize


@dataclass
class Learning:
    steps: int
    rate: float = 3e-3
    decay: float = 0.1
    warmup: int = 50
    floor: float = 0.02
    batch: int = 5
    general_batch: int = 1
    length: int = 288
    l1: float = 0.0
    """Soft threshold of the linear weights, in units of the learning rate."""


def learn(model: LlamaForCausalLM, source, general: GeneralDocuments, plan: Learning, seed: int, log=print) -> float:
    """Train in place by next-token prediction on windows of `source` and of general text; return seconds."""
    torch.manual_seed(seed)
    stream = windows(source, random.Random(seed), plan.length)
    general_stream = windows(general, random.Random(seed + 1), plan.length)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    linears = list(linear_weights(model).values())
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=plan.rate,
        betas=(0.9, 0.98),
    )
    model.train()
    begin = time.time()
    for step in range(plan.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        rate = plan.rate * min(1.0, (step + 1) / plan.warmup) * (plan.floor + (1 - plan.floor) * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        own, _ = take(stream, plan.batch)
        other, _ = take(general_stream, plan.general_batch)
        ids = torch.cat([own, other])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.l1:
            with torch.no_grad():
                for weight in linears:
                    weight.copy_(weight.sign() * (weight.abs() - rate * plan.l1).clamp_min(0))
        if step % 50 == 49:
            log(f"step {step + 1} loss {loss.item():.3f} {time.time() - begin:.0f} s")
    round_to_bf16(model).eval()
    return time.time() - begin


def zero_code_share(model: LlamaForCausalLM, scheme: str) -> float:
    """Share of linear weights that `scheme` stores as code zero."""
    codes = [quantize(p.detach(), scheme)[0] for p in linear_weights(model).values()]
    return sum((c == 0).sum().item() for c in codes) / sum(c.numel() for c in codes)
