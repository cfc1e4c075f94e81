"""Writes codecs.json: small matrices, and what bitsandbytes and NumPy make of them.

    python tests/golden/quant/make.py

fp4 and nf4 come from bitsandbytes (CPU backend, block 64, bf16 input) and, beside it, from a
transcription of the comparison trees of its CUDA kernel (`dQuantizeFP4`, `dQuantizeNF4` in
csrc/kernels.cu), which are applied to weight * (1 / absmax) in float32. All other schemes are plain
NumPy in float32: scale by division, codes by rint(w / scale).

Numbers are hexadecimal f32 bits, eight digits each; codes one hexadecimal digit (int8: two) a weight.
"""

import json
import pathlib
import platform

import bitsandbytes
import bitsandbytes.functional as bnb
import numpy as np
import torch

F = np.float32
rng = np.random.default_rng(20260219)


def structured():
    """[7, 72]: one hazard a row."""
    w = np.zeros((7, 72), F)
    # Row 0: zeros. Row 1: exact ties of int8 (absmax 127 steps of 2^-10) ...
    w[1] = (np.arange(72) - 36 + 0.5) * 2.0**-10
    w[1, 0] = 127 * 2.0**-10
    # ... row 2: exact ties of int4 (absmax 7.5 steps of 2^-7; both ends) and of int4-row in row 6.
    w[2] = (np.arange(72) % 15 - 7.5) * 2.0**-7
    # Row 3: f16 subnormals. Row 4: large. Row 5: small, and all negative.
    w[3] = (rng.integers(-1023, 1024, 72) * 2.0**-24).astype(F)
    w[4] = rng.standard_normal(72).astype(F) * F(1e30)
    w[5] = -np.abs(rng.standard_normal(72).astype(F)) * F(1e-20)
    w[6] = (np.arange(72) % 16 - 8 + 0.5) * 2.0**-5
    w[6, 3] = -8 * 2.0**-5
    return w


def fp4_ties():
    """[2, 128]: weights at 1/24 steps of their absmax, where FP4's thresholds lie."""
    w = (np.arange(256) % 49 - 24).astype(F).reshape(2, 128)
    w[:, ::64] = 24
    w[1] *= F(2.0**-9)
    return w


def with_zero_groups():
    """[3, 128]: heavy tails, stored as bf16, one group of 64 zeros."""
    w = torch.from_numpy(rng.standard_t(2, (3, 128)).astype(F) * F(0.02)).bfloat16().float().numpy()
    w[1, 64:] = 0
    return w


def one_sided():
    """[4, 264]: rows of one sign or shifted, ragged groups of 8 at the end."""
    w = rng.standard_normal((4, 264)).astype(F) * F(0.05)
    w[0] = np.abs(w[0])
    w[1] = -np.abs(w[1])
    w[2] += F(0.1)
    return w.astype(np.float16).astype(F)


MATRICES = {
    "normal": (rng.standard_normal((5, 200)) * 0.02).astype(F),
    "zero_groups": with_zero_groups(),
    "structured": structured(),
    "fp4_ties": fp4_ties(),
    "one_sided": one_sided(),
}


def hex_f32(values):
    return "".join(f"{bits:08x}" for bits in np.asarray(values, F).reshape(-1).view(np.uint32))


def hex_codes(codes, digits):
    mask = 16**digits - 1
    return "".join(f"{int(code) & mask:0{digits}x}" for code in codes)


def groups_of(w, size):
    """Groups along each row; the last of a row may be shorter."""
    for row in w:
        for start in range(0, len(row), size):
            yield row[start : start + size]


def affine(w, size, divisor, low, high, digits):
    scales, codes = [], []
    for group in groups_of(w, size):
        scale = F(np.abs(group).max()) / F(divisor)
        scales.append(scale)
        quotients = group / scale if scale > 0 else np.zeros_like(group)
        codes.extend(np.clip(np.rint(quotients), low, high))
    return {"scales": hex_f32(scales), "codes": hex_codes(codes, digits)}


