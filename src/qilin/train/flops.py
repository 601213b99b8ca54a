"""Floating-point operations of training, computed from the model's shape, and the peak rates of machines.

In: a model (with or without weights) whose trainable parts are set. Out: a FlopCost that turns counts of tokens,
answer tokens, images and attention pairs into operations. Only required work counts: a shared image once, no padding,
no recomputed activations, no unused layer. torch.utils.flop_counter counts the opposite, whatever a forward pass
executed, and has to run it for every pack shape; it is the reference in tests/train/test_flops.py.
"""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from qilin.model.architectures import LLAVA, PARTS, find_architecture, language_of, part_of, vision_of
from qilin.train.gpus import find_gpu
from qilin.train.plan import WorkCounts
from qilin.train.skip_unused import feature_depth, has_usual_layers, language_layers, vision_layers


@dataclass(frozen=True)
class FlopCost:
    """Operations of forward and backward together; a multiply-add is two."""

    token: float  # language model without attention, and without queries, output projection and MLP of the last layer
    answer_token: float  # these and the head, which only supervised positions need
    image: float  # vision encoder and projector
    attention_pair: float  # one token attending to one other (or itself), over all layers but the last
    answer_pair: float  # the same in the last layer, for supervised positions
    image_token: float = 0.0  # vision encoder and projector, of models whose images have any number of tokens
    image_pair: float = 0.0  # attention of the encoder: one image token to one other

    def total(self, counts: WorkCounts) -> float:
        return (
            self.token * counts.tokens
            + self.answer_token * counts.answer_tokens
            + self.image * counts.images
            + self.attention_pair * counts.attention_pairs
            + self.answer_pair * counts.answer_pairs
            + self.image_token * counts.image_tokens
            # as if all images had the mean number of tokens
            + self.image_pair * counts.image_tokens**2 / max(1, counts.images)
        )


def flop_cost(model: Any) -> FlopCost:
    """The FlopCost of a model whose trainable parameters are set."""
    language, text_config = language_of(model), model.config.text_config
    images = image_cost(model) if find_architecture(model.config) is LLAVA else image_token_cost(model)
    projector_trained = any(p.requires_grad for n, p in model.named_parameters() if part_of(n) != "language")
    heads = getattr(text_config, "num_attention_heads", 0)  # Mamba has none
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // max(heads, 1)
    needs_grad = projector_trained or any(p.requires_grad for p in language.parameters())
    last_layer = 0.0
    if skips := has_usual_layers(language):
        last = language.layers[-1]
        parts = (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp)
        last_layer = sum(matmul_flops(part, needs_grad) for part in parts)
    pair = 4 * heads * head_width * (3 if needs_grad else 1)
    return FlopCost(
        token=matmul_flops(language, needs_grad) - last_layer,
        answer_token=last_layer + matmul_flops(model.lm_head, True),
        attention_pair=pair * (text_config.num_hidden_layers - skips),
        answer_pair=pair * skips,
        **images,
    )


def image_cost(model: Any) -> dict[str, float]:
    """The operations of an image of a Llava; all have the same number of patches."""
    vision, projector = vision_of(model), model.model.multi_modal_projector
    patches = (vision.config.image_size // vision.config.patch_size) ** 2
    vision_trained = any(p.requires_grad for p in vision.parameters())
    projector_trained = vision_trained or projector.linear_1.weight.requires_grad
    layers = vision_layers(model)[: feature_depth(model)]
    patch_embeddings = [module for module in vision.modules() if isinstance(module, torch.nn.Conv2d)]
    image = patches * sum(matmul_flops(module, vision_trained) for module in [*patch_embeddings, *layers])
    image += patches * matmul_flops(projector.linear_1, vision_trained)
    image += patches * matmul_flops(projector.linear_2, projector_trained)
    # QK' and PV, two operations per element each; the backward pass has each product twice
    vision_pair = 4 * len(layers) * vision.config.hidden_size * (3 if vision_trained else 1)
    return {"image": image + vision_pair * patches**2}


def image_token_cost(model: Any) -> dict[str, float]:
    """The operations of a token of an image, of a model whose images have any number of them."""
    vision, patches = vision_of(model), find_architecture(model.config).patches_per_token(model.config)
    trained = dict.fromkeys(PARTS, False)
    for name, parameter in model.named_parameters():
        trained[part_of(name)] |= parameter.requires_grad
    layers = vision_layers(model)[: feature_depth(model)]
    embeddings = [module for module in vision.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d)]
    token = patches * sum(matmul_flops(module, trained["vision"]) for module in [*embeddings, *layers])
    passes = 1 + trained["vision"] + trained["projector"]
    matrices = [p for name, p in model.named_parameters() if part_of(name) == "projector" and p.ndim == 2]
    token += 2.0 * passes * sum(matrix.numel() for matrix in matrices)
    # the few layers of Qwen2.5-VL that attend to all of an image; those that attend to 64 patches count nothing
    full = len(getattr(vision.config, "fullatt_block_indexes", layers))
    pair = 4.0 * full * vision.config.hidden_size * (3 if trained["vision"] else 1) * patches**2
    return {"image": 0.0, "image_token": token, "image_pair": pair}


