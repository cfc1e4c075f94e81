"""Writes compare.json: each quantized arm of the golden logits against full precision, by NumPy in float64.

    python tests/golden/compare/make.py

The logits are those that transformers gave (tests/golden/model/*/logits.safetensors, see make_logits.py there). For each
kept position that has a next token, that token is the given one.
"""

import json
import pathlib
import platform

import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "model"
# Log-probabilities nearer than this may change places.
NEAR = 1e-4


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(axis=-1)


def compare(p, q, given):
    rows = np.arange(len(given))
    middle = np.logaddexp(p, q) - np.log(2)
    order = [np.argsort(-x, axis=-1, kind="stable") for x in (p, q)]
    sorted_ = [-np.sort(-x, axis=-1) for x in (p, q)]

    def overlap(k):
        """None where rounding could change who is in."""
        clear = [(x[:, k - 1] - x[:, k] > NEAR).tolist() for x in sorted_]
        common = [len(set(a[:k]) & set(b[:k])) for a, b in zip(*order)]
        return [value if a and b else None for value, a, b in zip(common, *clear)]

    def rank(row):
        close = np.abs(q[row] - q[row, given[row]]) <= NEAR
        return int(np.nonzero(order[1][row] == given[row])[0][0]) + 1 if close.sum() == 1 else None
    return {
        "given": given.tolist(),
        "kl": kl(p, q).tolist(),
        "reverse_kl": kl(q, p).tolist(),
        "jensen_shannon": (0.5 * kl(p, middle) + 0.5 * kl(q, middle)).tolist(),
        "total_variation": (0.5 * np.abs(np.exp(p) - np.exp(q)).sum(axis=-1)).tolist(),
        "reference_log_prob": p[rows, given].tolist(),
        "log_prob": q[rows, given].tolist(),
        "entropy": (-(np.exp(q) * q).sum(axis=-1)).tolist(),
        "rank": [rank(row) for row in rows],
        "top1": overlap(1),
        "top5": overlap(5),
        "top10": overlap(10),
    }


def main():
    cases = []
    for folder in ["tiny_llama", "demo_target"]:
        record = json.loads((MODELS / folder / "logits.json").read_text())
        logits = load_file(MODELS / folder / "logits.safetensors")
        for name in sorted(logits):
            precision, sequence = name.split("/")
            if precision == "fp16":
                continue
            tokens = record["sequences"][int(sequence)]
            first = len(tokens) - len(logits[name])
            given = np.array(tokens[first + 1 :], dtype=np.int64)
            if len(given) == 0:
                continue
            p, q = (log_softmax(logits[f"{arm}/{sequence}"])[:-1] for arm in ("fp16", precision))
            case = {"folder": folder, "precision": precision, "tokens": tokens, "from": first + 1}
            cases.append({**case, **compare(p, q, given)})
    content = {
        "made_by": "tests/golden/compare/make.py",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "cases": cases,
    }
    (HERE / "compare.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
