"""Gradient of a projector in front of a frozen language model in FP8, against bf16 and fp32; FP8 emulated on a CPU.

python bench/train/fp8_quality.py        writes bench/results/fp8-quality.json
"""

import copy
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qilin.train.fp8_linear import FrozenFp8Linear

RESULT = Path(__file__).resolve().parents[1] / "results" / "fp8-quality.json"
WIDTH, TOKENS = 256, 200


def main() -> None:
    rows = [compare(layers) for layers in (4, 12)]
    header = {
        "command": "python bench/train/fp8_quality.py",
        "machine": f"{platform.machine()}, CPU, FP8 emulated",
        "torch": version("torch"),
    }
    RESULT.write_text(json.dumps(header | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


def compare(layers: int) -> dict[str, Any]:
    """Relative errors of the projector's gradient through `layers` layers with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": layers, "num_attention_heads": 4}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=500, **shape)).requires_grad_(False)
    projector = torch.nn.Linear(64, WIDTH)
    features, labels = torch.randn(1, TOKENS, 64), torch.randint(0, 500, (1, TOKENS))
    small = copy.deepcopy(plain)
    language = small.model
    for name, linear in [(n, m) for n, m in language.named_modules() if isinstance(m, torch.nn.Linear)]:
        parent, _, attribute = name.rpartition(".")
        setattr(language.get_submodule(parent), attribute, FrozenFp8Linear(linear, emulate=True))

    def gradient(model: Any, autocast: bool) -> torch.Tensor:
        projector.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(inputs_embeds=projector(features), labels=labels).loss
        loss.backward()
        assert projector.weight.grad is not None
        return projector.weight.grad.clone()

    exact, bf16, fp8 = gradient(plain, False), gradient(plain, True), gradient(small, True)
    return {
        "layers": layers,
        "bf16 against fp32": round(float((bf16 - exact).norm() / exact.norm()), 4),
        "fp8 against bf16": round(float((fp8 - bf16).norm() / bf16.norm()), 4),
    }


if __name__ == "__main__":
    main()