def affine_zero_point(w, size):
    scales, codes = [], []
    for group in groups_of(w, size):
        low, high = min(F(group.min()), F(0)), max(F(group.max()), F(0))
        scale = (high - low) / F(15)
        zero = F(0) if scale == 0 else np.clip(np.rint(-low / scale), 0, 15) + F(0)  # -0 to 0
        quotients = group / scale if scale > 0 else np.zeros_like(group)
        scales += [scale, zero]
        codes.extend(np.clip(np.rint(quotients) + zero, 0, 15))
    return {"scales": hex_f32(scales), "codes": hex_codes(codes, 1)}


def kernel_fp4(x):
    sign = 8 if x < 0 else 0
    x = abs(x)
    if x > F(0.29166667):
        if x > F(0.583333):
            return sign + (0b011 if x > F(0.8333333) else 0b010)
        return sign + (0b101 if x > F(0.4166667) else 0b100)
    if x > F(0.0859375):
        return sign + (0b111 if x > F(0.20833333) else 0b110)
    return sign + (0b001 if x > F(0.00260417) else 0b000)


def kernel_nf4(x):
    if x > F(0.03979014977812767):
        if x > F(0.3893125355243683):
            if x > F(0.6427869200706482):
                return 15 if x > F(0.8614784181118011) else 14
            return 13 if x > F(0.5016634166240692) else 12
        if x > F(0.2035212516784668):
            return 11 if x > F(0.2920137718319893) else 10
        return 9 if x > F(0.1202552504837513) else 8
    if x > F(-0.33967943489551544):
        if x > F(-0.13791173323988914):
            return 7 if x > F(-0.045525018125772476) else 6
        return 5 if x > F(-0.23460740596055984) else 4
    if x > F(-0.6106329262256622):
        return 3 if x > F(-0.4599952697753906) else 2
    return 1 if x > F(-0.8480964004993439) else 0


def table(w, kind):
    source = torch.from_numpy(w).bfloat16()
    packed, state = bnb.quantize_4bit(source, blocksize=64, quant_type=kind)
    packed_bytes = packed.reshape(-1).numpy()
    codes = np.stack([packed_bytes >> 4, packed_bytes & 15], 1).reshape(-1)  # theirs: high nibble first
    absmax = state.absmax.numpy()
    state.dtype = torch.float32
    values = bnb.dequantize_4bit(packed, state).reshape(-1).numpy()

    flat = source.float().numpy().reshape(-1)
    tree = {"fp4": kernel_fp4, "nf4": kernel_nf4}[kind]
    kernel = []
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        largest = np.abs(block).max()
        with np.errstate(divide="ignore", invalid="ignore"):
            kernel += [tree(x) for x in block * (F(1) / largest)]
    return {
        "scales": hex_f32(absmax),
        "codes": hex_codes(codes, 1),
        "values": hex_f32(values),
        "kernel_codes": hex_codes(kernel, 1),
    }


def schemes(w):
    cols = w.shape[1]
    result = {"int8": affine(w, cols, 127, -127, 127, 2)}
    for size in (32, 64, 128):
        result[f"int4-g{size}"] = affine(w, size, 7.5, -8, 7, 1)
    result["int4-asym-g128"] = affine_zero_point(w, 128)
    result["int4-row"] = affine(w, cols, 8, -8, 7, 1)
    result["fp4-b64"] = table(w, "fp4")
    result["nf4-b64"] = table(w, "nf4")
    return result


out = {
    "made_by": "tests/golden/quant/make.py",
    "versions": {
        "python": platform.python_version(),
        "bitsandbytes": bitsandbytes.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    },
    "tables": {kind: hex_f32(bnb.get_4bit_type(kind, device="cpu").numpy()) for kind in ("fp4", "nf4")},
    "matrices": [
        {"name": name, "rows": w.shape[0], "cols": w.shape[1], "weights": hex_f32(w), "schemes": schemes(w)}
        for name, w in MATRICES.items()
    ],
}
path = pathlib.Path(__file__).with_name("codecs.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path.stat().st_size, "bytes")
