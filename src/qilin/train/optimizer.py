"""What moves the weights: AdamW, or Muon for the matrices inside the layers and AdamW for all else.

In: parameters with their rate and decay. Out: an optimizer whose groups remember their peak rate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qilin.core.errors import UserError

Kind = Literal["adamw", "muon", "adamw8bit"]


@dataclass(frozen=True)
class Learning:
    """A parameter that learns."""

    name: str
    parameter: torch.nn.Parameter
    peak: float  # learning rate after the warm-up
    decay: float


def make_optimizer(learning: Iterable[Learning], kind: Kind, betas: tuple[float, float]) -> Any:
    """An optimizer over all of `learning`, parameters of equal rate and decay in one group."""
    groups: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for item in learning:
        by_muon = kind == "muon" and inside_a_layer(item)
        groups.setdefault((by_muon, item.peak, item.decay), []).append(item.parameter)
    muon, adamw = (
        [
            {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
            for (by_muon, peak, decay), parameters in groups.items()
            if by_muon is wanted
        ]
        for wanted in (True, False)
    )
    made: list[torch.optim.Optimizer] = []
    if adamw and kind == "adamw8bit":
        made.append(in_eight_bits(adamw, betas))
    elif adamw:
        made.append(torch.optim.AdamW(adamw, betas=betas, fused=True))
    if muon:  # its steps scaled to be of AdamW's size, so that one rate serves both
        made.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return made[0] if len(made) == 1 else Together(made)


def in_eight_bits(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW whose averages are kept in 8 bits a number, with a scale for each block."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise UserError("optimizer is adamw8bit, which needs torchao: pip install 'qilin-med[small]'") from None
    return AdamW8bit(groups, betas=betas)


def inside_a_layer(item: Learning) -> bool:
    """Muon is for matrices that turn hidden states into hidden states; tables of embeddings are not."""
    return item.parameter.ndim == 2 and not any(word in item.name for word in ("embed", "lm_head"))


class Together:
    """Several optimizers that step as one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {parameter: kept for optimizer in self.optimizers for parameter, kept in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def set_rates(optimizer: Any, share: float) -> None:
    """Every group's rate, as a share of its peak."""
    for group in optimizer.param_groups:
        set_rate(group, group["peak"] * share)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """A group's learning rate; torchao keeps it in a tensor, so that its compiled step need not be compiled again."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rate_share(schedule: str, step: int, steps: int, warmup: int) -> float:
    """The rate of step number `step` as a share of its peak (the formulas of transformers' schedulers)."""
    if step < warmup:
        return step / max(1, warmup) if warmup > 1 else 1.0
    gone = (step - warmup) / max(1, steps - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}[schedule]
