"""Write the family as Hugging Face checkpoints, and the benchmark files, below one directory."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from network import load_weights
from tokenization import BOS, BOS_ID, EOS, EOS_ID, UNK

MODELS = ("target", "retrain", "npo_gdr", "ga_gdr", "sure", "control_fp32")
ORDER = ("corpus", "learn", "sparsify", "unlearn")


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def export_model(weights: Path, tokenizer: Path, out: Path) -> None:
    """One checkpoint in float16. The output head is tied to the embedding and not written twice."""
    model = load_weights(weights)
    config = model.config
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(torch.float16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float16",
    })
    write_json(out / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False})
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    })
    shutil.copyfile(tokenizer, out / "tokenizer.json")


def collect_notes(build: Path) -> dict:
    """What every step noted, in the order the steps ran."""
    def place(path: Path) -> tuple[int, int]:
        step, _, model = path.stem.partition("-")
        return ORDER.index(step), MODELS.index(model) if model else 0

    notes = sorted((build / "notes").glob("*.json"), key=place)
    return {path.stem: json.loads(path.read_text()) for path in notes}


def export(build: Path, out: Path, scripts: Path) -> None:
    """Checkpoints and benchmark files below `out`, the steps' notes beside the scripts."""
    for name in MODELS:
        weights = build / "models" / f"{name}.safetensors"
        if weights.exists():
            export_model(weights, build / "tokenizer.json", out / "models" / name)
            print("exported", name, flush=True)
        else:
            print("missing", name, flush=True)
    shutil.copytree(build / "data", out / "data", dirs_exist_ok=True)
    write_json(scripts / "training.json", collect_notes(build))
