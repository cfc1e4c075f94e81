"""Writes smollm2.json: SmolLM2-135M-Instruct at int8 and int4-g32 against full precision, on a short text.

    python tests/golden/compare/make_smollm2.py DIR

DIR is the checkpoint that assets/smollm2/convert.py writes. Logits by transformers in float32, quantized weights as
make_logits.py writes them out, comparison as in make.py.
"""

import importlib.util
import json
import pathlib
import platform
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
TEXT = (
    "The tides are caused by the gravitational pull of the moon and, to a lesser extent, of the sun. When both pull in "
    "the same direction the difference between high and low water is greatest, and sailors speak of a spring tide. In "
    "narrow bays the water can rise by more than twelve metres, fast enough to cut off walkers on the sand."
)


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load("compare", HERE / "make.py")
logits_of = load("logits", HERE.parent / "model" / "make_logits.py")


@torch.no_grad()
def main():
    directory = pathlib.Path(sys.argv[1])
    tokens = AutoTokenizer.from_pretrained(directory)(TEXT).input_ids
    stored = {
        name: tensor.to(torch.float32).numpy()
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }

    def run(scheme):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        if scheme is not None:
            state = dict(model.named_parameters())
            for name in stored:
                if logits_of.LINEAR.search(name):
                    state[name].copy_(torch.from_numpy(logits_of.dequantize(scheme, stored[name])))
        return compare.log_softmax(model(torch.tensor([tokens])).logits[0].numpy())[:-1]

    given = np.array(tokens[1:])
    reference = run(None)
    cases = [
        {"folder": "smollm2", "precision": scheme, "tokens": tokens, "from": 1, **compare.compare(reference, run(scheme), given)}
        for scheme in ("int8", "int4-g32")
    ]
    content = {
        "made_by": "tests/golden/compare/make_smollm2.py",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "cases": cases,
    }
    (HERE / "smollm2.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


main()
