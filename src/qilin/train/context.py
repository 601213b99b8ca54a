"""What a run consists of: the part that is fixed when it starts, and the part that training changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qilin.dataset.reader import Dataset
from qilin.dataset.schema import Sample
from qilin.model.llava import LoadedModel
from qilin.train.config import TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.distributed import SINGLE_DEVICE, ModelWithLoss, World
from qilin.train.loss_scale import LossScale
from qilin.train.packed_attention import Shortcuts
from qilin.train.plan import Plan

# (model, samples of each dataset, number of answers) -> scores by name, `score` among them. The command passes it in:
# the scorer is evaluate's, which imports train and not the reverse.
AnswerScorer = Callable[[LoadedModel, Sequence[tuple[Dataset, Sequence[Sample]]], int], Mapping[str, float]]


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

    def first_samples(self, number: int) -> list[tuple[Dataset, list[Sample]]]:
        """The first samples in the order of the plan, which is the same each time, by dataset."""
        by_dataset: dict[int, list[Sample]] = {}
        for sample_number in self.data.numbers[self.plan.order[:number]].tolist():
            source = int(self.data.source_index(sample_number))
            by_dataset.setdefault(source, []).append(self.data.sample(sample_number))
        return [(self.data.sources[source].dataset, samples) for source, samples in by_dataset.items()]


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
    shortcuts: Shortcuts = Shortcuts()
    processor: Any = None  # for generated answers
    score_answers: AnswerScorer | None = None

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
    loss_scale: LossScale = field(default_factory=lambda: LossScale(False))

    @property
    def model(self) -> Any:
        return self.module.model
