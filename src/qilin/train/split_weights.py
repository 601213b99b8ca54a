"""Trains fp32 weights whose upper 16 bits are the model's bf16 parameters and whose lower 16 bits the optimizer keeps.

In: an optimizer over fp32 parameters. Out: one that steps the same fp32 weights, bit for bit, while the model computes
with their bf16 roundings: no cast of each weight in each pass, and hidden states in bf16. Gradients are accumulated in
fp32. Only on one GPU in bf16; FSDP does the same by itself.
"""

from collections.abc import Iterator
from typing import Any

import torch

from qilin.train.config import TrainConfig

CHUNK = 1 << 28  # weights that are fp32 at the same time during a step: 1 GiB


def can_split_weights(config: TrainConfig, device: torch.device, devices: int) -> bool:
    """Whether a run keeps its trained weights split. A moving average needs them in fp32, as does Muon's step."""
    on_one_gpu = device.type == "cuda" and devices == 1
    return on_one_gpu and config.precision == "bf16" and not config.ema_decay and config.optimizer != "muon"


class SplitWeights:
    """An optimizer whose parameters are bf16 outside of its step. `low_bits`: parameter -> int16 of the same shape."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.low_bits: dict[torch.Tensor, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data, self.low_bits[parameter] = split_bits(parameter.data)
                parameter.grad_dtype = torch.float32

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    def step(self) -> None:
        """One step of the optimizer, some parameters at a time."""
        groups = self.optimizer.param_groups
        try:
            for group in groups:
                for parameters in chunks([p for p in group["params"] if p.grad is not None]):
                    self.optimizer.param_groups = [group | {"params": parameters}]
                    self.step_chunk(parameters)
        finally:
            self.optimizer.param_groups = groups

    @torch.no_grad()
    def step_chunk(self, parameters: list[torch.Tensor]) -> None:
        upper = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = join_bits(parameter.data, self.low_bits[parameter])
        self.optimizer.step()
        for parameter, bf16 in zip(parameters, upper, strict=True):
            high, low = split_bits(parameter.data)
            bf16.copy_(high)
            self.low_bits[parameter].copy_(low)
            parameter.data = bf16

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def join(self) -> None:
        """Make the parameters fp32 again, for writing the model; no step may follow."""
        for parameter, low in self.low_bits.items():
            parameter.grad = None
            parameter.data = join_bits(parameter.data, low)
            parameter.grad_dtype = None
        self.low_bits.clear()


def chunks(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The parameters in lists of at most CHUNK weights, or of one parameter."""
    chunk: list[torch.Tensor] = []
    for parameter in parameters:
        if chunk and sum(p.numel() for p in chunk) + parameter.numel() > CHUNK:
            yield chunk
            chunk = []
        chunk.append(parameter)
    if chunk:
        yield chunk


def split_bits(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 -> (bf16 rounded to nearest, ties away from zero; int16 that `join_bits` adds to its bits)."""
    bits = weights.view(torch.int32)
    rounded = (bits + 0x8000) >> 16  # a tie to even would leave two candidates for a difference of half a unit
    return rounded.to(torch.int16).view(torch.bfloat16), (bits - (rounded << 16)).to(torch.int16)


def join_bits(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The fp32 weights that `split_bits` split."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def join_weights(optimizer: Any) -> None:
    """Make split weights fp32 again; nothing for another optimizer."""
    if isinstance(optimizer, SplitWeights):
        optimizer.join()
