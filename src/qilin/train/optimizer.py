"""Optimizers and learning rate schedules: AdamW, or Muon for the matrices inside the layers and AdamW for the rest.

In: parameters with their learning rate and weight decay. Out: an optimizer whose parameter groups keep their peak rate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qilin.core.errors import UserError
from qilin.train.config import TrainConfig

OptimizerName = Literal["adamw", "muon", "adamw8bit"]


@dataclass(frozen=True)
class TrainableParam:
    """A parameter to optimize."""

    name: str
    parameter: torch.nn.Parameter
    peak_lr: float  # learning rate after the warm-up
    weight_decay: float


def make_optimizer(params: Iterable[TrainableParam], name: OptimizerName, betas: tuple[float, float]) -> Any:
    """An optimizer over `params`; parameters of equal learning rate and weight decay form one group."""
    groups: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for param in params:
        by_muon = name == "muon" and is_layer_matrix(param)
        groups.setdefault((by_muon, param.peak_lr, param.weight_decay), []).append(param.parameter)
    muon, adamw = (
        [
            {"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay}
            for (by_muon, peak, decay), parameters in groups.items()
            if by_muon is for_muon
        ]
        for for_muon in (True, False)
    )
    optimizers: list[torch.optim.Optimizer] = []
    if adamw and name == "adamw8bit":
        optimizers.append(make_adamw8bit(adamw, betas))
    elif adamw:
        optimizers.append(torch.optim.AdamW(adamw, betas=betas, fused=True))
    if muon:  # its updates scaled to the size of AdamW's, so that one learning rate serves both
        optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)


def make_adamw8bit(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits and one scale per block. Raises UserError if torchao is not installed."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise UserError("optimizer is adamw8bit, which needs torchao: pip install 'qilin-med[small]'") from None
    return AdamW8bit(groups, betas=betas)


def is_layer_matrix(param: TrainableParam) -> bool:
    """Whether Muon applies: a matrix that maps hidden states to hidden states, not an embedding table or the head."""
    return param.parameter.ndim == 2 and not any(part in param.name for part in ("embed", "lm_head"))


class CombinedOptimizer:
    """Several optimizers that step together."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {parameter: state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def set_learning_rates(optimizer: Any, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        set_learning_rate(group, group["peak_lr"] * factor)


def set_learning_rate(group: dict[str, Any], learning_rate: float) -> None:
    """Set a group's learning rate; torchao keeps it in a tensor so that its compiled step is not compiled again."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(learning_rate)
    else:
        group["lr"] = learning_rate


def lr_factor(
    scheduler_type: str, step: int, num_steps: int, warmup_steps: int, min_ratio: float = 0.0, decay_steps: int = 0
) -> float:
    """Learning rate of a step relative to its peak, by the formulas of transformers' schedulers: with `min_ratio`, the
    rate at the end, those of cosine_with_min_lr; wsd is warmup_stable_decay with its cosine over `decay_steps`."""
    if step < warmup_steps:
        # A run that is nothing but its warm-up would learn nothing.
        return step / warmup_steps if num_steps > 1 else 1.0
    start = num_steps - decay_steps if scheduler_type == "wsd" else warmup_steps
    progress = max(0, step - start) / max(1, num_steps - start)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    factor = {"cosine": cosine, "wsd": cosine, "linear": 1 - progress, "constant": 1.0}[scheduler_type]
    return factor * (1 - min_ratio) + min_ratio if min_ratio else factor


def schedule_steps(config: TrainConfig, num_steps: int) -> tuple[int, int]:
    """(warm-up steps, decay steps of wsd) of a run. Raises UserError for more of them than the run has steps."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_ratio * num_steps)
    elif warmup >= num_steps:
        raise UserError(
            f"warmup_steps is {warmup}, but the run has {num_steps} steps; lower it, or train longer (num_epochs, "
            "max_steps)"
        )
    decay = math.ceil(config.decay_ratio * num_steps) if config.lr_scheduler_type == "wsd" else 0
    excess = warmup + decay - num_steps
    if decay and excess >= 2:  # below, it is the rounding of both to whole steps
        raise UserError(
            f"the warm-up of {warmup} steps and the decay of {decay} (decay_ratio {config.decay_ratio}) exceed the "
            f"{num_steps} steps of the run; lower one of them"
        )
    return warmup, decay - max(0, excess) if decay else 0


def step_lr_factor(config: TrainConfig, step: int, num_steps: int) -> float:
    """Learning rate of a step of a recipe's run, relative to its peak."""
    warmup, decay = schedule_steps(config, num_steps)
    return lr_factor(config.lr_scheduler_type, step, num_steps, warmup, config.min_lr_ratio, decay)
