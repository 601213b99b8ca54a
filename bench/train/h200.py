"""How much of one GPU's autocast_context training puts to use: 7B and 13B shapes, both stages, against LLaVA's padded batch.

In: nothing but the machine; weights are random, samples are lengths drawn like ChiMed-VL's. Out: a JSON file, a row a
case: samples/s, tokens/s, MFU, memory. Without a GPU it runs in miniature on the CPU, which proves that the script
runs and nothing about a GPU; the file says so.

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
from qilin.model.llava import set_trainable
from qilin.train.config import DataSource, LoraOptions, TrainConfig
from qilin.train.data_loader import Pack
from qilin.train.distributed import ModelWithLoss
from qilin.train.flops import flop_cost, peak_flops
from qilin.train.loop import trainable_params, pack_loss
from qilin.train.memory_estimate import PackShape, pack_shape
from qilin.train.model_setup import add_adapters, autocast_context, base_model, apply_precision, quantize_frozen
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import make_layout, use_packed_attention, use_plain_attention
from qilin.train.plan import WorkCounts, Lengths, Plan, count_work, make_plan

IMAGE_ID = 5
SECONDS = 25.0  # for each case, after its first step; fifteen cases within a call of ten minutes


@dataclass(frozen=True)
class Case:
    name: str
    shape: str
    stage: int
    changes: dict[str, Any]
    padded: bool = False  # LLaVA's way: a batch of single samples padded to the longest, all logits


SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "miniature": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4},
}
AGAIN = {"checkpointing": True}
CASES = (
    Case("stage 1, LLaVA's batch", "13B", 1, AGAIN, padded=True),
    Case("stage 1, packed", "13B", 1, {}),
    Case("stage 1, packed, activations again", "13B", 1, AGAIN),
    Case("stage 1, packed, fp8", "13B", 1, {"frozen": "fp8"}),
    Case("stage 2, adapters, LLaVA's batch", "13B", 2, {"lora": LoraOptions(rank=64, alpha=128), **AGAIN}, padded=True),
    Case("stage 2, adapters, packed, shared", "13B", 2, {"lora": LoraOptions(rank=64, alpha=128), **AGAIN}),
    Case("stage 2, full, LLaVA's batch", "7B", 2, {"optimizer": "adamw8bit", **AGAIN}, padded=True),
    Case("stage 2, full, packed, not shared", "7B", 2, {"optimizer": "adamw8bit", "questions": "separate", **AGAIN}),
    Case("stage 2, full, packed, shared", "7B", 2, {"optimizer": "adamw8bit", **AGAIN}),
    Case("stage 2, full, packed, shared, half again", "7B", 2, {"optimizer": "adamw8bit", "checkpointing": 0.5}),
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
    """One case: a first step that compiles, then as many as its time allows."""
    small = device.type == "cpu"
    changes = {key: value for key, value in case.changes.items() if key != "questions"}
    if small:
        changes.pop("optimizer", None)
    learn = ("projector",) if case.stage == 1 or "lora" in case.changes else ("projector", "language")
    config = TrainConfig(
        model="random", data=(DataSource(path=Path("none")),), trainable=learn, pack_tokens=512 if small else 8192,
        max_length=512 if small else 2048, precision="bf16", **changes,
    )  # fmt: skip
    model = make_model(SHAPES["miniature" if small else case.shape], small, config, device)
    plan = make_lengths(case, config, 16 if small else 576, batch_size=8 if small else 32)
    optimizer = make_optimizer(trainable_params(model, config), config.optimizer, config.betas)
    cost = flop_cost(model)
    step, needed = (padded_step if case.padded else packed_step)(model, plan, config, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    begun = time.perf_counter()
    while not times or (time.perf_counter() - begun < (1.0 if small else SECONDS) and len(times) < 20):
        started = time.perf_counter()
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        if len(times) == 1:
            begun = time.perf_counter()
    seconds = float(np.median(times[1:] or times))
    samples = len(plan.samples(0))
    return {
        "samples_per_second": round(samples / seconds, 3),
        "tokens_per_second": round(needed.tokens / seconds, 1),
        "mfu": round(cost.of(needed) / seconds / peak, 4),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
        "steps": len(times) - 1,
    }


def make_model(shape: dict[str, int], small: bool, config: TrainConfig, device: torch.device) -> Any:
    """A random Llava of a shape, made on the device itself: CLIP ViT-L/14 at 336 pixels, or a tiny one."""
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


def make_lengths(case: Case, config: TrainConfig, image: int, batch: int) -> Plan:
    """Samples like ChiMed-VL's: contexts and captions in stage 1, three questions an image in stage 2."""
    random = np.random.default_rng(0)
    small = image < 100

    def drawn(median: float, upper: float, count: int) -> np.ndarray:
        spread = math.log(upper / median) / 0.6745  # log-normal through median and upper quartile
        return np.maximum(2, np.exp(math.log(median) + spread * random.standard_normal(count))).astype(np.int64)

    shared = image + 40
    if case.stage == 1:
        texts = np.where(np.arange(batch) % 2, drawn(435, 757, batch), drawn(59, 83, batch))
        learnt, units = texts, np.arange(batch)
    else:
        questions, learnt = drawn(20, 25, batch), drawn(22, 34, batch)
        texts, units = questions + learnt, np.arange(batch) // 3
    total = np.minimum(shared + texts // (4 if small else 1), config.max_length)
    learnt = np.minimum(learnt, total - shared)
    together = case.changes.get("questions") != "separate"
    lengths = Lengths(
        total=total,
        prefix=np.full(batch, shared if together else 0),
        learnt=np.maximum(1, learnt),
        prefix_group=units if together else -1 - np.arange(batch),
        source=np.zeros(batch, dtype=np.int64),
        images=np.ones(batch, dtype=np.int64),
    )
    return make_plan(lengths, [1.0], batch_size=batch, num_epochs=1, pack_tokens=config.pack_tokens, seed=0)


def packed_step(
    model: Any, plan: Plan, config: TrainConfig, device: torch.device
) -> tuple[Callable[[], None], WorkCounts]:
    """Qilin's step over packs, and the work its samples need."""
    use_packed_attention(model)
    packs = [make_pack(pack_shape(pieces, plan.lengths), model, device) for pieces in plan.packs(0)[0]]
    learner = ModelWithLoss(model, pack_loss)
    total = sum(len(pack.targets) for pack in packs)

    def step() -> None:
        for pack in packs:
            with autocast_context(config.precision, device):
                loss = learner(pack, pack.pixels)
            (loss / total).backward()

    return step, count_work(plan.pieces(0), plan.lengths)


def make_pack(shape: PackShape, model: Any, device: torch.device) -> Pack:
    """A pack of random words: every document that begins one carries an image's tokens."""
    image = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = torch.randint(10, 31_000, (1, shape.tokens))
    positions = torch.zeros(1, shape.tokens, dtype=torch.int64)
    for start, length, before in shape.documents:
        offset = shape.documents[before][1] if before >= 0 else 0
        positions[0, start : start + length] = torch.arange(length) + offset
        if before < 0 and length > image:
            ids[0, start + 1 : start + 1 + image] = IMAGE_ID
    images = int((ids == IMAGE_ID).sum()) // image
    side = model.config.vision_config.image_size
    where = torch.tensor(shape.target_positions())
    kind = torch.bfloat16 if device.type != "cpu" else torch.float32
    return Pack(
        ids=ids.to(device),
        positions=positions.to(device),
        layout=make_layout(shape.documents, device, shape.target_positions()),
        where=where.to(device),
        targets=torch.randint(10, 31_000, where.shape).to(device),
        pixels=torch.randn(images, 3, side, side).to(device, kind),
        seeds=(0,) * images,
        samples=(),
    )


def padded_step(
    model: Any, plan: Plan, config: TrainConfig, device: torch.device
) -> tuple[Callable[[], None], WorkCounts]:
    """LLaVA's step: single samples, padded to the longest of the batch, logits of all positions, four at a time."""
    use_plain_attention(model)
    image = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    side, kind = model.config.vision_config.image_size, torch.bfloat16 if device.type != "cpu" else torch.float32
    lengths = [int(plan.lengths.total[i]) for i in plan.samples(0)]
    batches = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]

    def step() -> None:
        for mine in batches:
            longest = max(mine)
            ids = torch.randint(10, 31_000, (len(mine), longest), device=device)
            ids[:, 1 : 1 + image] = IMAGE_ID
            mask = torch.arange(longest, device=device)[None] < torch.tensor(mine, device=device)[:, None]
            labels = ids.masked_fill(~mask, -100)
            labels[:, : image + 1] = -100
            pixels = torch.randn(len(mine), 3, side, side, device=device, dtype=kind)
            with autocast_context(config.precision, device):
                loss = model(
                    input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=labels, use_cache=False
                ).loss
            (loss / len(batches)).backward()

    # what its samples need, each with its own image: the same measure as ours when nothing is shared
    own = plan.lengths.total[plan.samples(0)]
    learnt = plan.lengths.answer_tokens[plan.samples(0)]
    seen = int((own * (own + 1) // 2).sum()), int((learnt * own - learnt * (learnt - 1) // 2).sum())
    return step, WorkCounts(int(own.sum()), int(learnt.sum()), len(own), *seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--miniature" in sys.argv)
