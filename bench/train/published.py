"""What share of a data sheet's peak published training runs of Llavas reached: the basis of `qilin estimate`'s hours.

    python bench/train/published.py    # writes bench/results/published-runs.json

Each run names its source. Operations are counted as qilin estimate counts them, with the layers that gradient
checkpointing computes again; the models are built from their shapes, without weights. Utilization is operations by
hours, devices and peak. Padding and slow input of those trainers lower it: it is what a user of that stack got.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from qilin.model.architectures import set_trainable
from qilin.model.meta_model import build_meta_model
from qilin.train.flops import flop_cost, recomputed_cost
from qilin.train.gpus import GPUS
from qilin.train.plan import Lengths, make_plan

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_result import write_result

SHAPES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}  # width, MLP width, layers, heads
README = "haotian-liu/LLaVA, README.md"
# text and answer tokens are not published. 558K captions of BLIP: about 20 tokens. The mixture of 665K conversations is
# a file of 1.03 GB; without the JSON around them some 1,200 characters each, at 4 characters per token 300 tokens.
RUNS: list[dict[str, Any]] = [
    {"run": "LLaVA-1.5 7B, stage 1", "hours": 3.5, "gpu": "a100", "text": 20, "answer": 20, "source": README},
    {"run": "LLaVA-1.5 13B, stage 1", "hours": 5.5, "gpu": "a100", "text": 20, "answer": 20, "source": README},
    {"run": "LLaVA-1.5 7B, stage 2", "hours": 10, "gpu": "a100 40gb", "text": 300, "answer": 200, "source": README},
    {"run": "LLaVA-1.5 13B, stage 2", "hours": 20, "gpu": "a100", "text": 300, "answer": 200, "source": README},
    {"run": "LLaVA-1.5 7B, stage 2", "hours": 24, "gpu": "a100 40gb", "text": 300, "answer": 200,
     "source": "haotian-liu/LLaVA, issue 560: 4 samples per device, ZeRO-3"},
]  # fmt: skip
SAMPLES = {"stage 1": 558_128, "stage 2": 665_298}
DEVICES = 8
TEMPLATE = {"stage 1": 1, "stage 2": 40}


def main() -> None:
    rows = [measure(run) for run in RUNS]
    command = "python bench/train/published.py"
    write_result("published-runs", command, {"devices": DEVICES, "samples": SAMPLES, "rows": rows})


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """A row with the operations of a run and the utilization that its hours imply."""
    size = "13b" if "13B" in run["run"] else "7b"
    stage = run["run"].split(", ")[1]
    model = build_model(size)
    set_trainable(model, ("projector",) if stage == "stage 1" else ("projector", "language"))
    counts = make_lengths(SAMPLES[stage], TEMPLATE[stage] + run["text"], run["answer"])
    required, recomputed = flop_cost(model).total(counts), recomputed_cost(model, 1.0).total(counts)
    peak = GPUS[run["gpu"]].half
    utilization = (required + recomputed) / (run["hours"] * 3600 * DEVICES * peak)
    return run | {
        "operations": required,
        "recomputed": recomputed,
        "utilization": round(utilization, 3),
        "mfu": round(required / (run["hours"] * 3600 * DEVICES * peak), 3),
    }


def build_model(size: str) -> Any:
    width, mlp, layers, heads = SHAPES[size]
    text = LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=32000,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    return build_meta_model(LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2))


def make_lengths(samples: int, text: int, answer: int) -> Any:
    """The work of `samples` equal samples of one image each."""
    ones = np.ones(1000, dtype=np.int64)
    total = 576 + text
    lengths = Lengths(ones * total, ones * 0, ones * answer, -1 - np.arange(1000), ones * 0, ones)
    counts = make_plan(lengths, [1.0], batch_size=100, num_epochs=1, pack_tokens=total, seed=0).counts()
    return counts.scaled(samples / 1000)


if __name__ == "__main__":
    main()
