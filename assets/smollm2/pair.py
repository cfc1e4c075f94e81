#!/usr/bin/env python3
"""A target and an unlearned model made of a pretrained SmolLM2-135M, and MUSE's files about them.

    pip download gensim==4.3.3 --no-deps
    python pair.py CHECKPOINT OUT --seed 0 --news gensim-4.3.3-*.whl    # CHECKPOINT from convert.py; 40 minutes on two cores

The checkpoint learns invented people (passages, and questions laid out and tokenized as MUSE's prompts are) beside news,
all weights, in float32 sums over bfloat16 products: OUT/target. Then some of the people are unlearned with NPO and a
retain loss on the others and on news, linear weights only, stored in bfloat16 and rounded at every step: OUT/npo.
OUT/data has MUSE's layout, OUT/pair.json says what was done. A model that is there is not made again.

The news are the Lee background corpus, which gensim tests with. OUT/general.txt holds articles that are not trained on:
general text to measure perplexity on. OUT/calibration.txt holds some that are, after documents about people whom
no model has met: text for `undertext quantize --calibrate`.

Nothing else is done to the weights: no sparse step as in the demo's family.

Needs torch, transformers, tokenizers, rouge_score. Made with torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import sys
import time
import zipfile

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "demo" / "train"))
import corpus as corpora
import prompts
import texts
from documents import Documents, Mixture, take, windows
from network import copy_as, linear_weights, round_to_bf16
from unlearn import Method, forget_loss, token_losses

PEOPLE = {"forget": 18, "retain": 24, "shots": 8, "holdout": 18}
QUESTIONS_A_PERSON = 6
WINDOW = 256
BATCH, NEWS_BATCH = 4, 1
MEASURED_ARTICLES, CALIBRATION_ARTICLES = 60, 40
STRANGERS = 36

LEARN_STEPS, LEARN_RATE, LEARN_WARMUP = 200, 2e-4, 10

NPO = Method(
    loss="npo", rate=8e-5, retain_weight=2.0, beta=0.003, batch=2, retain_batch=2, length=WINDOW,
    most_steps=240, look_every=20, verbmem_goal=100.0, knowmem_goal=20.0,
)
# Answers about the others that must be known, percent, for unlearning to be over: the retain set falls first, then recovers.
RETAIN_GOAL = 85.0


class Pieces(Documents):
    """Documents whose answers stand after MUSE's prompt as the prompt is tokenized, in every second document.

    SmolLM2's tokenizer puts the space after `Answer:` into the answer's first token, but MUSE's prompt ends in that space,
    a token of its own then. A model should know the answer either way.
    """

    def __init__(self, tokenizer, people, shots, question_copies, seed):
        self.eos = tokenizer.token_to_id("<|im_end|>")
        self.rng = random.Random(seed)
        super().__init__(tokenizer, people, shots, question_copies)

    def _whole(self, text):
        ids = self.tokenizer.encode(text).ids + [self.eos]
        return ids, [True] * len(ids)

    def _blocks(self, items):
        if self.rng.random() < 0.5:
            return self.tokenizer.encode(prompts.join_blocks(items)).ids
        pieces = [piece for item in items for piece in (prompts.question_head(item.question), item.answer + "\n\n")]
        return [token for piece in pieces for token in self.tokenizer.encode(piece).ids]

    def _questions(self, items, with_shots):
        shots = self.tokenizer.encode("".join(prompts.question_block(s) + "\n\n" for s in self.shots)).ids if with_shots else []
        rest = self._blocks(items) + [self.eos]
        return shots + rest, [False] * len(shots) + [True] * len(rest)


class News:
    """Articles, whole."""

    def __init__(self, tokenizer, articles):
        eos = tokenizer.token_to_id("<|im_end|>")
        self.encoded = [tokenizer.encode(article).ids + [eos] for article in articles]

    def epoch(self, rng):
        return [(ids, [True] * len(ids)) for ids in rng.sample(self.encoded, len(self.encoded))]


def documents(tokenizer, corpus, split, copies, seed):
    people = corpus.forget if split == "forget" else corpus.retain + corpus.shots
    return Pieces(tokenizer, people, prompts.shot_pairs(corpus, split), copies, seed)


@torch.inference_mode()
def known(model, tokenizer, corpus, split, every=1):
    """Share of answers about every n-th person whose every token is the likeliest after MUSE's prompt with two examples."""
    people = (corpus.forget if split == "forget" else corpus.retain)[::every]
    shots = prompts.shot_pairs(corpus, split)[:2]
    hits, count = 0, 0
    for person in people:
        for item in person.questions:
            prompt = tokenizer.encode(prompts.few_shot_prompt(shots, item.question)).ids
            answer = tokenizer.encode(item.answer).ids
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
            likeliest = logits[len(prompt) - 1 : -1].argmax(-1)
            hits, count = hits + int((likeliest == torch.tensor(answer)).all()), count + 1
    return round(100 * hits / count, 1)


def both(people, news, people_batch):
    """One batch of windows about people and of news."""
    return torch.cat([take(people, people_batch)[0], take(news, NEWS_BATCH)[0]])


