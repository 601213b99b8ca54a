"""Models of real size with random weights, and packs with ChiMed-VL's lengths, for measurements on a GPU.

Inputs: a shape (7B, 13B), a stage, settings. Outputs: a model on the device and the plan of one step, and functions
that compute a step as Qilin does (packs) or as LLaVA does (batches padded to the longest sample, all logits).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qilin.model.architectures import set_trainable
from qilin.train.config import DataSource, ModelPart, TrainConfig
from qilin.train.distributed import ModelWithLoss
from qilin.train.loop import pack_loss
from qilin.train.memory_estimate import PackShape, pack_shape
from qilin.train.model_setup import add_adapters, apply_precision, autocast_context, base_model, quantize_frozen
from qilin.train.pack import Pack, move_pack
from qilin.train.packed_attention import Layout, document_table, use_plain_attention
from qilin.train.plan import Lengths, PackedGroup, Plan, WorkCounts, make_plan

IMAGE_ID = 5
IMAGE_TOKENS = 576  # CLIP ViT-L/14 at 336 pixels
TEMPLATE_TOKENS = 40
SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip


def make_config(stage: int, pack_tokens: int = 8192, **options: Any) -> TrainConfig:
    """The settings of a stage: projector alone, or with the language model or its adapters."""
    trainable: tuple[ModelPart, ...] = ("projector",) if stage == 1 or "lora" in options else ("projector", "language")
    return TrainConfig(
        model="random", data=(DataSource(path=Path("none")),), trainable=trainable, pack_tokens=pack_tokens,
        max_length=min(2048, pack_tokens), precision="bf16", **options,
    )  # fmt: skip


def make_model(shape: str, config: TrainConfig, device: torch.device, layers: int | None = None) -> Any:
    """A Llava with random weights, created on the device, with CLIP ViT-L/14 at 336 pixels."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    sizes = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    text = LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **sizes)
    model_config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    with device:
        model: Any = LlavaForConditionalGeneration(model_config)
    set_trainable(model, config.trainable)
    model = quantize_frozen(apply_precision(model, config), config, device)
    return base_model(add_adapters(model, config)).train()


def draw_plan(stage: int, config: TrainConfig, batch_size: int) -> Plan:
    """One step with ChiMed-VL's lengths: contexts and captions in stage 1, three questions per image in stage 2."""
    random = np.random.default_rng(0)

    def log_normal(median: float, upper_quartile: float) -> np.ndarray:
        sigma = math.log(upper_quartile / median) / 0.6745
        return np.maximum(2, np.exp(math.log(median) + sigma * random.standard_normal(batch_size))).astype(np.int64)

    prefix = IMAGE_TOKENS + TEMPLATE_TOKENS
    if stage == 1:
        texts = np.where(np.arange(batch_size) % 2, log_normal(435, 757), log_normal(59, 83))
        answers, groups = texts, np.arange(batch_size)
    else:
        questions, answers = log_normal(20, 25), log_normal(22, 34)
        texts, groups = questions + answers, np.arange(batch_size) // 3
    total = np.minimum(prefix + texts, config.max_length)
    lengths = Lengths(
        total=total,
        prefix=np.full(batch_size, prefix if config.share_image_prefix else 0),
        answer_tokens=np.maximum(1, np.minimum(answers, total - prefix)),
        prefix_group=groups if config.share_image_prefix else -1 - np.arange(batch_size),
        source=np.zeros(batch_size, dtype=np.int64),
        images=np.ones(batch_size, dtype=np.int64),
    )
    return make_plan(lengths, [1.0], batch_size=batch_size, num_epochs=1, pack_tokens=config.pack_tokens, seed=0)


def choose_packs(plan: Plan, count: int) -> list[list[PackedGroup]]:
    """`count` packs spread over the step, without the last one, which is what remains. Best fit sorts the longest
    samples first."""
    packs = plan.packs(0)[0]
    packs = packs[:-1] if len(packs) > 1 else packs
    count = min(count, len(packs))
    return [packs[index * len(packs) // count] for index in range(count)]


def packed_step(model: Any, plan: Plan, groups: Sequence[Sequence[PackedGroup]], device: torch.device) -> Any:
    """(Qilin's forward and backward over packs, the packs)"""
    packs = [make_pack(pack_shape(pack, plan.lengths), model, device) for pack in groups]
    module = ModelWithLoss(model, pack_loss)
    total = sum(len(pack.targets) for pack in packs)

    def step() -> None:
        for pack in packs:
            with autocast_context("bf16", device):
                loss = module(pack, pack.pixels)
            (loss / total).backward()

    return step, packs


def make_pack(shape: PackShape, model: Any, device: torch.device) -> Pack:
    """A pack of random tokens, moved as training moves it: every document without a prefix starts with an image."""
    ids = torch.randint(10, 31_000, (1, shape.tokens))
    positions = torch.zeros(1, shape.tokens, dtype=torch.int64)
    for start, length, prefix in shape.documents:
        offset = shape.documents[prefix][1] if prefix >= 0 else 0
        positions[0, start : start + length] = torch.arange(length) + offset
        if prefix < 0 and length > IMAGE_TOKENS:
            ids[0, start + 1 : start + 1 + IMAGE_TOKENS] = IMAGE_ID
    image_positions = (ids[0] == IMAGE_ID).nonzero()[:, 0]
    images = len(image_positions) // IMAGE_TOKENS
    side = model.config.vision_config.image_size
    target_positions = torch.tensor(shape.target_positions())
    dtype = torch.bfloat16 if device.type != "cpu" else torch.float32
    pack = Pack(
        ids=ids,
        positions=positions,
        layout=Layout(document_table(shape.documents)),
        target_positions=target_positions,
        targets=torch.randint(10, 31_000, target_positions.shape),
        pixels=torch.randn(images, 3, side, side).to(dtype),
        image_positions=image_positions,
        augment_seeds=(0,) * images,
        sample_ids=(),
    )
    return move_pack(pack, shape.documents, device)


def padded_step(model: Any, plan: Plan, size: int, device: torch.device) -> tuple[Callable[[], None], WorkCounts, int]:
    """LLaVA's step: `size` samples padded to the longest, logits of all positions; the batch whose padded length is
    nearest to the mean. Returns the step, the work that the samples require, the padded length."""
    use_plain_attention(model)
    totals = [int(plan.lengths.total[index]) for index in plan.samples(0)]
    batches = [totals[start : start + size] for start in range(0, len(totals) - size + 1, size)]
    mean = sum(max(batch) for batch in batches) / len(batches)
    batch = min(batches, key=lambda lengths: abs(max(lengths) - mean))
    longest, side = max(batch), model.config.vision_config.image_size
    ids = torch.randint(10, 31_000, (size, longest), device=device)
    ids[:, 1 : 1 + IMAGE_TOKENS] = IMAGE_ID
    mask = torch.arange(longest, device=device)[None] < torch.tensor(batch, device=device)[:, None]
    labels = ids.masked_fill(~mask, -100)
    labels[:, : IMAGE_TOKENS + 1] = -100
    pixels = torch.randn(size, 3, side, side, device=device, dtype=torch.bfloat16)

    def step() -> None:
        with autocast_context("bf16", device):
            loss = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()

    tokens = sum(batch)
    answers = tokens - (IMAGE_TOKENS + 1) * size
    pairs = sum(length * (length + 1) // 2 for length in batch)
    return step, WorkCounts(tokens, answers, size, pairs, 0), longest
