"""The loss on samples that are not learnt from: whether the model still gets better, told while it trains.

In: recipe and processor. Out: a Held, whose loss is looked at now and then. It is weighted by tokens and packed as the
training loss is; images are not changed, nothing drops out. The model is left as it was, bit for bit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qilin.core.errors import RunError
from qilin.train.checkpoint import learning_weights
from qilin.train.config import TrainConfig
from qilin.train.data_loader import PackedDataset, prefetch
from qilin.train.distributed import Learner, World, regather
from qilin.train.model_setup import arithmetic
from qilin.train.plan import Plan, make_plan


@dataclass(frozen=True)
class Held:
    """Samples that are looked at and not learnt from, laid into packs once."""

    feed: PackedDataset
    plan: Plan

    @property
    def samples(self) -> int:
        return len(self.plan.order)

    @property
    def answer_tokens(self) -> int:
        return int(self.plan.lengths.learnt[self.plan.order].sum())


def hold(config: TrainConfig, feed: PackedDataset) -> Held:
    """The plan of a validation; the same samples at every look."""
    assert config.validate is not None, "asked only where the recipe validates"
    plan = make_plan(
        feed.lengths,
        [1.0] * len(feed.sources),
        batch_size=config.batch_size,
        num_epochs=1,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )
    most = config.validate.samples
    if most and most < len(plan.order):
        plan = replace(plan, order=plan.order[:most], starts=np.append(plan.starts[plan.starts < most], most))
    return Held(feed, plan)


@torch.no_grad()
def validation_loss(
    learner: Learner,
    held: Held,
    average: Mapping[str, torch.Tensor],
    config: TrainConfig,
    world: World,
    tick: Callable[[int], None],
) -> float:
    """The mean loss over all answer tokens held, by the weights that would be the result: the average, where there is
    one. Nothing random is drawn; training seeds itself anew at each step in any case."""
    total = 0.0
    exchange(learner.model, average)
    learner.eval()
    for step, packs, _ in prefetch(held.feed, held.plan, 0, config, world):
        mine = 0.0
        for pack in packs:
            with arithmetic(config.precision, pack.ids.device):
                mine += float(learner(pack, pack.pixels))
        (summed,) = world.sum([mine])
        if not math.isfinite(summed):
            names = world.all_of([name for pack in packs for name in pack.samples])
            raise RunError(f"the validation loss is {summed}; samples of its pack {step + 1}: {', '.join(names[:20])}")
        total += summed
        tick(step + 1)
    learner.train()
    regather(learner, world)
    exchange(learner.model, average)
    return total / held.answer_tokens


def exchange(model: Any, average: Mapping[str, torch.Tensor]) -> None:
    """Weights and their average change places; nothing is computed, so that a second time puts all back."""
    for name, weight in learning_weights(model).items():
        if name in average:
            kept = weight.clone()
            weight.copy_(average[name])
            average[name].copy_(kept)
