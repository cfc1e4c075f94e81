"""Writes statistics.json: synthetic scores, and what SciPy and statsmodels say of them.

    python tests/golden/metrics/make_statistics.py

SciPy resamples a hundred times more often than the program does, so that what may differ is the program's own
Monte-Carlo error; `spread` (the standard deviation of the statistic over the resamples) is what that scales with.
"""

import json
import pathlib
import platform

import numpy as np
import scipy
import statsmodels
from scipy import stats
from statsmodels.stats.multitest import multipletests

HERE = pathlib.Path(__file__).parent
MANY = 999_999
rng = np.random.default_rng(20261125)


def scores(n, mean, grain=None):
    """Like ROUGE of n answers: many 0 and 1, the rest between."""
    values = np.clip(rng.normal(mean, 0.35, n), 0, 1)
    return (values if grain is None else np.round(values * grain) / grain).round(6)


def bootstrap(data, statistic, paired):
    found = stats.bootstrap(
        data, statistic, n_resamples=MANY, paired=paired, method="percentile", vectorized=True, batch=20_000,
        rng=np.random.default_rng(1),
    )
    interval = found.confidence_interval
    return {"low": interval.low, "high": interval.high, "spread": float(found.standard_error)}


def intervals():
    cases = []
    for n, mean, grain in [(100, 0.3, None), (24, 0.5, None), (96, 0.1, None), (60, 0.8, 4)]:
        x = scores(n, mean, grain)
        case = bootstrap((x,), lambda x, axis: 100 * np.mean(x, axis=axis), False)
        cases.append({"kind": "mean", "samples": [x.tolist()], **case})
    for n, means in [(96, (0.15, 0.95, 0.6)), (24, (0.3, 0.9, 0.35)), (100, (0.2, 0.8, 0.2))]:
        base = rng.normal(0, 0.15, n)
        u, t, q = (np.clip(rng.normal(m, 0.3, n) + base, 0, 1).round(6) for m in means)

        def ratio(q, u, t, axis):
            q, u, t = (np.mean(v, axis=axis) for v in (q, u, t))
            return (q - u) / (t - u)

        cases.append({"kind": "ratio", "samples": [v.tolist() for v in (q, u, t)], **bootstrap((q, u, t), ratio, True)})

    def auc(forget, holdout, axis):
        below = (holdout[..., None, :] < forget[..., :, None]).mean(axis=(-1, -2))
        ties = (holdout[..., None, :] == forget[..., :, None]).mean(axis=(-1, -2))
        return below + ties / 2

    for n, m, shift in [(24, 24, -0.5), (30, 50, 0.4)]:
        forget, holdout = rng.normal(3 + shift, 1, n).round(2), rng.normal(3, 1, m).round(2)
        found = stats.bootstrap(
            (forget, holdout), auc, n_resamples=99_999, paired=False, method="percentile", batch=2_000,
            rng=np.random.default_rng(2),
        )
        interval = found.confidence_interval
        case = {"low": interval.low, "high": interval.high, "spread": float(found.standard_error)}
        cases.append({"kind": "auc", "samples": [forget.tolist(), holdout.tolist()], **case})
    return cases


def tests():
    cases = []
    for n, shift in [(2, 0.1), (3, 0.3), (5, 0.2), (8, -0.1), (13, 0.15), (14, 0.15), (24, 0.1), (70, 0.05), (96, 0.4), (130, -0.03)]:
        q, u = scores(n, 0.4 + shift, 8), scores(n, 0.4, 8)
        p = {}
        for alternative in ("greater", "less", "two-sided"):
            found = stats.permutation_test(
                (q, u), lambda q, u, axis: np.mean(q - u, axis=axis), permutation_type="samples", vectorized=True,
                # What the program goes through in full, SciPy does too.
                n_resamples=9_999 if 2**n <= 9_999 else MANY, batch=20_000, alternative=alternative,
                rng=np.random.default_rng(3),
            )
            p[alternative] = float(found.pvalue)
        cases.append({"q": q.tolist(), "u": u.tolist(), "exact": 2**n <= 9_999, "p": p})
    return cases


def holm():
    lists = [[0.04], [0.01, 0.04, 0.03, 0.005], [0.0001, 0.9, 1.0, 0.02, 0.02, 0.3, 0.0001], rng.random(30).round(4).tolist()]
    return [{"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()} for p in lists]


def spearman():
    cases = []
    for n, grain in [(4, None), (8, None), (8, 3), (40, 10)]:
        x = rng.normal(size=n)
        y = -x + rng.normal(size=n)
        if grain:
            x, y = np.round(x * grain) / grain, np.round(y * grain / 2) / grain
        cases.append({"pairs": np.stack([x, y], axis=1).tolist(), "rho": float(stats.spearmanr(x, y).statistic)})
    return cases


content = {
    "made_by": "tests/golden/metrics/make_statistics.py",
    "versions": {
        "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
        "statsmodels": statsmodels.__version__,
    },
    "intervals": intervals(), "tests": tests(), "holm": holm(), "spearman": spearman(),
}
path = HERE / "statistics.json"
path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
print(path.name, path.stat().st_size, "bytes")