def matmul_flops(module: torch.nn.Module, needs_input_grad: bool) -> float:
    """Operations of a module's matrices for one row; `needs_input_grad`: the backward pass continues to its input."""
    total = 0.0
    for inner in module.modules():
        if isinstance(inner, torch.nn.Linear):
            passes = 1 + needs_input_grad + inner.weight.requires_grad
            total += 2 * inner.in_features * inner.out_features * passes
        elif isinstance(inner, torch.nn.Conv2d | torch.nn.Conv3d):
            total += 2 * inner.weight.numel() * (1 + inner.weight.requires_grad)
    return total


def recomputed_cost(model: Any, share: float) -> FlopCost:
    """What gradient checkpointing in this share of the language model's layers computes a second time.

    A trained vision encoder is recomputed too, a frozen one is not. No run's MFU counts this; its time does.
    """
    text_config = model.config.text_config
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    layers = list(language_layers(language_of(model)))
    layers = layers[: math.ceil(share * len(layers))]
    vision, architecture = vision_of(model), find_architecture(model.config)
    image = image_token = 0.0
    if share and any(p.requires_grad for layer in vision_layers(model) for p in layer.parameters()):
        patch = sum(forward_flops(layer) for layer in vision_layers(model)[: feature_depth(model)])
        if architecture is LLAVA:
            image = (vision.config.image_size // vision.config.patch_size) ** 2 * patch
        else:
            image_token = architecture.patches_per_token(model.config) * patch
    return FlopCost(
        token=sum(forward_flops(layer) for layer in layers),
        answer_token=0.0,
        image=image,
        attention_pair=4.0 * text_config.num_attention_heads * head_width * len(layers),
        answer_pair=0.0,
        image_token=image_token,
    )


def forward_flops(module: torch.nn.Module) -> float:
    """Operations of a module's linear layers for one row, forward only."""
    linears = [inner for inner in module.modules() if isinstance(inner, torch.nn.Linear)]
    return float(sum(2 * linear.in_features * linear.out_features for linear in linears))


def fast_precision(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision that `precision=auto` stands for: bf16 on an accelerator that computes it, fp16 on older GPUs with
    tensor cores (V100, T4, RTX 20), on a CPU the faster of bf16 and fp32.

    Measured, since instruction sets do not tell: a Xeon with AVX-512's bf16 instructions multiplies fp32 twice as
    fast, and another machine trained faster in bf16 (docs/training.md).
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type != "cpu":
        return "bf16"
    return "bf16" if peak_flops(device, "bf16") > peak_flops(device, "fp32") else "fp32"


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations per second that `device` can reach: by the data sheet, else measured on a large matrix product."""
    if device.type == "cuda" and precision in ("bf16", "fp16"):
        gpu = find_gpu(torch.cuda.get_device_name(device))
        if gpu:
            return gpu.half
    return measure_peak_flops(device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))


@lru_cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of four products of square matrices; under half a second on a CPU."""
    if device.type != "cpu":
        return measure_product(device, dtype, 8192)
    small = measure_product(device, dtype, 256)
    # large products are a little faster, but of fp16 they take seconds on CPUs that do not compute it
    return max(small, measure_product(device, dtype, 1024)) if small > 17e9 else small


def measure_product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of the fastest of four products."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best
