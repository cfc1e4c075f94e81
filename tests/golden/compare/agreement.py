"""Writes agreement.json: what NumPy says of given positions, by llama.cpp's formulas (tools/perplexity).

    python tests/golden/compare/agreement.py
"""

import json
import pathlib
import platform

import numpy as np

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(20261125)


def mean_and_error(values):
    """llama.cpp's mean_and_uncertainty."""
    n = len(values)
    return [values.mean(), np.sqrt(max((values**2).mean() - values.mean() ** 2, 0) / (n - 1))]


n = 777
reference = -rng.exponential(2.0, n)
arm = reference + rng.normal(0, 0.3, n) - 0.05
arm = np.minimum(arm, -1e-3)
kl = rng.exponential(0.05, n)
reverse = kl * rng.uniform(0.8, 1.2, n)
js, tv = kl / 5, np.sqrt(kl / 3)
same = rng.random(n) < 0.9
top5, top10 = rng.integers(2, 6, n), rng.integers(4, 11, n)

dp = np.exp(arm) - np.exp(reference)
(mean_a, error_a), (mean_r, error_r) = mean_and_error(-arm), mean_and_error(-reference)
covariance = ((arm * reference).mean() - arm.mean() * reference.mean()) / (n - 1)
ppl, ppl_r = np.exp(mean_a), np.exp(mean_r)
log_ratio = mean_a - mean_r
log_error = np.sqrt(error_a**2 + error_r**2 - 2 * covariance)
square, square_error = mean_and_error(dp**2)
rms = np.sqrt(square)
kl_fractions = [0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001]
dp_fractions = [0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001]

want = {
    "kl": mean_and_error(kl),
    "kl_min_max": [kl.min(), kl.max()],
    "kl_quantiles": np.quantile(kl, kl_fractions).tolist(),
    "reverse_kl": mean_and_error(reverse),
    "jensen_shannon": mean_and_error(js),
    "total_variation": mean_and_error(tv),
    "dp": mean_and_error(dp),
    "dp_min_max": [dp.min(), dp.max()],
    "dp_quantiles": np.quantile(dp, dp_fractions).tolist(),
    "rms_dp": [rms, 0.5 / rms * square_error],
    "same_top": [same.mean(), np.sqrt(same.mean() * (1 - same.mean()) / (n - 1))],
    "top5": mean_and_error(top5 / 5),
    "top10": mean_and_error(top10 / 10),
    "reference_ppl": [ppl_r, ppl_r * error_r],
    "ppl": [ppl, ppl * error_a],
    "log_ppl_ratio": [log_ratio, log_error],
    "ppl_ratio": [np.exp(log_ratio), np.exp(log_ratio) * log_error],
    "ppl_difference": [
        ppl - ppl_r,
        np.sqrt((ppl * error_a) ** 2 + (ppl_r * error_r) ** 2 - 2 * ppl * ppl_r * covariance),
    ],
    "nll_correlation": np.corrcoef(arm, reference)[0, 1],
}
rows = [
    [float(value) for value in row]
    for row in zip(reference, arm, kl, reverse, js, tv, same, top5, top10)
]
content = {
    "made_by": "tests/golden/compare/agreement.py",
    "versions": {"python": platform.python_version(), "numpy": np.__version__},
    "rows": rows,
    "want": {
        key: [float(value) for value in values] if isinstance(values, list) else float(values)
        for key, values in want.items()
    },
}
(HERE / "agreement.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
