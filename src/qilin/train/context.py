"""What a run consists of: the part that is fixed when it starts, and the part that training changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qilin.train.config import TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.distributed import SINGLE_DEVICE, ModelWithLoss, World
from qilin.train.plan import Plan


@dataclass(frozen=True)
class ValidationSet:
    """Samples that are validated on, packed once."""

    data: PackedDataset
    plan: Plan

    @property
    def num_samples(self) -> int:
        return len(self.plan.order)

    @property
    def answer_tokens(self) -> int:
        return int(self.plan.lengths.answer_tokens[self.plan.order].sum())


@dataclass(frozen=True)
class TrainContext:
    """The fixed part of a run."""

    config: TrainConfig  # without any `auto` that training depends on
    run_dir: Path
    title: str  # label of the progress bar and the trackers
    data: PackedDataset
    plan: Plan
    validation: ValidationSet | None = None
    world: World = SINGLE_DEVICE

    @property
    def keep_best(self) -> int:
        return self.config.validate.keep_best if self.config.validate else 0

    @property
    def can_save_directly(self) -> bool:
        """Whether the trained model can be written. A sharded or quantized one is assembled from a checkpoint."""
        return self.world.size == 1 and self.config.frozen_weights == "plain"


@dataclass(frozen=True)
class TrainState:
    """The part of a run that training changes, in place."""

    module: ModelWithLoss
    optimizer: Any
    ema: dict[str, torch.Tensor]  # moving average of the trainable weights by name; empty without ema_decay

    @property
    def model(self) -> Any:
        return self.module.model
