"""Moves a factor of a language model's logits (Granite's logits_scaling, Cohere's logit_scale) into its last norm.

In: a Llava and the logits of its language model's own class. Out: the factor, with the norm's weights and the config
changed in place. A power of two changes no digit of a weight, in bf16 neither, so the logits stay equal; other factors
would round. The head is unchanged: its gradient is the original's, and it may be tied to the embeddings.
"""

import math
from typing import Any

import torch

TOLERANCE = 1e-6  # of the factor, measured in fp32


@torch.no_grad()
def fold_logit_scale(model: Any, keys: dict[str, Any], logits: torch.Tensor, expected: torch.Tensor) -> float | None:
    """The factor between a Llava's logits and the expected ones, after moving it into the norm; None if that is not
    possible. `keys`: what the head reads of the config; the one with the factor is set to 1."""
    factor = common_factor(logits, expected)
    norm = getattr(model.model.language_model, "norm", None)
    weights = list(norm.parameters()) if isinstance(norm, torch.nn.Module) else []
    config = model.config.text_config
    names = [name for name, value in keys.items() if value in (factor, 1 / factor) and name in vars(config)]
    if not weights or len(names) != 1 or math.frexp(factor)[0] != 0.5:  # a power of two has the mantissa 0.5
        return None
    for weight in weights:
        weight.mul_(factor)
    setattr(config, names[0], 1.0)
    return factor


def common_factor(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The factor by which all logits differ, 1 if there is none; a measured power of two is exact."""
    factor = float((logits.double() * expected.double()).sum() / logits.double().square().sum().clamp_min(1e-30))
    if factor <= 0 or not math.isfinite(factor):
        return 1.0
    power = 2.0 ** round(math.log2(factor))
    return power if abs(factor / power - 1) <= TOLERANCE and power != 1 else 1.0
