"""What a layer of a language model keeps, launches and moves, on the stub GPU (tests/gpu/stub): no kernel runs, but
PyTorch's dispatcher, compiler and caching allocator do.

Output: bench/results/stub-gpu.json, one row per shape, stage and setting: bytes that a layer keeps for the backward
pass and adds to the peak, by the difference of models of two and four layers, its kernel launches, and what a pack
copies and waits for; and the peak of whole steps of 7B and 13B beside the estimate.

    make gpu-dry GPU_PYTHON=…        or: STUB/python bench/train/stub_gpu.py [SHAPE:STAGE …]
"""

import gc
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_cases import choose_packs, draw_plan, make_config, make_model, packed_step

from gpu.stub.adapt import counters
from qilin.train.config import LoraOptions
from qilin.train.loop import trainable_params
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import Shortcuts, use_packed_attention
from qilin.train.split_weights import SplitWeights

RESULT = Path(__file__).resolve().parents[1] / "results" / "stub-gpu.json"
DEVICE = torch.device("cuda")
# name -> options of the recipe, whether weights are split, shortcuts
SETTINGS: dict[str, tuple[dict[str, Any], bool, Shortcuts]] = {
    "fp32 weights": ({}, False, Shortcuts()),
    "split weights": ({}, True, Shortcuts()),
    "compiled": ({}, True, Shortcuts(compiled=True)),
    "compiled, budget 0.8": ({}, True, Shortcuts(compiled=True, memory_budget=0.8)),
    "compiled, budget 0.5": ({}, True, Shortcuts(compiled=True, memory_budget=0.5)),
    "compiled, fp32 weights": ({}, False, Shortcuts(compiled=True)),
    "compiled, FP8": ({"frozen_weights": "fp8"}, True, Shortcuts(compiled=True)),
    "adapters, fp32 weights": ({"lora": LoraOptions(rank=64, alpha=128)}, False, Shortcuts()),
    "adapters, compiled": ({"lora": LoraOptions(rank=64, alpha=128)}, True, Shortcuts(compiled=True)),
}
STAGES = {1: ("fp32 weights", "compiled", "compiled, budget 0.5", "compiled, FP8"), 2: tuple(SETTINGS)}


def main(selected: list[str]) -> None:
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    done = {(row["shape"], row["stage"], row["setting"]) for row in rows}
    for case in selected or ["7B:2", "7B:1", "13B:2", "13B:1", "8B:2"]:
        shape, _, stage = case.partition(":")
        for setting in STAGES[int(stage)]:
            if (shape, int(stage), setting) in done or (setting == "compiled, FP8" and stage == "2"):
                continue
            rows.append({"shape": shape, "stage": int(stage), "setting": setting} | measure(shape, int(stage), setting))
            print(json.dumps(rows[-1]), flush=True)
            write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    header = {
        "command": "STUB/python bench/train/stub_gpu.py",
        "machine": f"stub GPU ({torch.cuda.get_device_name()}): no kernel runs",
        "versions": {name: version(name) for name in ("torch", "transformers", "triton", "peft")},
    }
    RESULT.write_text(json.dumps(header | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def measure(shape: str, stage: int, setting: str) -> dict[str, Any]:
    """Bytes and launches of one layer, and copies and waits of a pack."""
    shallow, deep = (run(shape, stage, setting, layers) for layers in (2, 4))
    per_layer = {key: (deep[key] - shallow[key]) / 2 for key in ("kept", "peak", "launches")}
    return {
        "tokens": deep["tokens"],
        "layer_kept_gb": round(per_layer["kept"] / 1e9, 4),
        "layer_peak_gb": round(per_layer["peak"] / 1e9, 4),
        "layer_launches": per_layer["launches"],
        "pack_copies": deep["copies"],
        "pack_pageable_copies": deep["pageable"],
        "pack_waits": deep["waits"],
        "step_waits": deep["step_waits"],
    }


def run(shape: str, stage: int, setting: str, layers: int) -> dict[str, float]:
    options, split, shortcuts = SETTINGS[setting]
    torch.compiler.reset()
    config = make_config(stage, **options)
    model, plan = make_model(shape, config, DEVICE, layers=layers), draw_plan(stage, config, 128)
    optimizer = make_optimizer(trainable_params(model, config), config.optimizer, config.betas)
    optimizer = SplitWeights(optimizer) if split else optimizer
    use_packed_attention(model, shortcuts)
    groups = choose_packs(plan, 3)
    step, _ = packed_step(model, plan, groups[:2], DEVICE)
    step()  # compiles, and creates the gradients
    before = counters()
    one, packs = packed_step(model, plan, groups[2:3], DEVICE)
    built = counters()
    torch.cuda.reset_peak_memory_stats()
    static, saved = torch.cuda.memory_allocated(), []
    hook = model.lm_head.register_forward_hook(lambda *_: saved.append(torch.cuda.memory_allocated() - static))
    one()
    after = counters()
    hook.remove()
    difference = {key: after[key] - built[key] for key in after}
    result = {
        "tokens": packs[0].ids.shape[1],
        "kept": saved[-1],
        "peak": torch.cuda.max_memory_allocated() - static,
        "launches": difference["n_launch"] + difference["n_driver_launch"],
        "copies": built["n_h2d"] - before["n_h2d"],
        "pageable": built["n_h2d_pageable"] - before["n_h2d_pageable"],
        "waits": built["n_sync"] - before["n_sync"],
        "step_waits": difference["n_sync"],
    }
    del model, optimizer, step, one, packs
    gc.collect()
    torch.cuda.empty_cache()
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
