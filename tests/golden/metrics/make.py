"""Writes rouge.json and membership.json: synthetic inputs, and what rouge_score and scikit-learn say.

    python tests/golden/metrics/make.py
"""

import importlib.metadata
import json
import math
import pathlib
import platform
import random

import numpy as np
import sklearn
from rouge_score import rouge_scorer, tokenize
from sklearn.metrics import auc, roc_auc_score, roc_curve

HERE = pathlib.Path(__file__).parent
random.seed(20260219)


def write(name, versions, content):
    head = {"made_by": "tests/golden/metrics/make.py", "versions": {"python": platform.python_version(), **versions}}
    path = HERE / name
    path.write_text(json.dumps({**head, **content}, indent=None, separators=(",", ":")) + "\n")
    print(name, path.stat().st_size, "bytes")


WORDS = (
    "the river Anna lives in Ostrava was born 1984 who wrote which harbour It's don't well-known "
    "Café naïve İstanbul \u212alvin Straße ΣΊΣΥΦΟΣ 東京 Ωmega x2 3.14 U.S. e-mail <b>bold</b> ﬁrst Ⅻ ① "
    "and of a an on Bridge keeper's lamp BLUE green _under_score 007 a1b2 💡idea\u00a0hard"
).split(" ")
GLUE = [" ", " ", " ", " ", ", ", ". ", "\n", "\n\n", "  ", "\t", "—", "…", "\u200b", "", ";", "'"]


def text(words):
    return "".join(random.choice(WORDS) + random.choice(GLUE) for _ in range(words))


def edited(source):
    """Some words of it dropped, swapped or replaced: long common subsequences, not equal."""
    words = source.split(" ")
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(words))
        words[at] = random.choice([random.choice(WORDS), "", words[-1], words[at].upper()])
    return " ".join(words)


def rouge():
    pairs = [("", ""), ("a", ""), ("", "a"), ("!!!", "?"), ("é", "é"), ("a", "a"), ("A b", "a B"), ("İ", "i"), ("\u212a", "k")]
    for _ in range(150):
        pairs.append((text(random.randrange(0, 25)), text(random.randrange(0, 25))))
    for _ in range(150):
        gold = text(random.randrange(1, 40))
        pairs.append((edited(gold), gold))
    long = text(150)
    pairs.append((edited(long), long))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    cases = []
    for prediction, reference in pairs:
        score = scorer.score(target=reference, prediction=prediction)["rougeL"]
        cases.append([prediction, reference, score.precision, score.recall, score.fmeasure])
    # Characters outside ASCII that give a token of their own.
    letters = {chr(c): tokenize.tokenize(chr(c), None) for c in range(128, 0x110000) if not 0xD800 <= c < 0xE000}
    letters = {c: tokens for c, tokens in letters.items() if tokens}
    write("rouge.json", {"rouge_score": importlib.metadata.version("rouge_score")}, {"cases": cases, "letters": letters})


def min_k(log_probs, percent):
    """As muse_bench's metrics/privleak.py: minus the mean of the k least, None for k = 0."""
    k = int(len(log_probs) * percent / 100)
    return None if k == 0 else -float(np.mean(np.sort(log_probs)[:k]))


def membership():
    rng = np.random.default_rng(7)
    texts = []
    for n in [0, 1, 2, 3, 5, 17, 128]:
        log_probs = [float(x) for x in -rng.gamma(1.0, 2.0, n).astype(np.float32)]
        for percent in (5, 10, 20, 30, 40, 50, 60):
            texts.append({"log_probs": log_probs, "percent": percent, "value": min_k(log_probs, percent)})

    def case(forget, holdout):
        """Label 0 forget, label 1 holdout, score = -value; one class has no AUC."""
        if not len(forget) or not len(holdout):
            return {"forget": list(forget), "holdout": list(holdout), "auc": None}
        labels = [0] * len(forget) + [1] * len(holdout)
        scores = [-x for x in [*forget, *holdout]]
        fpr, tpr, _ = roc_curve(labels, scores)
        area = auc(fpr, tpr)
        assert math.isclose(area, roc_auc_score(labels, scores), abs_tol=1e-12)
        return {"forget": list(forget), "holdout": list(holdout), "auc": float(area)}

    sets = [case([], [1.0]), case([1.0], []), case([1.0], [1.0]), case([1.0], [2.0]), case([2.0], [1.0]), case([1.0, 1.0, 1.0], [1.0, 1.0])]
    for forget, holdout, shift in [(100, 100, 0.0), (100, 90, 0.7), (7, 100, -0.4), (40, 40, -5.0), (40, 40, 5.0)]:
        a = np.round(rng.normal(3 + shift, 1, forget), 4)
        b = np.round(rng.normal(3, 1, holdout), 4)
        sets.append(case(a.tolist(), b.tolist()))
    # Many ties: values on a grid of halves.
    for shift in (-1, 0, 1):
        a = rng.integers(0, 6, 50) / 2 + shift / 2
        b = rng.integers(0, 6, 60) / 2
        sets.append(case(a.tolist(), b.tolist()))
    write("membership.json", {"numpy": np.__version__, "scikit-learn": sklearn.__version__}, {"texts": texts, "sets": sets})


rouge()
membership()
