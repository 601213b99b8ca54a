"""What training costs in arithmetic, counted from the model's shape; what machines can do at best.

In: a model (with weights or without, the learning parts set). Out: its `Cost`, four numbers that turn counts of tokens,
answers, images and attended pairs into floating-point operations. Only what a pack needs is counted: a shared image
once, no padding, no second computation of activations, no layer whose output is not used.
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from qilin.train.plan import Counts
from qilin.train.skip_unused import features_depth, vision_layers


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of forward and backward together; a multiply and an add are two."""

    token: float  # of the language model, without attention and without the last layer's queries, projection and MLP
    answer: float  # of these and the head, at a supervised position: nobody reads what they make of other tokens
    image: float  # of vision encoder and projector
    pair: float  # of attention, for one token that one other (or itself) sees, over all layers but the last
    answer_pair: float  # in the last layer, for one that is seen by a supervised position

    def of(self, counts: Counts) -> float:
        return (
            self.token * counts.tokens
            + self.answer * counts.answers
            + self.image * counts.images
            + self.pair * counts.pairs
            + self.answer_pair * counts.answer_pairs
        )


def cost_of(model: Any) -> Cost:
    """The Cost of a stock Llava whose learning parameters are set."""
    vision, projector, language = (
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.model.language_model,
    )
    text = model.config.text_config
    patches = (vision.config.image_size // vision.config.patch_size) ** 2
    vision_learns = any(p.requires_grad for p in vision.parameters())
    first_learns = vision_learns or projector.linear_1.weight.requires_grad
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers = vision_layers(model)[: features_depth(model)]
    strips = [module for module in vision.modules() if isinstance(module, torch.nn.Conv2d)]  # that cut patches
    seen = patches * sum(products(module, vision_learns) for module in [*strips, *layers])
    seen += patches * products(projector.linear_1, vision_learns) + patches * products(projector.linear_2, first_learns)
    # QK' and PV, two operations a number each; backward has each product twice
    lookup = 4 * len(layers) * vision.config.hidden_size * (3 if vision_learns else 1)
    learns = first_learns or any(p.requires_grad for p in language.parameters())
    end = language.layers[-1]
    last = sum(products(part, learns) for part in (end.self_attn.q_proj, end.self_attn.o_proj, end.mlp))
    pair = 4 * text.num_attention_heads * head_width * (3 if learns else 1)
    return Cost(
        token=products(language, learns) - last,
        answer=last + products(model.lm_head, True),
        image=seen + lookup * patches**2,
        pair=pair * (text.num_hidden_layers - 1),
        answer_pair=pair,
    )


def products(module: torch.nn.Module, gradient: bool) -> float:
    """Operations of a module's matrices for one row; `gradient`: it also hands a gradient back to its input."""
    total = 0.0
    for inner in module.modules():
        if isinstance(inner, torch.nn.Linear):
            total += 2 * inner.in_features * inner.out_features * (1 + gradient + inner.weight.requires_grad)
        elif isinstance(inner, torch.nn.Conv2d):
            total += 2 * inner.weight.numel() * (1 + inner.weight.requires_grad)
    return total


@dataclass(frozen=True)
class Card:
    """An accelerator by its data sheet: memory in bytes, dense products a second in bf16 and (0: none) FP8."""

    memory: float
    bf16: float
    fp8: float = 0.0


# NVIDIA's data sheets, without sparsity, bf16 with sums in fp32; the first name found in the device's own counts
CARDS = {
    "b200": Card(180e9, 2250e12, 4500e12),
    "h200": Card(141e9, 989e12, 1979e12),
    "h100 pcie": Card(80e9, 756e12, 1513e12),
    "h100": Card(80e9, 989e12, 1979e12),
    "h800": Card(80e9, 989e12, 1979e12),
    "h20": Card(96e9, 148e12, 296e12),
    "a100 40gb": Card(40e9, 312e12),
    "a100": Card(80e9, 312e12),
    "a800": Card(80e9, 312e12),
    "l40s": Card(48e9, 362e12, 733e12),
    "l20": Card(48e9, 119.5e12, 239e12),
    "rtx a6000": Card(48e9, 154.8e12),
    "rtx 4090": Card(24e9, 165e12, 330e12),
}


def card_named(name: str) -> Card | None:
    """The card whose name stands in `name`, such as 'NVIDIA H100 80GB HBM3'."""
    plain = name.lower().replace("-", " ")
    return next((card for key, card in CARDS.items() if key in plain), None)


def fast_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """What `precision=auto` stands for: bf16 on an accelerator that has it, on a processor the faster one there.

    That is measured, since instructions do not tell: a Xeon with AVX-512's for bf16 multiplies fp32 twice as fast, and
    another machine trained faster in bf16 (docs/training.md).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "bf16"
    return "bf16" if peak_of(device, "bf16") > peak_of(device, "fp32") else "fp32"


def peak_of(device: torch.device, precision: str) -> float:
    """Products a second that `device` can do at best: by the data sheet, else as a large matrix product shows it."""
    if device.type == "cuda" and precision == "bf16":
        card = card_named(torch.cuda.get_device_name(device))
        if card:
            return card.bf16
    return measure_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)


@lru_cache
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few products of square matrices; under half a second on a CPU."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best
