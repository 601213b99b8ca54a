"""One short run on a Hopper GPU (H100, H200): what works, and what it reaches. Every item stands alone.

    export PYTHONPATH=src:tests PYTORCH_ALLOC_CONF=expandable_segments:True
    python bench/train/hopper.py smoke     about 100 s: ceilings, FlexAttention against fp64, pytest -m gpu, two layers
    python bench/train/hopper.py full      about 400 s; what does not fit the GPU's memory is skipped
    ITEMS=C,D python bench/train/hopper.py full       some parts only; BUDGET=300: seconds in all

Outputs in $OUT (without it ./hopper-out): rows.jsonl, one row per item, on disk as soon as it is measured, beside what
was predicted (hopper_predictions.py); log.txt with the traces of what failed; pytest.txt; kernels.txt. `make gpu-dry`
runs both modes on the stub GPU, where kernels compute nothing and times mean nothing.
"""

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hopper_checks as checks
import torch
from gpu_cases import choose_packs, draw_plan, make_config, make_model, packed_step, padded_step
from hopper_predictions import PEAK, predict

from qilin.train.compiled_layers import compiled_forwards
from qilin.train.flops import flop_cost
from qilin.train.loop import trainable_params
from qilin.train.model_setup import enable_activation_checkpointing
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import Shortcuts, language_of, use_packed_attention
from qilin.train.plan import count_work
from qilin.train.split_weights import SplitWeights

START = time.perf_counter()
ROOT = Path(__file__).resolve().parents[2]
OUT = Path(os.environ.get("OUT", "hopper-out"))
STUB = "QILIN_STUB_GPU" in os.environ
DEVICE = torch.device("cuda")
REPEATS = 1 if STUB else 10
PLAIN, COMPILED = Shortcuts(), Shortcuts(compiled=True)


class Skip(Exception):
    """An item that does not run here, with the reason."""


def seconds_left() -> float:
    budget = float(os.environ.get("BUDGET", "0")) or (130.0 if sys.argv[1:] == ["smoke"] else 470.0)
    return budget - (time.perf_counter() - START)


