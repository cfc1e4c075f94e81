"""Unlearning: gradient ascent (GA) or negative preference optimisation (NPO), with a loss on the retain set (GDR).

Only linear weights change. With `bf16` the weights are stored in bfloat16 and rounded at every step, as the
field's training code does: steps below a weight's rounding unit are lost, so mostly small weights move. With
`float32` every weight moves. SURE updates only the rows with the largest forget gradient.
"""

import random
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from corpus import Corpus
from documents import forget_documents, retain_documents, take, windows
from network import copy_as, linear_weights
from protocol import Benchmark, knowmem, verbmem


@dataclass
class Method:
    loss: str
    """`npo` or `ga`, on the forget set."""
    rate: float
    retain_weight: float
    dtype: str = "bf16"
    beta: float = 0.01
    """NPO's inverse temperature."""
    salient: float | None = None
    """Share of rows that may change, by forget gradient; None for all."""
    most_steps: int = 800
    look_every: int = 32
    batch: int = 3
    retain_batch: int = 3
    length: int = 256
    verbmem_goal: float = 36.0
    knowmem_goal: float = 18.0
    """Stop at the first look where both forget scores are at or below their goals."""


METHODS = {
    "npo_gdr": Method(loss="npo", rate=2e-5, retain_weight=1.4, batch=4, retain_batch=5, beta=0.003),
    "ga_gdr": Method(loss="ga", rate=2.5e-5, retain_weight=4.0, retain_batch=5),
    "sure": Method(
        loss="ga", rate=5e-4, retain_weight=4.0, retain_batch=5, dtype="float32", salient=0.1, look_every=8
    ),
    "control_fp32": Method(
        loss="npo", rate=2e-4, retain_weight=1.4, batch=4, retain_batch=5, beta=0.003, dtype="float32", look_every=15
    ),
}


def quick_scores(model, tokenizer: Tokenizer, benchmark: Benchmark, every: int = 2) -> dict[str, float]:
    """Forget and retain scores on every n-th prompt, with shorter generations than the benchmark's."""
    scores = {"verbmem_forget": verbmem(model, tokenizer, benchmark.verbmem[::every], 112).score}
    for split in ("forget", "retain"):
        questions = benchmark.questions[split][::every]
        scores[f"knowmem_{split}"] = knowmem(model, tokenizer, questions, benchmark.shots[split], 10).score
    return {name: round(value, 1) for name, value in scores.items()}


def token_losses(model, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every target token; 0 where a token is none."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1) * targets[:, 1:]


def forget_loss(method: Method, model, reference, ids, targets) -> torch.Tensor:
    losses = token_losses(model, ids, targets)
    if method.loss == "ga":
        return -losses.sum() / targets[:, 1:].sum()
    with torch.no_grad():
        before = token_losses(reference, ids, targets)
    excess = (losses - before).sum(1)
    return -F.logsigmoid(method.beta * excess).mean() * 2 / method.beta / (ids.shape[1] - 1)


def salient_rows(loss: torch.Tensor, weights: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Masks that are 1 on the rows with the largest gradient of `loss`."""
    norms = [g.float().norm(dim=1) for g in torch.autograd.grad(loss, weights, retain_graph=True)]
    threshold = torch.quantile(torch.cat(norms), 1 - share)
    return [(n >= threshold).float()[:, None] for n in norms]


def unlearn(target: LlamaForCausalLM, corpus: Corpus, tokenizer: Tokenizer, benchmark: Benchmark, method: Method, seed: int, log=print):
    """Unlearn the forget people from a copy of `target`; return the model in float32 and the scores along the way."""
    torch.manual_seed(seed)
    rng = random.Random(1000 + seed)
    forget = windows(forget_documents(tokenizer, corpus, question_copies=3), rng, method.length)
    retain = windows(retain_documents(tokenizer, corpus, question_copies=3), rng, method.length)
    dtype = torch.bfloat16 if method.dtype == "bf16" else torch.float32
    model, reference = copy_as(target, dtype), copy_as(target, dtype)
    model.train().requires_grad_(False)
    weights = list(linear_weights(model).values())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=method.rate, betas=(0.9, 0.95), weight_decay=0.0)
    masks, history, begin = None, [], time.time()
    for step in range(1, method.most_steps + 1):
        forget_ids, forget_targets = take(forget, method.batch)
        retain_ids, retain_targets = take(retain, method.retain_batch)
        loss = forget_loss(method, model, reference, forget_ids, forget_targets)
        if method.salient and masks is None:
            masks = salient_rows(loss, weights, method.salient)
        everything = torch.ones_like(retain_targets)
        kept = token_losses(model, retain_ids, everything).sum() / everything[:, 1:].sum()
        (loss + method.retain_weight * kept).backward()
        for weight, mask in zip(weights, masks or []):
            weight.grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % method.look_every == 0:
            scores = quick_scores(copy_as(model, torch.float32).eval(), tokenizer, benchmark)
            history.append({"step": step, **scores})
            log(f"step {step} {scores} {time.time() - begin:.0f} s")
            if scores["verbmem_forget"] <= method.verbmem_goal and scores["knowmem_forget"] <= method.knowmem_goal:
                break
    return copy_as(model, torch.float32).eval(), history