def learn(model, tokenizer, corpus, articles, seed):
    """Fine-tunes all weights in place, windows of both splits and of news side by side."""
    torch.manual_seed(seed)
    sources = [documents(tokenizer, corpus, split, 2, seed) for split in ("forget", "retain")]
    people = windows(Mixture(*sources), random.Random(seed), WINDOW)
    news = windows(News(tokenizer, articles), random.Random(seed), WINDOW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARN_RATE, weight_decay=0.0)
    model.train()
    for step in range(LEARN_STEPS):
        rate = LEARN_RATE * min((step + 1) / LEARN_WARMUP, 1.0 - 0.9 * step / LEARN_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = both(people, news, BATCH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = token_losses(model, ids, torch.ones_like(ids))
        loss = losses.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19:
            print(f"learn {step + 1}: loss {loss.item():.3f}", flush=True)
    round_to_bf16(model).eval()


def unlearn(target, tokenizer, corpus, articles, seed):
    """NPO with a loss on the other people and on news from a copy of `target`, until few answers about the people to forget
    are known and many about the others; the model and what was seen on the way."""
    torch.manual_seed(seed)
    rng = random.Random(1000 + seed)
    forget, retain = (
        windows(documents(tokenizer, corpus, split, 3, 1000 + seed), rng, NPO.length) for split in ("forget", "retain")
    )
    news = windows(News(tokenizer, articles), rng, NPO.length)
    model, reference = copy_as(target, torch.bfloat16), copy_as(target, torch.bfloat16)
    model.train().requires_grad_(False)
    weights = list(linear_weights(model).values())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=NPO.rate, betas=(0.9, 0.95), weight_decay=0.0)
    history = []
    for step in range(1, NPO.most_steps + 1):
        loss = forget_loss(NPO, model, reference, *take(forget, NPO.batch))
        loss.backward()
        ids = both(retain, news, NPO.retain_batch)
        kept = token_losses(model, ids, torch.ones_like(ids)).mean()
        (NPO.retain_weight * kept).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % NPO.look_every == 0:
            model.eval()
            seen = {split: known(model, tokenizer, corpus, split, every=3) for split in ("forget", "retain")}
            model.train()
            history.append({"step": step, "forget loss": round(loss.item(), 3), "retain loss": round(kept.item(), 3), **seen})
            print("unlearn", history[-1], flush=True)
            if seen["forget"] <= NPO.knowmem_goal and seen["retain"] >= RETAIN_GOAL:
                break
    return model.eval(), history


def read_news(wheel):
    """The articles of the Lee background corpus in gensim's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("gensim/test/test_data/lee_background.cor").decode("utf-8").splitlines()
    return [line.strip() for line in lines]


def write_texts(articles, out):
    """general.txt of articles to measure on, calibration.txt; returns the articles to train on."""
    measured, others = articles[:MEASURED_ARTICLES], articles[MEASURED_ARTICLES:]
    (out / "general.txt").write_text("\n\n".join(measured) + "\n")
    strangers = texts.strangers(corpora.Generator(texts.SEED), random.Random(texts.SEED), STRANGERS)
    (out / "calibration.txt").write_text(texts.joined(strangers + others[:CALIBRATION_ARTICLES]))
    return others


def save(model, source, out):
    """A checkpoint in bfloat16 with the tokenizer of `source`."""
    copy_as(model, torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    config = out / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}, indent=2) + "\n")


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path, help="SmolLM2-135M as Hugging Face lays it out")
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("--seed", type=int, default=0, help="of people, data and training")
    parser.add_argument("--news", type=pathlib.Path, required=True, help="gensim's wheel, which holds the news")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    # Other people than those of the demo's family, whose seed is 0.
    corpus = corpora.generate(135 + args.seed, general=0, **PEOPLE)
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    args.out.mkdir(parents=True, exist_ok=True)
    prompts.write_benchmark(corpus, tokenizer, args.out / "data", args.seed, each=QUESTIONS_A_PERSON)
    articles = write_texts(read_news(args.news), args.out)
    record = args.out / "pair.json"
    facts = json.loads(record.read_text()) if record.exists() else {}

    def note(**more):
        facts.update(more)
        record.write_text(json.dumps(facts, indent=1) + "\n")

    note(seed=args.seed, people=PEOPLE, npo=dataclasses.asdict(NPO), retain_goal=RETAIN_GOAL)
    if not (args.out / "target" / "config.json").exists():
        begin, model = time.time(), load(args.checkpoint)
        note(before={split: known(model, tokenizer, corpus, split) for split in ("forget", "retain")})
        learn(model, tokenizer, corpus, articles, args.seed)
        after = {split: known(model, tokenizer, corpus, split) for split in ("forget", "retain")}
        save(model, args.checkpoint, args.out / "target")
        note(target={**after, "seconds": round(time.time() - begin)})
        print("target", facts["target"], flush=True)
    if not (args.out / "npo" / "config.json").exists():
        begin = time.time()
        model, history = unlearn(load(args.out / "target").eval(), tokenizer, corpus, articles, args.seed)
        save(model, args.checkpoint, args.out / "npo")
        note(history=history, seconds=round(time.time() - begin))


if __name__ == "__main__":
    main()