def write_row(**values: Any) -> None:
    """Append a row with its prediction; it is on disk before the next item starts."""
    if predicted := predict(values["item"], torch.cuda.get_device_name() if torch.cuda.is_available() else ""):
        values["predicted"] = predicted
    values["at"] = round(time.perf_counter() - START, 1)
    line = json.dumps(values, ensure_ascii=False)
    with (OUT / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def need(seconds: float) -> None:
    """Skip the item if its expected time is no longer left."""
    if seconds_left() < 0.6 * seconds:
        raise Skip(f"{seconds_left():.0f} s left, needs about {seconds:.0f}")


@contextlib.contextmanager
def item(name: str) -> Iterator[None]:
    """An item of its own: a Skip or any failure in it becomes a row."""
    started = time.perf_counter()
    try:
        yield
    except Skip as error:
        write_row(item=name, skipped=str(error))
    except BaseException as error:  # everything else must still run
        message = (str(error).strip() or "no message").splitlines()[0][:300]
        write_row(item=name, failed=f"{type(error).__name__}: {message}")
        with (OUT / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"== {name}\n{traceback.format_exc()}\n")
        # the frames hold the item's tensors, and after a lack of memory hooks of gradient checkpointing
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        gc.collect()
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(f"   {name}: {time.perf_counter() - started:.1f} s", flush=True)


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median of events around a call, after two warm-ups."""
    for _ in range(0 if STUB else 2):
        call()
    pairs = []
    for _ in range(repeats):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize()
    return sorted(first.elapsed_time(last) for first, last in pairs)[len(pairs) // 2] / 1e3


def wall_seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, step: Callable[[], None], tokens: int, samples: int, operations: float, repeats: int = 3,
            **more: Any) -> None:  # fmt: skip
    """A row with the seconds of a forward and backward pass, and MFU of the required operations."""
    torch.cuda.reset_peak_memory_stats()
    first = wall_seconds(step)
    times = sorted(wall_seconds(step) for _ in range(1 if STUB else repeats))
    seconds = times[len(times) // 2]
    write_row(
        item=name, first_s=round(first, 2), s=round(seconds, 4), spread=[round(times[0], 4), round(times[-1], 4)],
        tokens_s=round(tokens / seconds), samples_s=round(samples / seconds, 2),
        mfu=round(operations / seconds / PEAK, 4), peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1),
        reserved_gb=round(torch.cuda.max_memory_reserved() / 1e9, 1), **more,
    )  # fmt: skip


def packed(name: str, model: Any, plan: Any, shortcuts: Shortcuts = PLAIN, count: int = 2, **more: Any) -> None:
    """Qilin's packs."""
    use_packed_attention(model, shortcuts)
    groups = choose_packs(plan, count)
    step, packs = packed_step(model, plan, groups, DEVICE)
    work = count_work([group for pack in groups for group in pack], plan.lengths)
    samples = sum(len(group.samples) for pack in groups for group in pack)
    tokens = sum(pack.ids.shape[1] for pack in packs)
    measure(name, step, tokens, samples, flop_cost(model).total(work), packs=len(packs), **more)
    model.zero_grad(set_to_none=True)
    if shortcuts.compiled and not compiled_forwards(language_of(model)):
        raise RuntimeError(f"{name}: the layers did not compile; the row above is that of uncompiled ones")


def padded(name: str, model: Any, plan: Any, size: int, repeats: int = 2) -> None:
    """LLaVA's batch."""
    step, work, longest = padded_step(model, plan, size, DEVICE)
    measure(name, step, work.tokens, size, flop_cost(model).total(work), repeats, longest=longest, size=size)
    model.zero_grad(set_to_none=True)


def checkpoint_layers(model: Any, share: float) -> None:
    """Recompute the first layers' activations, this share of them."""
    layers = language_of(model).layers
    if share and not hasattr(layers[0], "_gradient_checkpointing_func"):
        enable_activation_checkpointing(model, 1.0)
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index < round(share * len(layers))


def split(model: Any, config: Any) -> SplitWeights:
    """The optimizer, with the trained weights in bf16 and their low bits in it."""
    return SplitWeights(make_optimizer(trainable_params(model, config), config.optimizer, config.betas))


def optimizer_row(name: str, model: Any, optimizer: Any) -> None:
    """Seconds of clipping and of the step, the first of which compiles."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
    times = []
    for _ in range(3):
        clip = wall_seconds(lambda: float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        times.append([round(clip, 3), round(wall_seconds(optimizer.step), 3)])
    write_row(item=name, clip_and_step_s=times, peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1))
    model.zero_grad(set_to_none=True)


def smoke() -> None:
    with item("environment"):
        need(5)
        versions = {}
        for name in ("torch", "transformers", "triton", "torchao", "bitsandbytes", "peft", "pydantic"):
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(name)
        query = "nvidia-smi --query-gpu=clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv,noheader"
        state = subprocess.run(query, shell=True, capture_output=True, text=True).stdout.strip()
        memory = torch.cuda.get_device_properties(0).total_memory
        write_row(item="environment", gpu=torch.cuda.get_device_name(), memory=memory, versions=versions, state=state)
    with item("ceilings"):
        need(6)
        write_row(item="ceilings", **checks.ceilings(median_seconds))
    with item("layer products"):
        need(8)
        write_row(item="layer products", tflops_bf16_fp8=checks.layer_products(median_seconds))
    with item("FlexAttention against fp64"):
        need(25)
        errors = checks.attention_errors()
        good = all(error < 1e-2 for row in errors.values() for error in row)
        write_row(item="FlexAttention against fp64", errors_out_q_k_v=errors, good=good)
    with item("short packs of grouped heads"):
        need(8)
        checks.short_grouped_pack()
        write_row(item="short packs of grouped heads", good=True)
    with item("FP8 linear"):
        need(8)
        write_row(item="FP8 linear", **checks.fp8_errors())
    with item("split weights"):
        need(20)
        write_row(item="split weights", **checks.split_steps())
    with item("two layers of 7B"):
        need(50)
        config = make_config(2)
        model, plan = make_model("7B", config, DEVICE, layers=2), draw_plan(2, config, 64)
        packed("2 layers", model, plan, count=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            packed("2 layers, synchronizations", model, plan, count=1, repeats=1)
            torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message)]
        timer_file = "torch/cuda/__init__.py"  # torch.cuda.synchronize(), of wall_seconds
        lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits if not w.filename.endswith(timer_file))
        write_row(item="synchronizations", lines=dict(lines))
        packed("2 layers, compiled", model, plan, COMPILED, 1)
    with item("pytest -m gpu"):
        need(60)
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-o", "addopts=", "--no-header"]
        if STUB:
            raise Skip("values on the stub GPU are garbage; make gpu-dry runs the recipes of these tests")
        limit = max(20.0, min(90.0, seconds_left() - 15))
        run = subprocess.run(
            [*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, timeout=limit
        )
        (OUT / "pytest.txt").write_text(run.stdout[-60_000:] + run.stderr[-5000:])
        words = ("FAILED", "ERROR", "passed", "failed")
        last = [line for line in run.stdout.splitlines() if any(word in line for word in words)][-12:]
        write_row(item="pytest -m gpu", code=run.returncode, last=last)


def full() -> None:
    parts = os.environ.get("ITEMS", "C,D,B,E").split(",")
    memory = torch.cuda.get_device_properties(0).total_memory
    write_row(item="environment", gpu=torch.cuda.get_device_name(), memory=memory, torch=torch.__version__)
    large = memory > 120e9
    for name, run in {"C": stage_2, "D": stage_1, "B": attention, "E": real_loop}.items():
        if name in parts:
            run(large)


def stage_2(large: bool) -> None:
    """7B, all weights of the language model."""
    with item("C model"):
        need(10)
        config = make_config(2, optimizer="adamw8bit")
        model, plan = make_model("7B", config, DEVICE), draw_plan(2, config, 128)
    with item("C1"):
        need(25)
        checkpoint_layers(model, 1.0)
        packed("C1 7B stage 2, fp32 weights, recomputed", model, plan)
    with item("C2"):
        need(10)
        padded("C2 7B stage 2, LLaVA's batch of 16, fp32 weights", model, plan, 16)
    with item("C3"):
        need(12)
        alone = draw_plan(2, make_config(2, share_image_prefix=False), 128)
        packed("C3 7B stage 2, fp32 weights, recomputed, prefixes not shared", model, alone, count=1)
    with item("C4"):
        need(40)
        optimizer = split(model, config)
        checkpoint_layers(model, 1.0)
        packed("C4 7B stage 2, compiled, recomputed", model, plan, COMPILED)
    with item("C5"):
        need(40)
        checkpoint_layers(model, 0.0)
        packed("C5 7B stage 2, compiled", model, plan, COMPILED)
    with item("C6"):
        need(40)
        torch.compiler.reset()
        packed("C6 7B stage 2, compiled, budget 0.5", model, plan, Shortcuts(compiled=True, memory_budget=0.5))
    with item("C7"):
        need(10)
        checkpoint_layers(model, 1.0)
        padded("C7 7B stage 2, LLaVA's batch of 16, bf16 weights", model, plan, 16)
    with item("C8"):
        need(35)
        optimizer_row("C8 7B clipping and 8-bit AdamW, split weights", model, optimizer)
    with item("C9"):
        need(10)
        if STUB:
            raise Skip("no CUPTI")
        checkpoint_layers(model, 0.0)
        profile(model, plan)


def stage_1(large: bool) -> None:
    """13B, the projector alone."""
    with item("D model"):
        need(10)
        config = make_config(1)
        model, plan = make_model("13B", config, DEVICE), draw_plan(1, config, 128)
    size = 32 if large else 16
    with item("D0"):
        need(25)
        checkpoint_layers(model, 1.0)
        padded(f"D0 13B stage 1, LLaVA's batch of {size}, fp32 weights", model, plan, size, 1)
    with item("D1"):
        need(15)
        optimizer = split(model, config)
        share = 0.0 if large else 0.3
        checkpoint_layers(model, share)
        packed("D1 13B stage 1", model, plan, share=share)
    with item("D2"):
        need(12)
        checkpoint_layers(model, 1.0)
        packed("D2 13B stage 1, recomputed", model, plan, count=1)
    with item("D3"):
        need(40)
        checkpoint_layers(model, 0.0)  # compiled layers keep less: fits 80 GB too
        packed("D3 13B stage 1, compiled", model, plan, COMPILED)
    with item("D4"):
        need(35)
        checkpoint_layers(model, 1.0)
        padded(f"D4 13B stage 1, LLaVA's batch of {size}, bf16 weights", model, plan, size, 1)
    optimizer = model = None
    with item("D5"):
        need(50)
        config = make_config(1, frozen_weights="fp8")
        model = make_model("13B", config, DEVICE)
        optimizer = split(model, config)
        packed("D5 13B stage 1, compiled, FP8", model, plan, COMPILED)
    del optimizer


def attention(large: bool) -> None:
    """FlexAttention alone."""
    for stage in (1, 2):
        with item(f"B stage {stage}"):
            need(15)
            config = make_config(stage)
            plan = draw_plan(stage, config, 128)
            row = checks.attention_speed(plan, choose_packs(plan, 3)[1], median_seconds)
            write_row(item=f"B attention, stage {stage}", **row)


def real_loop(large: bool) -> None:
    """The real loop: decoding, packing, optimizer, checkpoints."""
    with item("E loop"):
        need(60)
        write_row(item="E loop", **checks.train_small_model(STUB))


def profile(model: Any, plan: Any) -> None:
    """The kernels of one pack, in kernels.txt."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        packed("C9 7B stage 2, profiled", model, plan, COMPILED, 1, repeats=1)
    table = recorded.key_averages().table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90)
    (OUT / "kernels.txt").write_text(table)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    if STUB:
        importlib.import_module("gpu.stub.adapt")
    {"smoke": smoke, "full": full}[sys.argv[1]]()
    write_row(item="end", seconds=round(time.perf_counter() - START, 1))
