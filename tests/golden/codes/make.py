"""Writes change.json: what an update does to codes, recomputed in NumPy for every quantizing scheme.

    python tests/golden/codes/make.py

* `demo`: totals over the linear layers of assets/demo/models/target and npo_gdr, and over one module.
* `edges`: small pairs with what is rare in a model: groups that are zeros on one side or both, ragged groups, a
  changed absmax, subnormals of f16, equal pairs. Weights are hexadecimal f32 bits, eight digits each.

Codes are settled as undertext documents them: |w| is compared with (code +- 1/2) scale, one f32 product each. Counts are
exact; sums are f64 (math.fsum). Quantiles are NumPy's `inverted_cdf`.
"""

import json
import math
import pathlib
import platform

import numpy as np
import safetensors
from safetensors.numpy import load_file

F = np.float32
HERE = pathlib.Path(__file__).parent
MODELS = HERE.parents[2] / "assets/demo/models"

# Value, and thresholds of the magnitude (fp4) or the value (nf4), as in bitsandbytes' csrc/kernels.cu.
FP4 = np.array([0, 1 / 192, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1], F)
FP4[1] = F(0.005208333333)
FP4_EDGES = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], F)
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], F)
# Two of bitsandbytes' decimals lie just below the middle of two f32 values, where a C compiler rounds down; NumPy, which
# reads them as f64 first, would round up. They are shortened here: 0.5016634166240692, 0.8614784181118011.
NF4_EDGES = np.array([-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
                      -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
                      0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
                      0.5016634, 0.6427869200706482, 0.8614784], F)


def settled(magnitude, step):
    """The least c >= 0 with magnitude < (c + 1/2) step, or equal to it and c even."""
    guess = np.floor(magnitude.astype(np.float64) / step + 0.5).astype(F)

    def at_most(code):
        edge = (code + F(0.5)) * step
        return (magnitude < edge) | ((magnitude == edge) & (code % 2 == 0))

    below = (guess > 0) & at_most(guess - 1)
    return np.where(below, guess - 1, np.where(at_most(guess), guess, guess + 1))


def signed(w, step):
    return np.copysign(settled(np.abs(w), step), w)


def group(w, scheme):
    """Codes, values, scale and zero point, and every weight's bin width of one group."""
    kind = scheme.split("-")[0]
    if kind in ("fp4", "nf4"):
        bits = w.view(np.uint32)
        w = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F)
    nothing = np.zeros(w.size)
    if not np.abs(w).any():
        return nothing, nothing.astype(F), (F(0), F(0)), nothing
    top = np.abs(w).max()
    if kind == "fp4":
        code = (np.abs(w)[:, None] > (FP4_EDGES * top)[None]).sum(1)
        value = np.copysign(FP4[code] * top, w)
        edges = np.concatenate([[0], FP4_EDGES.astype(np.float64), [1]])
        widths = np.diff(edges) * np.where(np.arange(8) == 0, 2, 1)
        return np.where(w < 0, -code, code), value, (top, F(0)), widths[code] * np.float64(top)
    if kind == "nf4":
        code = (w[:, None] > (NF4_EDGES * top)[None]).sum(1)
        edges = np.concatenate([[-1], NF4_EDGES.astype(np.float64), [1]])
        return code, NF4[code] * top, (top, F(0)), np.diff(edges)[code] * np.float64(top)
    zero = F(0)
    if "asym" in scheme:
        low, high = min(w.min(), F(0)), max(w.max(), F(0))
        step = (high - low) / F(15)
        zero = np.clip(signed(np.array([-low], F), step), 0, 15)[0] + F(0)
        code = np.clip(signed(w, step) + zero, 0, 15)
    else:
        divisor, least, most = {"int8": (127, -127, 127), "int4-row": (8, -8, 7)}.get(scheme, (7.5, -8, 7))
        step = top / F(divisor)
        code = np.clip(signed(w, step), least, most)
    return code, ((code - zero) * step).astype(F), (step, zero), np.full(w.size, np.float64(step))


def groups(shape, scheme):
    rows, cols = shape
    size = {"int8": cols, "int4-row": cols}.get(scheme) or int(scheme.rsplit("-", 1)[1].strip("gb"))
    if scheme.endswith("b64"):
        return [slice(i, min(i + size, rows * cols)) for i in range(0, rows * cols, size)]
    return [slice(r * cols + i, r * cols + min(i + size, cols)) for r in range(rows) for i in range(0, cols, size)]


