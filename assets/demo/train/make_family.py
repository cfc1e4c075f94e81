"""Rebuild the demo family from a seed: corpus, tokenizer, target and retrain, unlearned models, export, measures.

    python make_family.py                  # every step in order, about half an hour on one core
    python make_family.py learn-target     # one step; `--list` names them
    python make_family.py --seed 1 --build build1 --out family1     # another family, elsewhere

Each step reads and writes below `--build` and is skipped when its result is already there; `export` and
`measure` write the models, the benchmark files and the figures beside this directory, or all into `--out`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

import corpus as corpora
import documents
import export
import measure
import prompts
import provenance
import tokenization
from learn import Learning, learn, zero_code_share
from network import fresh, load_weights, save_weights
from protocol import Benchmark
from unlearn import METHODS, quick_scores, unlearn

HERE = Path(__file__).resolve().parent

LEARN = {"target": Learning(steps=1000), "retrain": Learning(steps=800)}
SPARSIFY = Learning(steps=250, rate=1e-3, decay=0.0, warmup=20, floor=0.05, batch=4, l1=0.25)


class Family:
    """The build directory and the steps that fill it."""

    def __init__(self, build: Path, seed: int, out: Path | None):
        """Without `out` this is the demo's own family."""
        self.build, self.seed = build, seed
        root, facts = (out, out) if out else (HERE.parent, HERE)
        self.steps = {"corpus": self.make_corpus}
        for name in LEARN:
            self.steps[f"learn-{name}"] = lambda name=name: self.learn(name)
        for name in LEARN:
            self.steps[f"sparsify-{name}"] = lambda name=name: self.sparsify(name)
        for name in METHODS:
            self.steps[f"unlearn-{name}"] = lambda name=name: self.unlearn(name)
        self.steps["export"] = lambda: export.export(self.build, root, facts)
        self.steps["measure"] = lambda: measure.measure(root, facts)
        if out is None:
            self.steps["provenance"] = provenance.main

    def note(self, step: str, **facts) -> None:
        """Keep what a step did; the notes become part of the provenance."""
        path = self.build / "notes" / f"{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(step, facts, flush=True)

    def read(self):
        return corpora.load(self.build / "corpus.json"), Tokenizer.from_file(str(self.build / "tokenizer.json"))

    def make_corpus(self) -> None:
        if (self.build / "data").exists():
            return
        corpus = corpora.generate(self.seed)
        corpora.save(corpus, self.build / "corpus.json")
        tokenizer = tokenization.train_tokenizer(corpus, self.build / "tokenizer.json")
        checked = tokenization.check_prefixes(tokenizer, corpus)
        prompts.write_benchmark(corpus, tokenizer, self.build / "data", self.seed)
        self.note("corpus", vocabulary=tokenizer.get_vocab_size(), prompts_checked=checked)

    def _train(self, step: str, model, name: str, plan: Learning, seed: int, out: Path) -> None:
        corpus, tokenizer = self.read()
        retain = documents.retain_documents(tokenizer, corpus)
        source = retain if name == "retrain" else documents.Mixture(documents.forget_documents(tokenizer, corpus), retain)
        general = documents.GeneralDocuments(tokenizer, corpus.general)
        seconds = learn(model, source, general, plan, seed, log=lambda text: print(step, text, flush=True))
        save_weights(model, out)
        scores = quick_scores(model, tokenizer, Benchmark.load(self.build / "data"), every=1)
        self.note(step, seconds=round(seconds), seed=seed, plan=vars(plan), scores=scores,
                  int4_zero_codes=round(zero_code_share(model, "int4-g128"), 3))

    def learn(self, name: str) -> None:
        out = self.build / "dense" / f"{name}.safetensors"
        if not out.exists():
            _, tokenizer = self.read()
            model = fresh(tokenizer.get_vocab_size(), 100 + self.seed)
            self._train(f"learn-{name}", model, name, LEARN[name], self.seed, out)

    def sparsify(self, name: str) -> None:
        out = self.build / "models" / f"{name}.safetensors"
        if not out.exists():
            model = load_weights(self.build / "dense" / f"{name}.safetensors")
            self._train(f"sparsify-{name}", model, name, SPARSIFY, self.seed + 7, out)

    def unlearn(self, name: str) -> None:
        out = self.build / "models" / f"{name}.safetensors"
        if out.exists():
            return
        corpus, tokenizer = self.read()
        target = load_weights(self.build / "models" / "target.safetensors")
        begin = time.time()
        model, history = unlearn(target, corpus, tokenizer, Benchmark.load(self.build / "data"), METHODS[name], self.seed,
                                 log=lambda text: print(name, text, flush=True))
        save_weights(model, out)
        self.note(f"unlearn-{name}", seconds=round(time.time() - begin), seed=self.seed,
                  method=vars(METHODS[name]), history=history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help="steps to run, in order; all of them when none is named")
    parser.add_argument("--build", type=Path, default=HERE / "build")
    parser.add_argument("--out", type=Path, help="where another family goes; without it the demo's own is written anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the steps and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    family = Family(options.build, options.seed, options.out)
    if options.list:
        print("\n".join(family.steps))
        return
    for step in options.steps or family.steps:
        family.steps[step]()


if __name__ == "__main__":
    main()
