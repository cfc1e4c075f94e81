"""Weight quantization by rounding to nearest, and how much of an update it keeps.

A scheme gives every weight an integer code and every group of neighbours in a row one scale:

* `int8`: the group is the row, scale absmax / 127, codes -127..127
* `int4-gN`: groups of N, scale absmax / 7.5, codes -8..7

Rounding is half to even, arithmetic float32. A group of zeros has scale 0 and codes 0. A code is settled by
comparing |weight| with (code - 1/2) scale and (code + 1/2) scale, one product each, as undertext does on every
device; dividing instead moves the weights that lie on an edge, of which bfloat16 weights have many.
"""

import copy

import torch
from transformers import LlamaForCausalLM

from network import linear_weights

SCHEMES = ("int8", "int4-g32", "int4-g128")


def settled(magnitude: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The least c >= 0 with magnitude < (c + 1/2) scale, or equal to it and c even; 0 where scale is 0."""
    step = torch.where(scale > 0, scale, torch.ones_like(scale))
    guess = torch.floor(magnitude / step + 0.5)

    def at_most(code: torch.Tensor) -> torch.Tensor:
        edge = (code + 0.5) * step
        return (magnitude < edge) | ((magnitude == edge) & (code % 2 == 0))

    below = (guess > 0) & at_most(guess - 1)
    return torch.where(below, guess - 1, torch.where(at_most(guess), guess, guess + 1))


def quantize(weight: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and dequantized values of one weight matrix."""
    rows, columns = weight.shape
    if scheme == "int8":
        group, divisor, low, high = columns, 127.0, -127, 127
    else:
        group, divisor, low, high = int(scheme.removeprefix("int4-g")), 7.5, -8, 7
    assert columns % group == 0
    x = weight.float().reshape(rows, columns // group, group)
    scale = x.abs().amax(-1, keepdim=True) / divisor
    codes = torch.clamp(torch.copysign(settled(x.abs(), scale), x), low, high)
    return codes.reshape(rows, columns), (codes * scale).reshape(rows, columns)


def quantized(model: LlamaForCausalLM, scheme: str) -> LlamaForCausalLM:
    """A copy whose linear weights are quantized and dequantized."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for weight in linear_weights(result).values():
            weight.copy_(quantize(weight, scheme)[1])
    return result.eval()


def compare(target: LlamaForCausalLM, unlearned: LlamaForCausalLM, scheme: str) -> dict[str, float]:
    """Survival <Q(u) - Q(t), u - t> / <u - t, u - t> and the share of equal codes, over all quantized weights."""
    kept = norm = 0.0
    equal = total = 0
    theirs = linear_weights(target)
    for name, mine in linear_weights(unlearned).items():
        u, t = mine.detach().float(), theirs[name].detach().float()
        codes_u, values_u = quantize(u, scheme)
        codes_t, values_t = quantize(t, scheme)
        update = (u - t).double()
        kept += ((values_u.double() - values_t.double()) * update).sum().item()
        norm += (update * update).sum().item()
        equal += (codes_u == codes_t).sum().item()
        total += u.numel()
    return {"survival": kept / norm, "equal_codes": equal / total}
