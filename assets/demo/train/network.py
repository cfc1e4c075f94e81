"""The network: a small Llama, and how its checkpoints are written and read."""

import copy
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tokenization import BOS_ID, EOS_ID

QUANTIZED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=None,
        use_cache=True,
    )


def fresh(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A new model; matrices start at 0.8 / sqrt(inputs), those that write to the residual stream smaller."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(vocabulary))
    layers = model.config.num_hidden_layers
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        spread = 0.02 if "embed" in name else 0.8 / math.sqrt(weight.shape[1])
        if "o_proj" in name or "down_proj" in name:
            spread /= math.sqrt(2 * layers)
        torch.nn.init.normal_(weight, 0.0, spread)
    return model


def linear_weights(model: LlamaForCausalLM) -> dict[str, torch.nn.Parameter]:
    """The weights that quantization touches, and that unlearning may change."""
    return {n: p for n, p in model.named_parameters() if any(part in n for part in QUANTIZED)}


def save_weights(model: LlamaForCausalLM, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: p.detach().float().contiguous() for n, p in model.named_parameters()}, str(path))


def load_weights(path: Path) -> LlamaForCausalLM:
    """A float32 model from a file of `save_weights` or from an exported checkpoint's `model.safetensors`."""
    weights = {n: w.float() for n, w in load_file(str(path)).items()}
    model = LlamaForCausalLM(config(weights["model.embed_tokens.weight"].shape[0]))
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return model.eval()


def copy_as(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """A copy whose weights have another dtype. (`model.to` would also round the rotary frequencies.)"""
    result = copy.deepcopy(model)
    for weight in result.parameters():
        weight.data = weight.data.to(dtype)
    return result


def round_to_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Round every weight to bfloat16 in place, keeping float32 storage."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    return model
