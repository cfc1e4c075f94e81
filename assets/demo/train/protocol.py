"""MUSE's measurements: VerbMem, KnowMem and PrivLeak, greedy and in float32.

Prompts are run one length at a time, so nothing is padded; every prompt is answered as if alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from corpus import Question
from prompts import few_shot_prompt
from tokenization import EOS_ID

VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
MIN_K = 0.4

_scorer = RougeScorer(["rougeL"], use_stemmer=False)


@dataclass
class Benchmark:
    """The benchmark files, read."""

    verbmem: list[dict]
    questions: dict[str, list[Question]]
    shots: dict[str, list[Question]]
    privleak: dict[str, list[str]]

    @staticmethod
    def load(root: Path) -> "Benchmark":
        read = lambda name: json.loads((root / name).read_text())
        pairs = lambda name: [Question(**row) for row in read(name)]
        return Benchmark(
            verbmem=read("verbmem/forget.json"),
            questions={s: pairs(f"knowmem/{s}_qa.json") for s in ("forget", "retain")},
            shots={s: pairs(f"knowmem/{s}_qa_icl.json") for s in ("forget", "retain")},
            privleak={s: read(f"privleak/{s}.json") for s in ("forget", "retain", "holdout")},
        )


@dataclass
class Answers:
    """One task's score (x100) with the generated ids it came from, an ending EOS included."""

    score: float
    ids: list[list[int]] = field(default_factory=list)


def rouge_l(reference: str, prediction: str) -> float:
    return _scorer.score(target=reference, prediction=prediction)["rougeL"].fmeasure


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy continuations of at most `limit` ids, each ending at its first EOS."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    results: list[list[int]] = [[] for _ in prompts]
    for indices in by_length.values():
        ids, cache = torch.tensor([prompts[i] for i in indices]), None
        open_rows = set(range(len(indices)))
        for _ in range(limit):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            for row in list(open_rows):
                token = ids[row, 0].item()
                results[indices[row]].append(token)
                if token == EOS_ID:
                    open_rows.remove(row)
            if not open_rows:
                break
    return results


def verbmem(model, tokenizer: Tokenizer, items: list[dict], limit: int = VERBMEM_TOKENS) -> Answers:
    answers = greedy(model, [tokenizer.encode(item["prompt"]).ids for item in items], limit)
    scores = []
    for item, answer in zip(items, answers):
        reference = tokenizer.decode(tokenizer.encode(item["gt"]).ids[:VERBMEM_TOKENS])
        scores.append(rouge_l(reference, tokenizer.decode(answer)))
    return Answers(100 * sum(scores) / len(scores), answers)


def cut_answer(text: str) -> str:
    for stop in KNOWMEM_STOPS:
        text = text.split(stop)[0]
    return text


def knowmem(model, tokenizer: Tokenizer, questions, shots, limit: int = KNOWMEM_TOKENS) -> Answers:
    prompts = [tokenizer.encode(few_shot_prompt(shots, q.question)).ids for q in questions]
    answers = greedy(model, prompts, limit)
    scores = [rouge_l(q.answer, cut_answer(tokenizer.decode(a))) for q, a in zip(questions, answers)]
    return Answers(100 * sum(scores) / len(scores), answers)


@torch.inference_mode()
def min_k(model, tokenizer: Tokenizer, texts: list[str]) -> list[float]:
    """Min-40% of each text: minus the mean of the least likely 40 % of its log-probabilities."""
    values = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text).ids)
        log_probabilities = model(input_ids=ids[None, :-1], use_cache=False).logits[0].float().log_softmax(-1)
        taken = log_probabilities.gather(1, ids[1:, None])[:, 0]
        count = int(len(taken) * MIN_K)
        values.append(-taken.sort().values[:count].mean().item())
    return values


def auc(forget: list[float], holdout: list[float]) -> float:
    """P(holdout < forget), ties half: how often an unseen text looks more like a member than a forget text."""
    wins = sum((h < f) + 0.5 * (h == f) for h in holdout for f in forget)
    return wins / (len(forget) * len(holdout))


def privleak(value: float, retrain: float) -> float:
    return 100 * (value - retrain) / retrain
