"""Writes kept.json: small pairs of matrices, and their kept rounding (`src/quant/keep.rs`) by NumPy and a plain sort.

    python tests/golden/quant/make_kept.py

Every move's price is found first, by bisecting the floats for the least p with excess <= p * |d|; then a round is a walk
through the moves sorted by price and index. Only the integer schemes: nearest codes by rint(w / scale)
in float32, settled by the products (c - 0.5) scale and (c + 0.5) scale.

Weights are hexadecimal f32 bits, eight digits each; codes one hexadecimal digit (int8: two) a weight, by scheme and by share.
"""

import json
import pathlib
import platform

import numpy as np

F = np.float32
ROUNDS, TOLERANCE_SHIFT = 8, 6
rng = np.random.default_rng(20261125)


def rounded(g, s):
    """w / s, half to even; halves are where the product of c + 0.5 and s is the weight."""
    magnitude = np.abs(g)
    at_most = lambda c: (magnitude < (c + F(0.5)) * s) | ((magnitude == (c + F(0.5)) * s) & (c % 2 == 0))
    c = np.rint(magnitude / s)
    c = np.where((c > 0) & at_most(c - F(1)), c - F(1), np.where(at_most(c), c, c + F(1)))
    return np.copysign(c, g).astype(F)


def nearest(w, size, divisor, low, high, zero_point):
    """Codes, and scale and zero point of every weight."""
    codes, scales, zeros = (np.zeros(w.shape, F) for _ in range(3))
    for r in range(w.shape[0]):
        for start in range(0, w.shape[1], size):
            at = (r, slice(start, min(start + size, w.shape[1])))
            g = w[at]
            if zero_point:
                lo, hi = min(F(g.min()), F(0)), max(F(g.max()), F(0))
                s = (hi - lo) / F(15)
                z = F(np.clip(rounded(F(-lo), s), 0, 15)) if s > 0 else F(0)
            else:
                s, z = F(np.abs(g).max()) / F(divisor), F(0)
            scales[at], zeros[at] = s, z
            codes[at] = np.clip(rounded(g, s) + z, low, high) if s > 0 else 0
    return codes, scales, zeros


def float_at(place):
    place = np.asarray(place, np.int64)
    bits = np.where(place < 0, place ^ 0x7FFFFFFF, place) & 0xFFFFFFFF
    return bits.astype(np.uint32).view(F)


def prices(excess, delta):
    low = np.full(excess.shape, -0x7F800001, np.int64)
    high = np.full(excess.shape, 0x7F800000, np.int64)
    while (low < high).any():
        middle = (low + high) >> 1
        with np.errstate(over="ignore"):
            price = float_at(middle)
            admitted = np.where(excess == 0, price >= 0, excess <= price * delta)
        open_ = low < high
        high = np.where(open_ & admitted, middle, high)
        low = np.where(open_ & ~admitted, middle + 1, low)
    return low


def keep_row(u, t, codes, values, targets, scales, zeros, low, high, share):
    d = u - t
    wanted, had = F(share) * (d * d), (values - targets) * d
    sides = []
    for along in (1, -1):
        step = np.sign(d) * F(along)
        new_codes = codes + step
        new = (new_codes - zeros) * scales
        legal = (d != 0) & (new_codes >= low) & (new_codes <= high)
        excess = step * ((new - u) + (values - u))
        sides.append((new_codes, excess, np.where(legal, np.abs((new - values) * d), F(0))))
    greatest = max(np.abs(x).max() for x in (wanted, had, sides[0][2], sides[1][2]))
    if greatest == 0:
        return codes
    above = int(np.frexp(greatest)[1])  # greatest < 2^above
    count = lambda x: np.trunc(x.astype(np.float64) * 2.0 ** (40 - above)).astype(np.int64)
    goal = int(count(wanted).sum())
    left = goal - int(count(had).sum())
    new_codes, excess, gain = sides[0] if left > 0 else sides[1]
    left, tolerance, gain = abs(left), goal >> TOLERANCE_SHIFT, count(gain)
    rest = np.flatnonzero(gain > 0)
    price = dict(zip(rest.tolist(), prices(excess[rest], np.abs(d)[rest]).tolist()))
    rest, chosen = sorted(price, key=lambda i: (price[i], i)), []
    for _ in range(ROUNDS):
        if left <= tolerance:
            break
        made = []
        for i in [i for i in rest if gain[i] <= left + tolerance]:
            if left <= 0 or gain[i] > left + tolerance:
                break
            left -= int(gain[i])
            made.append(i)
        chosen += made
        rest = [i for i in rest if i not in made]
    if left > tolerance:
        chosen += [i for i in rest if gain[i] < 2 * left][:1]
    codes = codes.copy()
    codes[chosen] = new_codes[chosen]
    return codes


SCHEMES = {"int8": (None, 127, -127, 127, False), "int4-row": (None, 8, -8, 7, False)}
SCHEMES |= {f"int4-g{size}": (size, 7.5, -8, 7, False) for size in (32, 64, 128)}
SCHEMES["int4-asym-g128"] = (128, 15, 0, 15, True)


def kept(t, u, name, share):
    size, divisor, low, high, zero_point = SCHEMES[name]
    coded = lambda w: nearest(w, size or w.shape[1], divisor, low, high, zero_point)
    codes, scales, zeros = coded(u)
    target_codes, target_scales, target_zeros = coded(t)
    values, targets = (codes - zeros) * scales, (target_codes - target_zeros) * target_scales
    rows = [
        keep_row(u[r], t[r], codes[r], values[r], targets[r], scales[r], zeros[r], low, high, share)
        for r in range(len(u))
    ]
    digits = 2 if name == "int8" else 1
    return "".join(f"{int(code) & 16**digits - 1:0{digits}x}" for code in np.concatenate(rows))


def pair(rows, cols, spread, sparse):
    t = rng.standard_t(3, (rows, cols)).astype(F) * F(0.02)
    t[rng.random((rows, cols)) < 0.3] *= F(0.02)
    d = rng.standard_normal((rows, cols)).astype(F) * F(spread) * (rng.random((rows, cols)) < sparse)
    t, u = (w.astype(np.float16).astype(F) for w in (t, t + d.astype(F)))
    u[0] = t[0]  # a row without an update
    return t, u


PAIRS = {
    "small_updates": pair(12, 256, 3e-4, 0.4),
    "ragged": pair(8, 136, 1e-3, 0.8),
    "few": pair(8, 72, 2e-3, 0.05),
    "large": pair(6, 128, 2e-2, 1.0),
}

out = {
    "made_by": "tests/golden/quant/make_kept.py",
    "versions": {"python": platform.python_version(), "numpy": np.__version__},
    "pairs": [
        {
            "name": name,
            "rows": t.shape[0],
            "cols": t.shape[1],
            "target": "".join(f"{x:08x}" for x in t.reshape(-1).view(np.uint32)),
            "unlearned": "".join(f"{x:08x}" for x in u.reshape(-1).view(np.uint32)),
            "kept": {s: {str(share): kept(t, u, s, share) for share in (0.5, 0.9)} for s in SCHEMES},
        }
        for name, (t, u) in PAIRS.items()
    ],
}
path = pathlib.Path(__file__).with_name("kept.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path.stat().st_size, "bytes")
