"""MFU of training on one GPU: 7B and 13B models, both stages, against LLaVA's padded batches.

Weights are random, and lengths are drawn from ChiMed-VL's distribution. Output: a JSON file with one row per case:
samples/s, tokens/s, MFU, memory in GB. Without a GPU it runs a miniature on the CPU, which only shows that the script
works; the result file records this.

    python bench/train/h200.py bench/results/h200.json
    nice -n 15 python bench/train/h200.py bench/results/h200-miniature.json --miniature
"""

import gc
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.train.config import DataSource, LoraOptions, ModelPart, TrainConfig
from qilin.train.data_loader import Pack
from qilin.train.distributed import ModelWithLoss
from qilin.train.flops import flop_cost, peak_flops
from qilin.train.loop import pack_loss, trainable_params
from qilin.train.memory_estimate import PackShape, pack_shape
from qilin.train.model_setup import add_adapters, apply_precision, autocast_context, base_model, quantize_frozen
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import make_layout, use_packed_attention, use_plain_attention
from qilin.train.plan import Lengths, Plan, WorkCounts, count_work, make_plan

IMAGE_ID = 5
SECONDS = 25.0  # per case, after its first step; all cases fit into ten minutes


@dataclass(frozen=True)
class Case:
    name: str
    shape: str
    stage: int
    changes: dict[str, Any]
    padded: bool = False  # as in LLaVA: samples padded to the longest of the batch, logits of all positions


SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "miniature": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4},
}
CHECKPOINTING = {"gradient_checkpointing": True}
CASES = (
    Case("stage 1, LLaVA's batch", "13B", 1, CHECKPOINTING, padded=True),
    Case("stage 1, packed", "13B", 1, {}),
    Case("stage 1, packed, gradient checkpointing", "13B", 1, CHECKPOINTING),
    Case("stage 1, packed, fp8", "13B", 1, {"frozen_weights": "fp8"}),
    Case(
        "stage 2, adapters, LLaVA's batch",
        "13B",
        2,
        {"lora": LoraOptions(rank=64, alpha=128), **CHECKPOINTING},
        padded=True,
    ),
    Case("stage 2, adapters, packed, shared", "13B", 2, {"lora": LoraOptions(rank=64, alpha=128), **CHECKPOINTING}),
    Case("stage 2, full, LLaVA's batch", "7B", 2, {"optimizer": "adamw8bit", **CHECKPOINTING}, padded=True),
    Case(
        "stage 2, full, packed, not shared",
        "7B",
        2,
        {"optimizer": "adamw8bit", "share_image_prefix": False, **CHECKPOINTING},
    ),
    Case("stage 2, full, packed, shared", "7B", 2, {"optimizer": "adamw8bit", **CHECKPOINTING}),
    Case(
        "stage 2, full, packed, shared, half of the layers checkpointed",
        "7B",
        2,
        {"optimizer": "adamw8bit", "gradient_checkpointing": 0.5},
    ),
)


def main(out: Path, miniature: bool) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() and not miniature else "cpu")
    peak = peak_flops(device, "bf16")
    rows = []
    for case in CASES:
        row: dict[str, Any] = {"case": case.name, "shape": case.shape if device.type == "cuda" else "miniature"}
        try:
            row |= run(case, device, peak)
        except (UserError, torch.OutOfMemoryError, NotImplementedError) as error:
            row["failed"] = str(error).splitlines()[0][:200]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    result = {
        "command": " ".join(["python bench/train/h200.py", out.as_posix(), *(["--miniature"] if miniature else [])]),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, CPU",
        "proves": "speed of this GPU" if device.type == "cuda" else "that the script runs; nothing about a GPU",
        "peak": peak,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run(case: Case, device: torch.device, peak: float) -> dict[str, Any]:
    """One case: a first step that compiles, then timed steps for SECONDS, at most 19."""
    small = device.type == "cpu"
    changes = dict(case.changes)
    if small:
        changes.pop("optimizer", None)
    trainable: tuple[ModelPart, ...] = (
        ("projector",) if case.stage == 1 or "lora" in case.changes else ("projector", "language")
    )
    config = TrainConfig(
        model="random", data=(DataSource(path=Path("none")),), trainable=trainable, pack_tokens=512 if small else 8192,
        max_length=512 if small else 2048, precision="bf16", **changes,
    )  # fmt: skip
    model = make_model(SHAPES["miniature" if small else case.shape], small, config, device)
    plan = draw_plan(case, config, 16 if small else 576, batch_size=8 if small else 32)
    optimizer = make_optimizer(trainable_params(model, config), config.optimizer, config.betas)
    cost = flop_cost(model)
    step, required = (padded_step if case.padded else packed_step)(model, plan, config, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    first_done = time.perf_counter()
    while not times or (time.perf_counter() - first_done < (1.0 if small else SECONDS) and len(times) < 20):
        start = time.perf_counter()
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            first_done = time.perf_counter()
    seconds = float(np.median(times[1:] or times))
    samples = len(plan.samples(0))
    return {
        "samples_per_second": round(samples / seconds, 3),
        "tokens_per_second": round(required.tokens / seconds, 1),
        "mfu": round(cost.total(required) / seconds / peak, 4),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
        "steps": len(times) - 1,
    }


def make_model(shape: dict[str, int], small: bool, config: TrainConfig, device: torch.device) -> Any:
    """A Llava with random weights, created on the device, with CLIP ViT-L/14 at 336 pixels or a tiny encoder."""
    vision = (
        CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                         image_size=56, patch_size=14)
        if small
        else CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14)
    )  # fmt: skip
    text = LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **shape)
    model_config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    with device:
        model: Any = LlavaForConditionalGeneration(model_config)
    set_trainable(model, config.trainable)
    model = quantize_frozen(apply_precision(model, config), config, device)
    return base_model(add_adapters(model, config)).train()


