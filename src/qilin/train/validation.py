"""Validation: the loss on samples that are not trained on.

In: the context and state of a run. Out: the mean loss over all answer tokens of the validation set, packed as in
training, without augmentation and dropout. Model, moving average and training stay bit-identical.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qilin.core.errors import RunError
from qilin.model.guard import eval_mode
from qilin.model.llava import LoadedModel
from qilin.train.checkpoint import trainable_weights
from qilin.train.config import TrainConfig
from qilin.train.context import TrainContext, TrainState, ValidationSet
from qilin.train.data_loader import PackedDataset, prefetch
from qilin.train.distributed import reshard
from qilin.train.model_setup import autocast_context
from qilin.train.packed_attention import use_packed_attention, use_plain_attention
from qilin.train.plan import make_plan


def make_validation_set(config: TrainConfig, data: PackedDataset) -> ValidationSet:
    """Plan a validation: the same samples each time."""
    assert config.validate is not None, "the recipe does not validate"
    plan = make_plan(
        data.lengths,
        [1.0] * len(data.sources),
        batch_size=config.batch_size,
        num_epochs=1,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )
    limit = config.validate.samples
    if limit and limit < len(plan.order):
        plan = replace(plan, order=plan.order[:limit], starts=np.append(plan.starts[plan.starts < limit], limit))
    return ValidationSet(data, plan)


@torch.no_grad()
def validate(context: TrainContext, state: TrainState, on_progress: Callable[[int], None]) -> float:
    """The validation loss of the weights that would become the model: the moving average, if there is one.

    Draws nothing random, and training seeds every step anyway. Raises RunError if the loss is not finite.
    """
    validation, world = context.validation, context.world
    assert validation is not None, "the recipe does not validate"
    swap_ema_weights(state.model, state.ema)
    with eval_mode(state.module):
        total = sum_losses(context, state, on_progress)
    reshard(state.module, world)
    swap_ema_weights(state.model, state.ema)
    return total / validation.answer_tokens


def generate_and_score(context: TrainContext, state: TrainState) -> Mapping[str, float]:
    """The scores of generated answers to the first validation samples, with the weights that would become the model;
    {} where the recipe generates none. Greedy, with PyTorch's own attention; training stays bit-identical."""
    config, validation = context.config, context.validation
    assert validation is not None, "the recipe does not validate"
    assert config.validate is not None, "the recipe does not validate"
    number = config.validate.generate
    if not number:
        return {}
    assert context.score_answers is not None, "run_stage requires it"
    loaded = LoadedModel(state.model, context.processor)
    swap_ema_weights(state.model, state.ema)
    use_plain_attention(state.model)
    try:
        with eval_mode(state.module), autocast_context(config.precision, context.world.device):
            scores = context.score_answers(loaded, validation.first_samples(number), number)
    finally:
        use_packed_attention(state.model, context.shortcuts)
        swap_ema_weights(state.model, state.ema)
    return scores


def sum_losses(context: TrainContext, state: TrainState, on_progress: Callable[[int], None]) -> float:
    """The summed loss of all validation samples."""
    validation, world = context.validation, context.world
    assert validation is not None, "the recipe does not validate"
    total = 0.0
    for batch in prefetch(validation.data, validation.plan, 0, context.config, world):
        loss = 0.0
        for pack in batch.packs:
            with autocast_context(context.config.precision, pack.ids.device):
                loss += float(state.module(pack, pack.pixels))
        (step_loss,) = world.sum([loss])
        if not math.isfinite(step_loss):
            sample_ids = ", ".join(world.gather(batch.sample_ids)[:20])
            raise RunError(f"the validation loss is {step_loss}; samples of batch {batch.step + 1}: {sample_ids}")
        total += step_loss
        on_progress(batch.step + 1)
    return total


def swap_ema_weights(model: Any, ema: Mapping[str, torch.Tensor]) -> None:
    """Exchange the weights and their moving average; a second call restores both exactly."""
    for name, weight in trainable_weights(model).items():
        if name in ema:
            previous = weight.clone()
            weight.copy_(ema[name])
            ema[name].copy_(previous)