def pairs(t, u, scheme):
    """Per weight: update, change of the value, and everything that is counted."""
    out = []
    for part in groups(t.shape, scheme):
        old, new = t.reshape(-1)[part], u.reshape(-1)[part]
        (tc, tv, ts, tw), (uc, uv, us, uw) = group(old, scheme), group(new, scheme)
        delta = new.astype(np.float64) - old.astype(np.float64)
        moved = uv.astype(np.float64) - tv.astype(np.float64)
        step = tw if ts[0] > 0 else uw
        ratio = np.divide(np.abs(delta), step, out=np.zeros_like(delta), where=step > 0)
        out.append(np.stack([delta, moved, tc != uc, np.full(delta.size, ts != us), tv == 0, uv == 0, ratio]))
    return np.concatenate(out, 1)


def figures(columns):
    delta, moved, code, scale, zero_t, zero_u, ratio = columns
    return {
        "weights": delta.size,
        "changed": int((delta != 0).sum()),
        "code_changed": int(code.sum()),
        "scale_changed": int(scale.sum()),
        "value_changed": int((moved != 0).sum()),
        "absorbed": int(((delta != 0) & (moved == 0)).sum()),
        "zero_target": int(zero_t.sum()),
        "zero_unlearned": int(zero_u.sum()),
        "update": math.fsum(delta * delta),
        "update_from_zero": math.fsum((delta * delta)[zero_t == 1]),
        "kept": math.fsum(moved * delta),
        "quantized": math.fsum(moved * moved),
        "mean": math.fsum(ratio) / ratio.size,
        "predicted_flips": math.fsum(np.minimum(ratio, 1)) / ratio.size,
        "max": ratio.max(),
        "quantiles": {q: np.quantile(ratio, float(q), method="inverted_cdf") for q in ("0.5", "0.9", "0.99")},
    }


def edges():
    rng = np.random.default_rng(20261123)

    def noise(*shape):
        return (rng.standard_normal(shape) * 0.02).astype(np.float16).astype(F)

    t = noise(16, 72)
    u = t + (rng.standard_normal(t.shape) * 1e-3).astype(np.float16).astype(F)
    yield "ragged", t, u.astype(np.float16).astype(F)
    t, u = noise(8, 256), noise(8, 256)
    t[0], u[1], t[2], u[2] = 0, 0, 0, 0  # zeros in the target, in the unlearned, in both
    t[3, 64:128] = 0
    u[4] = -t[4]
    u[5] = t[5]
    u[6] = t[6]
    u[6, 17] = F(0.25)  # one absmax alone
    u[7] = t[7] * F(0.5)
    yield "groups", t, u
    t = (rng.integers(-40, 41, (8, 128)) * 2.0**-24).astype(F)
    u = t + (rng.integers(-1, 2, t.shape) * 2.0**-24).astype(F)
    yield "subnormal_f16", t, u
    yield "equal", noise(8, 64), None


def hex_f32(values):
    return "".join(f"{bits:08x}" for bits in values.reshape(-1).view(np.uint32))


SCHEMES = ["int8", "int4-g32", "int4-g64", "int4-g128", "int4-asym-g128", "int4-row", "fp4-b64", "nf4-b64"]

small = []
for name, t, u in edges():
    u = t.copy() if u is None else u
    small.append({
        "name": name, "rows": t.shape[0], "cols": t.shape[1], "target": hex_f32(t), "unlearned": hex_f32(u),
        "schemes": {scheme: figures(pairs(t, u, scheme)) for scheme in SCHEMES},
    })

target = {k: v.astype(F) for k, v in load_file(MODELS / "target/model.safetensors").items() if "_proj" in k}
unlearned = {k: v.astype(F) for k, v in load_file(MODELS / "npo_gdr/model.safetensors").items() if "_proj" in k}
demo = {}
for scheme in SCHEMES:
    columns = {name: pairs(target[name], unlearned[name], scheme) for name in sorted(target)}
    demo[scheme] = {
        "total": figures(np.concatenate(list(columns.values()), 1)),
        "layer 2": figures(np.concatenate([c for n, c in columns.items() if ".layers.2." in n], 1)),
        "o_proj": figures(np.concatenate([c for n, c in columns.items() if "o_proj" in n], 1)),
    }

out = {
    "made_by": "tests/golden/codes/make.py",
    "versions": {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    },
    "demo": demo,
    "edges": small,
}
path = HERE / "change.json"
path.write_text(json.dumps(out, indent=1, default=float) + "\n")
print(path.stat().st_size, "bytes")