def draw_plan(case: Case, config: TrainConfig, image: int, batch_size: int) -> Plan:
    """One step with ChiMed-VL's lengths: contexts and captions in stage 1, three questions per image in stage 2."""
    random = np.random.default_rng(0)
    small = image < 100

    def log_normal(median: float, upper_quartile: float) -> np.ndarray:
        sigma = math.log(upper_quartile / median) / 0.6745
        return np.maximum(2, np.exp(math.log(median) + sigma * random.standard_normal(batch_size))).astype(np.int64)

    shared = image + 40
    if case.stage == 1:
        texts = np.where(np.arange(batch_size) % 2, log_normal(435, 757), log_normal(59, 83))
        answers, groups = texts, np.arange(batch_size)
    else:
        questions, answers = log_normal(20, 25), log_normal(22, 34)
        texts, groups = questions + answers, np.arange(batch_size) // 3
    total = np.minimum(shared + texts // (4 if small else 1), config.max_length)
    answers = np.minimum(answers, total - shared)
    lengths = Lengths(
        total=total,
        prefix=np.full(batch_size, shared if config.share_image_prefix else 0),
        answer_tokens=np.maximum(1, answers),
        prefix_group=groups if config.share_image_prefix else -1 - np.arange(batch_size),
        source=np.zeros(batch_size, dtype=np.int64),
        images=np.ones(batch_size, dtype=np.int64),
    )
    return make_plan(lengths, [1.0], batch_size=batch_size, num_epochs=1, pack_tokens=config.pack_tokens, seed=0)


def packed_step(
    model: Any, plan: Plan, config: TrainConfig, device: torch.device
) -> tuple[Callable[[], None], WorkCounts]:
    """(Qilin's step over packs, the work that its samples require)"""
    use_packed_attention(model)
    packs = [make_pack(pack_shape(groups, plan.lengths), model, device) for groups in plan.packs(0)[0]]
    module = ModelWithLoss(model, pack_loss)
    total = sum(len(pack.targets) for pack in packs)

    def step() -> None:
        for pack in packs:
            with autocast_context(config.precision, device):
                loss = module(pack, pack.pixels)
            (loss / total).backward()

    return step, count_work(plan.groups(0), plan.lengths)


def make_pack(shape: PackShape, model: Any, device: torch.device) -> Pack:
    """A pack of random tokens: every document without a prefix starts with an image."""
    image = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = torch.randint(10, 31_000, (1, shape.tokens))
    positions = torch.zeros(1, shape.tokens, dtype=torch.int64)
    for start, length, prefix in shape.documents:
        offset = shape.documents[prefix][1] if prefix >= 0 else 0
        positions[0, start : start + length] = torch.arange(length) + offset
        if prefix < 0 and length > image:
            ids[0, start + 1 : start + 1 + image] = IMAGE_ID
    images = int((ids == IMAGE_ID).sum()) // image
    side = model.config.vision_config.image_size
    target_positions = torch.tensor(shape.target_positions())
    dtype = torch.bfloat16 if device.type != "cpu" else torch.float32
    return Pack(
        ids=ids.to(device),
        positions=positions.to(device),
        layout=make_layout(shape.documents, device, shape.target_positions()),
        target_positions=target_positions.to(device),
        targets=torch.randint(10, 31_000, target_positions.shape).to(device),
        pixels=torch.randn(images, 3, side, side).to(device, dtype),
        augment_seeds=(0,) * images,
        sample_ids=(),
    )


def padded_step(
    model: Any, plan: Plan, config: TrainConfig, device: torch.device
) -> tuple[Callable[[], None], WorkCounts]:
    """LLaVA's step: batches of four samples padded to the longest, logits of all positions."""
    use_plain_attention(model)
    image = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    side, dtype = model.config.vision_config.image_size, torch.bfloat16 if device.type != "cpu" else torch.float32
    lengths = [int(plan.lengths.total[i]) for i in plan.samples(0)]
    batches = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]

    def step() -> None:
        for batch in batches:
            longest = max(batch)
            ids = torch.randint(10, 31_000, (len(batch), longest), device=device)
            ids[:, 1 : 1 + image] = IMAGE_ID
            mask = torch.arange(longest, device=device)[None] < torch.tensor(batch, device=device)[:, None]
            labels = ids.masked_fill(~mask, -100)
            labels[:, : image + 1] = -100
            pixels = torch.randn(len(batch), 3, side, side, device=device, dtype=dtype)
            with autocast_context(config.precision, device):
                loss = model(
                    input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=labels, use_cache=False
                ).loss
            (loss / len(batches)).backward()

    # required work as for packs without prefix sharing: one image per sample
    total = plan.lengths.total[plan.samples(0)]
    answers = plan.lengths.answer_tokens[plan.samples(0)]
    pairs = int((total * (total + 1) // 2).sum()), int((answers * total - answers * (answers - 1) // 2).sum())
    return step, WorkCounts(int(total.sum()), int(answers.sum()), len(total), *pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--miniature" in sys.argv)
