"""Writes roc.json: values of forget and holdout texts, and what scikit-learn's roc_curve makes of them.

    python tests/golden/metrics/make_roc.py
"""

import json
import pathlib
import platform

import numpy as np
import sklearn
from sklearn.metrics import auc, roc_curve

HERE = pathlib.Path(__file__).parent


def case(forget, holdout):
    """Label 0 forget, label 1 holdout, score = -value, as muse_bench's eval.py."""
    labels = [0] * len(forget) + [1] * len(holdout)
    fpr, tpr, _ = roc_curve(labels, [-x for x in [*forget, *holdout]])
    return {"forget": forget, "holdout": holdout, "points": [list(p) for p in zip(fpr, tpr)], "auc": float(auc(fpr, tpr))}


rng = np.random.default_rng(11)
cases = [case([1.0], [1.0]), case([1.0], [2.0]), case([2.0], [1.0]), case([1.0, 1.0, 2.0], [1.0, 3.0])]
for forget, holdout, shift in [(7, 5, 0.0), (24, 24, -0.7), (40, 30, 0.4), (12, 12, -9.0), (12, 12, 9.0)]:
    values = [np.round(rng.normal(3 + by, 1, n), 3).tolist() for n, by in ((forget, shift), (holdout, 0.0))]
    cases.append(case(*values))
# Many ties: values on a grid of halves.
cases.append(case((rng.integers(0, 5, 20) / 2).tolist(), (rng.integers(0, 5, 25) / 2).tolist()))
head = {"made_by": "tests/golden/metrics/make_roc.py"}
versions = {"python": platform.python_version(), "numpy": np.__version__, "scikit-learn": sklearn.__version__}
path = HERE / "roc.json"
path.write_text(json.dumps({**head, "versions": versions, "cases": cases}, separators=(",", ":")) + "\n")
print(path.name, path.stat().st_size, "bytes")
