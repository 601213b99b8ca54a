"""The single checks and measurements of hopper.py. Each returns the fields of a row."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from random_inputs import make_data, make_parts

from qilin.train.config import read_recipe
from qilin.train.fp8_linear import FrozenFp8Linear, multiply, quantize_rows
from qilin.train.memory_estimate import pack_shape
from qilin.train.optimizer import TrainableParam, make_optimizer
from qilin.train.packed_attention import flex, make_layout, packed_attention
from qilin.train.plan import PackedGroup, Plan, count_work
from qilin.train.split_weights import SplitWeights
from qilin.train.stage import run_stage

Timer = Callable[[Callable[[], Any]], float]
DEVICE = torch.device("cuda")
DOCUMENTS = [(0, 150, -1), (150, 40, 0), (190, 33, 0), (223, 200, -1), (423, 89, -1), (512, 137, -1), (649, 30, 5)]
FIRST_LAYER: Any = SimpleNamespace(layer_idx=0, config=SimpleNamespace(num_hidden_layers=2))
OVERRIDES = (
    "device=cuda precision=bf16 template=v1 kinds=[vqa] batch_size=96 num_epochs=2 logging_steps=1 trackers=[] "
    "learning_rate=1e-5 save_steps=4 gradient_checkpointing=auto max_length=2048"
)
COPY_BYTES, UPLOAD_BYTES = 1 << 31, 1 << 28


def ceilings(seconds_of: Timer) -> dict[str, float]:
    """What a product, a copy on the device and one from pinned memory reach."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    pinned = torch.empty(UPLOAD_BYTES, dtype=torch.uint8, pin_memory=True)
    upload = seconds_of(lambda: target[:UPLOAD_BYTES].copy_(pinned, non_blocking=True))
    return {
        "bf16_tflops": round(2 * 8192**3 / seconds_of(lambda: a @ b) / 1e12),
        "copy_tb_s": round(2 * COPY_BYTES / seconds_of(lambda: target.copy_(source)) / 1e12, 2),
        "upload_gb_s": round(UPLOAD_BYTES / upload / 1e9, 1),
    }


def layer_products(seconds_of: Timer) -> dict[str, list[int]]:
    """TFLOP/s of the products of a layer in bf16, in FP8 by rows, and in FP8 by rows with the cast of its input."""
    rates = {}
    shapes = (8192, 4096, 4096), (8192, 4096, 11008), (8192, 11008, 4096), (8192, 5120, 13824), (8121, 5120, 13824)
    for tokens, width, out in shapes:
        rows = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16)
        weight = torch.randn(out, width, device=DEVICE, dtype=torch.bfloat16)
        values, scales = quantize_rows(rows)
        small, small_scales = quantize_rows(weight)
        small_scales = small_scales.t().contiguous()
        calls = (
            lambda rows=rows, weight=weight: rows @ weight.t(),
            lambda v=values, s=scales, w=small, t=small_scales: torch._scaled_mm(
                v, w.t(), scale_a=s, scale_b=t, out_dtype=torch.bfloat16, use_fast_accum=True
            ),
            lambda rows=rows, w=small, t=small_scales: multiply(rows, w, t, False),
        )
        rates[f"{tokens}x{width}x{out}"] = [round(2 * tokens * width * out / seconds_of(c) / 1e12) for c in calls]
    return rates


def attention_errors() -> dict[str, list[float]]:
    """Relative errors of output and gradients of FlexAttention against fp64 on the host."""
    tokens = sum(length for _, length, _ in DOCUMENTS)
    document, prefix = torch.zeros(tokens, dtype=torch.int64), torch.full((tokens,), -9)
    for index, (start, length, before) in enumerate(DOCUMENTS):
        document[start : start + length] = index
        prefix[start : start + length] = before if before >= 0 else -9
    visible = (document[:, None] == document) | (prefix[:, None] == document)
    visible &= torch.arange(tokens)[:, None] >= torch.arange(tokens)
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = {
        "bf16": (8, 8, (bf16, bf16, bf16)),
        "grouped heads": (8, 2, (bf16, bf16, bf16)),
        "fp32 queries and keys, autocast": (8, 8, (fp32, fp32, bf16)),
    }
    errors = {}
    for name, (heads, key_heads, dtypes) in cases.items():
        random = torch.Generator().manual_seed(1)
        exact = [
            torch.randn(1, n, tokens, 128, generator=random).bfloat16().double().requires_grad_()
            for n in (heads, key_heads, key_heads)
        ]
        expected = F.scaled_dot_product_attention(*exact, attn_mask=visible, enable_gqa=heads != key_heads)
        weights = torch.randn(expected.shape, generator=random, dtype=torch.float64)
        (expected * weights).sum().backward()
        inputs = [x.detach().to(DEVICE, dtype).requires_grad_() for x, dtype in zip(exact, dtypes, strict=True)]
        with torch.autocast("cuda", bf16, enabled=fp32 in dtypes, cache_enabled=False):
            out, _ = packed_attention(FIRST_LAYER, *inputs, None, layout=make_layout(DOCUMENTS, DEVICE))
        (out.double() * weights.transpose(1, 2).to(DEVICE)).sum().backward()
        pairs = [(out.transpose(1, 2), expected), *((x.grad, y.grad) for x, y in zip(inputs, exact, strict=True))]
        errors[name] = [relative_error(actual, reference) for actual, reference in pairs]
    return errors


