"""What a layer of a language model keeps, launches and waits for, and what whole steps of 7B and 13B take, on the stub
GPU (tests/gpu/stub): no kernel runs, but PyTorch's dispatcher, compiler and caching allocator do.

Output: bench/results/stub-gpu.json. `rows`: per shape, stage and setting the bytes that a layer keeps for the backward
pass and adds to the peak, by the difference of models of two and four layers, its kernel launches, and what a pack
copies and waits for. `steps`: the peak of whole steps beside the estimate of `qilin estimate`. Rows that are in the
file are not measured again.

    STUB/python bench/train/stub_gpu.py [SHAPE:STAGE … | steps]      STUB: what tests/gpu/stub/build.sh made

The environment is that of ON_STUB in the Makefile, with STUB_GPU_BYTES=150109356032 STUB_GPU_NAME="NVIDIA H200".
"""

import gc
import json
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_cases import choose_packs, draw_plan, make_config, make_model, packed_step

from gpu.stub.adapt import counters
from qilin.model.meta_model import build_meta_model
from qilin.train.config import LoraOptions, TrainConfig
from qilin.train.loop import trainable_params
from qilin.train.memory_estimate import largest_pack, memory_by_cause, prepare_model
from qilin.train.model_setup import enable_activation_checkpointing
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import Shortcuts, use_packed_attention
from qilin.train.split_weights import SplitWeights

RESULT = Path(__file__).resolve().parents[1] / "results" / "stub-gpu.json"
DEVICE = torch.device("cuda")
LORA = {"lora": LoraOptions(rank=64, alpha=128)}


@dataclass(frozen=True)
class Setting:
    """Options of the recipe, whether weights are split, layers compiled, and all of them recomputed."""

    options: dict[str, Any] = field(default_factory=dict)
    split: bool = True
    compiled: bool = True
    budget: float = 1.0
    recomputed: bool = False


SETTINGS = {
    "fp32 weights": Setting(split=False, compiled=False),
    "split weights": Setting(compiled=False),
    "split weights, recomputed": Setting(compiled=False, recomputed=True),
    "compiled": Setting(),
    "compiled, recomputed": Setting(recomputed=True),
    "compiled, budget 0.8": Setting(budget=0.8),
    "compiled, budget 0.5": Setting(budget=0.5),
    "FP8": Setting({"frozen_weights": "fp8"}, compiled=False),
    "compiled, FP8": Setting({"frozen_weights": "fp8"}),
    "adapters": Setting(LORA, compiled=False),
    "adapters, compiled": Setting(LORA),
    "adapters, compiled, budget 0.5": Setting(LORA, budget=0.5),
    "adapters on nf4": Setting(LORA | {"frozen_weights": "nf4"}, compiled=False),
}
FROZEN = ("FP8", "compiled, FP8")  # stage 2 trains the weights
ADAPTED = tuple(name for name in SETTINGS if name.startswith("adapters"))
STAGES = {
    1: [name for name in SETTINGS if name not in ADAPTED],
    2: [name for name in SETTINGS if name not in FROZEN],
}
SOME = ("split weights", "compiled", "compiled, budget 0.8", "compiled, budget 0.5")  # of further shapes
CASES = {
    "7B:2": STAGES[2], "13B:1": STAGES[1], "7B:1": SOME, "13B:2": SOME, "8B:2": ("split weights", "compiled"),
}  # fmt: skip
# whole steps: shape, stage, tokens of a pack, optimizer, setting
STEPS: tuple[tuple[str, int, int, str, str], ...] = (
    ("7B", 2, 8192, "adamw8bit", "compiled, recomputed"),
    ("7B", 2, 8192, "adamw8bit", "compiled"),
    ("7B", 2, 8192, "adamw8bit", "compiled, budget 0.5"),
    ("13B", 1, 8192, "adamw", "compiled"),
    ("13B", 1, 8192, "adamw", "split weights"),
    ("13B", 1, 8192, "adamw", "compiled, FP8"),
    ("13B", 2, 4096, "adamw8bit", "compiled, recomputed"),
    ("13B", 2, 8192, "adamw8bit", "compiled, recomputed"),
    ("13B", 2, 8192, "adamw", "adapters, compiled"),
)


