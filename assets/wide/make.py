#!/usr/bin/env python3
"""Writes a random checkpoint with the widths of Llama-2-7B and few layers, in float32 shards.

    python make.py OUT [--layers 4]

For trying what does not fit a small device: 4 layers are about 4.3 GB. Weights are normal with the deviation of a
fresh Llama (0.02), norms are 1; there is no tokenizer, since nothing it says means anything.

    UNDERTEXT_WIDE=OUT cargo test --test main wide -- --ignored --nocapture

Needs numpy and safetensors. Made with numpy 2.4.6, safetensors 0.8.0.
"""

import argparse
import json
import pathlib

import numpy
from safetensors.numpy import save_file

HIDDEN, WIDE, HEADS, VOCAB = 4096, 11008, 32, 32000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="directory to write")
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(7)

    def weights(*shape):
        return random.standard_normal(shape, dtype=numpy.float32) * numpy.float32(0.02)

    ones = numpy.ones(HIDDEN, dtype=numpy.float32)
    count = args.layers + 2
    places = {}

    def save(number, tensors):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, args.out / name, metadata={"format": "pt"})
        places.update({tensor: name for tensor in tensors})
        print(name, flush=True)

    save(1, {"model.embed_tokens.weight": weights(VOCAB, HIDDEN)})
    for layer in range(args.layers):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}self_attn.{name}_proj.weight": weights(HIDDEN, HIDDEN) for name in "qkvo"}
        tensors |= {f"{prefix}mlp.{name}_proj.weight": weights(WIDE, HIDDEN) for name in ("gate", "up")}
        tensors[f"{prefix}mlp.down_proj.weight"] = weights(HIDDEN, WIDE)
        tensors[f"{prefix}input_layernorm.weight"] = ones
        tensors[f"{prefix}post_attention_layernorm.weight"] = ones
        save(layer + 2, tensors)
    save(count, {"lm_head.weight": weights(VOCAB, HIDDEN), "model.norm.weight": ones})

    index = {"metadata": {"total_size": sum(f.stat().st_size for f in args.out.glob("*.safetensors"))}}
    index["weight_map"] = places
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": args.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
