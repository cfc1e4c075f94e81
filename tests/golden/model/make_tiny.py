#!/usr/bin/env python3
"""Makes tiny_llama/: a Llama checkpoint of random weights that has every feature the forward pass supports.

    python make_tiny.py && python make_logits.py tiny_llama tiny_llama --lengths 1 17 45 --scheme int8 --scheme int4-g32

An epsilon large enough to count, four query heads over two KV heads, a head width (24) that is not hidden / heads, llama3 rope scaling whose three
bands are all in use, biases on q, k, v and o, a feed-forward width (136) that no group of 32 divides, an untied head,
and three shards in three dtypes (F32, BF16, F16).

The script checks that no feature is idle: leaving any of them out must move the logits by far more than the
comparison's tolerance, or a test against these files could not fail.

Made with the versions that make_logits.py records.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUT = pathlib.Path(__file__).parent / "tiny_llama"
CONFIG = dict(
    architectures=["LlamaForCausalLM"],
    hidden_size=64,
    intermediate_size=136,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    vocab_size=320,
    max_position_embeddings=256,
    rms_norm_eps=1e-2,
    rope_parameters=dict(
        rope_type="llama3",
        rope_theta=10000.0,
        factor=4.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    attention_bias=True,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)


def weights(model):
    """Random weights: each matrix keeps its input's size, scores and logits are spread over several units."""
    generator = torch.Generator().manual_seed(20261123)
    gains = {"q_proj": 1.6, "k_proj": 1.6, "lm_head": 4.0}
    state = {}
    for name, parameter in model.state_dict().items():
        module = name.split(".")[-2]
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            state[name] = 0.5 * noise
        elif parameter.ndim == 1:
            state[name] = 1 + 0.2 * noise
        elif module == "embed_tokens":
            state[name] = 0.2 * noise
        else:
            state[name] = noise * gains.get(module, 1.0) / parameter.shape[1] ** 0.5
    return state


def shard(name):
    """Shard and dtype of a tensor. The second boundary lies inside a layer."""
    if "embed_tokens" in name or "layers.0." in name:
        return 0, torch.float32
    if "layers.1." in name or "layers.2.self_attn" in name:
        return 1, torch.bfloat16
    return 2, torch.float16


@torch.no_grad()
def logits(config, state, ids):
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="eager").eval()
    model.load_state_dict(state)
    return model(torch.tensor([ids])).logits[0]


def check_no_feature_is_idle(state):
    ids = torch.randint(3, 320, (45,), generator=torch.Generator().manual_seed(7)).tolist()
    full = logits(CONFIG, state, ids)
    tolerance = 1e-3 * (full.max() - full.min()).item()
    moved = {}
    for kind in ["default", "linear"]:
        rope = dict(CONFIG["rope_parameters"], rope_type=kind)
        if kind == "default":
            rope = dict(rope_type=kind, rope_theta=10000.0)
        moved[f"rope {kind}"] = logits(dict(CONFIG, rope_parameters=rope), state, ids)
    for module in "qkvo":
        without = {n: 0 * t if n.endswith(f"{module}_proj.bias") else t for n, t in state.items()}
        moved[f"no {module} bias"] = logits(CONFIG, without, ids)
    tied = dict(state, **{"lm_head.weight": state["model.embed_tokens.weight"]})
    moved["tied head"] = logits(CONFIG, tied, ids)
    moved["eps 1e-6"] = logits(dict(CONFIG, rms_norm_eps=1e-6), state, ids)
    for name, other in moved.items():
        difference = (other - full).abs().max().item()
        print(f"{name}: moves logits by {difference / tolerance:.0f} tolerances")
        assert difference > 20 * tolerance, name


def main():
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    state = {name: tensor.to(shard(name)[1]) for name, tensor in weights(model).items()}
    check_no_feature_is_idle({name: tensor.float() for name, tensor in state.items()})

    OUT.mkdir(exist_ok=True)
    model.config.save_pretrained(OUT)
    model.generation_config.save_pretrained(OUT)
    files = {}
    for name in state:
        files.setdefault(f"model-{shard(name)[0] + 1:05}-of-00003.safetensors", {})[name] = state[name]
    for file, tensors in files.items():
        save_file(tensors, OUT / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in state.values())},
        "weight_map": {name: file for file, tensors in sorted(files.items()) for name in sorted(tensors)},
    }
    (OUT / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"{sum(t.numel() for t in state.values())} weights, {index['metadata']['total_size']} bytes")


if __name__ == "__main__":
    main()