def main(selected: list[str]) -> None:
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    rows, steps = result.get("rows", []), result.get("steps", [])
    done = [{key: row[key] for key in ("shape", "stage", "setting")} for row in rows]
    for case in selected or [*CASES, "steps"]:
        shape, _, stage = case.partition(":")
        for setting in CASES.get(case, ()):
            key = {"shape": shape, "stage": int(stage), "setting": setting}
            if key not in done:
                rows.append(key | measure_layer(shape, int(stage), SETTINGS[setting]))
                write(rows, steps)
    for row in STEPS if "steps" in (selected or ["steps"]) else ():
        key = dict(zip(("shape", "stage", "pack_tokens", "optimizer", "setting"), row, strict=True))
        if not any(key.items() <= step.items() for step in steps):
            steps.append(key | measure_step(*row))
            write(rows, steps)


def write(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    names = ("torch", "transformers", "triton", "peft", "torchao", "bitsandbytes")
    header = {
        "command": "STUB/python bench/train/stub_gpu.py",
        "machine": f"stub GPU ({torch.cuda.get_device_name()}): no kernel runs",
        "versions": {name: version(name) for name in names},
    }
    RESULT.write_text(json.dumps(header | {"rows": rows, "steps": steps}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps((steps or rows)[-1]), json.dumps(rows[-1]), flush=True)


def measure_layer(shape: str, stage: int, setting: Setting) -> dict[str, Any]:
    """Bytes and launches of one layer, and copies and waits of a pack."""
    shallow, deep = (run_layers(shape, stage, setting, layers) for layers in (2, 4))
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


def prepare(shape: str, config: TrainConfig, setting: Setting, layers: int | None = None) -> tuple[Any, Any]:
    """(model on the stub, its optimizer) as a setting has them."""
    torch.compiler.reset()
    model = make_model(shape, config, DEVICE, layers=layers)
    if setting.recomputed:
        enable_activation_checkpointing(model, 1.0)
    optimizer = make_optimizer(trainable_params(model, config), config.optimizer, config.betas)
    use_packed_attention(model, Shortcuts(compiled=setting.compiled, memory_budget=setting.budget))
    return model, SplitWeights(optimizer) if setting.split else optimizer


def run_layers(shape: str, stage: int, setting: Setting, layers: int) -> dict[str, float]:
    config = make_config(stage, **setting.options)
    model, optimizer = prepare(shape, config, setting, layers)
    plan = draw_plan(stage, config, 128)
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
    release()
    return result


def measure_step(shape: str, stage: int, pack_tokens: int, optimizer_name: Any, name: str) -> dict[str, Any]:
    """The peak of two steps of two packs each, the larger of which is the largest of the plan, and the estimate."""
    setting = SETTINGS[name]
    config = make_config(
        stage, pack_tokens, optimizer=optimizer_name, activation_memory_budget=setting.budget, **setting.options
    )
    plan = draw_plan(stage, config, 128)
    model, optimizer = prepare(shape, config, setting)
    packs = sorted(plan.packs(0)[0], key=lambda pack: -sum(group.tokens for group in pack))[:2]
    step, _ = packed_step(model, plan, packs, DEVICE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    model_config = model.config
    del model, optimizer, step, parameters
    release()
    config = make_config(
        stage, pack_tokens, optimizer=optimizer_name, activation_memory_budget=setting.budget,
        gradient_checkpointing=setting.recomputed, torch_compile=setting.compiled, **setting.options,
    )  # fmt: skip
    meta = prepare_model(build_meta_model(model_config), config)
    causes = memory_by_cause(model_config, meta, config, largest_pack(plan), on_gpu=True)
    estimate = sum(causes.values())
    return {
        "peak_gb": round(peak / 1e9, 2),
        "reserved_gb": round(reserved / 1e9, 2),
        "estimated_gb": round(estimate / 1e9, 2),
        "error": round(estimate / peak - 1, 4),
        "by_cause_gb": {cause: round(size / 1e9, 2) for cause, size in causes.items()},
    }


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