def relative_error(actual: Any, reference: torch.Tensor) -> float:
    """Norm of the difference by the norm of the reference."""
    reference = reference.detach()
    difference = actual.detach().double().to(reference.device) - reference.double()
    return float(difference.norm() / reference.double().norm().clamp(min=1e-30))


def short_grouped_pack() -> None:
    """A pack below 128 tokens whose heads share keys, as Qwen3-8B has them."""
    inputs = [
        torch.randn(1, heads, 100, 128, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for heads in (32, 8, 8)
    ]
    out, _ = packed_attention(FIRST_LAYER, *inputs, None, layout=make_layout([(0, 100, -1)], DEVICE))
    out.sum().backward()


def fp8_errors() -> dict[str, float]:
    """Relative error of a frozen FP8 layer's output and of the gradient to its input, against bf16."""
    linear = torch.nn.Linear(5120, 13824, bias=False, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    small = FrozenFp8Linear(linear)
    rows = torch.randn(8121, 5120, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(8121, 13824, device=DEVICE, dtype=torch.bfloat16)
    (expected,) = torch.autograd.grad((linear(rows) * weights).sum(), rows)
    (actual,) = torch.autograd.grad((small(rows) * weights).sum(), rows)
    return {"output": relative_error(small(rows), linear(rows)), "to_input": relative_error(actual, expected)}


def split_steps() -> dict[str, Any]:
    """Whether split weights equal fp32 weights after steps of both optimizers."""
    equal = {}
    for name in ("adamw", "adamw8bit"):
        results = []
        for split in (False, True):
            torch.manual_seed(0)
            parameter = torch.nn.Parameter(torch.randn(4096, 512, device=DEVICE))
            optimizer = make_optimizer([TrainableParam("weight", parameter, 1e-3, 0.1)], name, (0.9, 0.999))
            optimizer = SplitWeights(optimizer) if split else optimizer
            for _ in range(3):
                parameter.grad = torch.randn(4096, 512, device=DEVICE)
                optimizer.step()
            if split:
                optimizer.join()
            results.append(parameter.detach().clone())
        equal[name] = bool(torch.equal(*results))
    return {"equal": equal}


def attention_speed(plan: Plan, groups: Sequence[PackedGroup], seconds_of: Timer) -> dict[str, Any]:
    """TFLOP/s of FlexAttention on a pack, forward and backward, counting only what is not masked."""
    documents = pack_shape(groups, plan.lengths).documents
    tokens = sum(length for _, length, _ in documents)
    inputs = [
        torch.randn(1, tokens, 32, 128, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    started = time.perf_counter()
    layout = make_layout(documents, DEVICE)
    making = time.perf_counter() - started
    work = 4 * 32 * 128 * count_work(groups, plan.lengths).attention_pairs
    gradient = torch.randn(1, tokens, 32, 128, device=DEVICE, dtype=torch.bfloat16)

    def run() -> torch.Tensor:
        return flex(*inputs, layout.block_mask, None)

    forward = seconds_of(run)
    backward = max(1e-9, seconds_of(lambda: torch.autograd.grad(run(), inputs, gradient)) - forward)
    return {
        "tokens": tokens,
        "layout_ms": round(making * 1e3, 2),
        "tflops_forward_backward": [round(work / forward / 1e12), round(2.5 * work / backward / 1e12)],
        "ms_forward_backward": [round(forward * 1e3, 3), round(backward * 1e3, 3)],
    }


def train_small_model(stub: bool) -> dict[str, Any]:
    """Rows of a real run: PNG images of 800 x 600 area, three questions each, checkpoints in the background."""
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    width, layers, images = (512, 4, 24) if stub else (2048, 16, 160)
    make_parts(folder / "parts", width, layers, side=336, tower=(1024, 24))
    make_data(folder / "data", images=images, side=200 if stub else 700, longest=60)
    making = time.perf_counter() - started
    parts = [f"{part}={folder / 'parts' / part}" for part in ("vision", "language")]
    recipe = [
        *parts,
        *OVERRIDES.split(),
        f"data={folder / 'data'}",
        f"out={folder / 'run'}",
        "trainable=[projector, language]",
    ]
    started = time.perf_counter()
    run_stage(read_recipe("small/align", recipe), "hopper")
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    fields = ("step", "seconds", "data_wait", "mfu", "samples_per_second", "memory_gb", "pack_filled")
    return {
        "inputs_s": round(making, 1),
        "run_s": round(time.perf_counter() - started, 1),
        "rows": [{field: round(row[field], 4) for field in fields} for row in rows],
    }
