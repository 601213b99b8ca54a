"""Loss scaling for fp16, whose smallest gradients would round to zero.

In: the summed loss of a pack. Out: gradients of the unscaled loss in fp32, or a skipped step. The rules and numbers are
those of torch.amp.GradScaler; that class is not used because it knows neither FSDP2's sharded gradients nor several
optimizers. The gradient norm, which is the same on all devices, tells whether a gradient overflowed.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from qilin.core.errors import RunError

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without overflow after which the scale is doubled
SMALLEST_SCALE = 2.0**-10  # gradients that overflow even at this scale are no matter of scaling


class LossScale:
    """The factor that losses are multiplied by before the backward pass; 1, and always 1, if `enabled` is false."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = INITIAL_SCALE if enabled else 1.0
        self.steps_since_change = 0
        self.skipped = 0  # steps of this start

    @torch.no_grad()
    def unscale(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        if self.enabled:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / self.scale)

    def accepts(self, grad_norm: float) -> bool:
        """Whether the optimizer may step; halves the scale after an overflow, doubles it after a long time without.

        Raises RunError if even the smallest scale overflows.
        """
        if not self.enabled:
            return True
        if math.isfinite(grad_norm):
            self.steps_since_change += 1
            if self.steps_since_change == GROWTH_INTERVAL:
                self.scale, self.steps_since_change = self.scale * 2, 0
            return True
        self.scale, self.steps_since_change, self.skipped = self.scale / 2, 0, self.skipped + 1
        if self.scale < SMALLEST_SCALE:
            raise RunError(
                f"the gradients overflow in fp16 even with a loss scale of {self.scale:g}; use precision=fp32, lower "
                "learning_rate, or train on a GPU that computes bf16"
            )
        return False

    def to_json(self) -> dict[str, Any] | None:
        """What a checkpoint keeps; None without scaling."""
        return {"scale": self.scale, "steps_since_change": self.steps_since_change} if self.enabled else None

    def restore(self, values: Mapping[str, Any] | None) -> None:
        """Continue from a checkpoint."""
        if self.enabled and values:
            self.scale, self.steps_since_change = float(values["scale"]), int(values["steps_since_change"])
