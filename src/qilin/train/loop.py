"""The training loop.

In: the context of a run and a prepared model. Out: the trained model; metrics and checkpoints in the run folder.
Every random choice of a step is seeded by (seed, step), so a resumed run has bit-identical losses on the same number
of devices.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qilin.core.errors import RunError
from qilin.imaging.augment import apply_changes, draw_changes
from qilin.model.architectures import language_of, part_of, vision_of
from qilin.train.checkpoint import (
    LOSS_SCALE,
    VALIDATION_SCORE,
    Checkpointer,
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    read_metadata,
    trainable_weights,
)
from qilin.train.compiled_layers import OTHER_ERRORS, compiled_forwards
from qilin.train.config import TrainConfig
from qilin.train.context import TrainContext, TrainState
from qilin.train.data_loader import StepBatch, prefetch
from qilin.train.distributed import ModelWithLoss, full_tensor, set_gradient_sync
from qilin.train.flops import flop_cost, peak_flops
from qilin.train.loss import answer_loss
from qilin.train.loss_scale import LossScale
from qilin.train.metrics import MetricsLog, StepWork, Throughput
from qilin.train.model_setup import autocast_context, remove_peft_prefix
from qilin.train.optimizer import TrainableParam, make_optimizer, set_learning_rates, step_lr_factor
from qilin.train.pack import Pack
from qilin.train.plan import count_work, imbalance
from qilin.train.split_weights import SplitWeights, can_split_weights, join_weights
from qilin.train.transfer import copy_together
from qilin.train.validation import generate_and_score, validate


def train(context: TrainContext, module: ModelWithLoss) -> int:
    """Train a model through the plan, from the run folder's last checkpoint if it has one.

    Afterwards the model has its final weights: the moving average if there is one, of the best checkpoint if the
    recipe keeps it. Returns the step they are from.
    """
    config, model = context.config, module.model
    optimizer = make_optimizer(trainable_params(model, config), config.optimizer, config.betas)
    if can_split_weights(config, context.world.device, context.world.size):
        optimizer = SplitWeights(optimizer)
    state = TrainState(module, optimizer, init_ema(model, config), LossScale(config.precision == "fp16"))
    last = latest_checkpoint(context.run_dir)
    start = load_checkpoint(last, model, optimizer, state.ema) if last else 0
    state.loss_scale.restore(read_metadata(last).get(LOSS_SCALE) if last else None)
    set_training_mode(model)
    if start < len(context.plan):
        run_steps(context, state, start)
    join_weights(optimizer)
    if context.keep_best:
        return load_final_weights(context, model, state.ema)
    use_ema_weights(model, state.ema)
    return len(context.plan)


def set_training_mode(model: Any) -> None:
    """Training mode for trained modules, so with their dropout; evaluation mode for those whose weights are all frozen,
    except that a layer with gradient checkpointing has to be in training mode for it."""
    model.train()
    frozen = [part for part in (vision_of(model), language_of(model)) if is_frozen(part)]
    for module in (module for part in frozen for module in part.modules()):
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def is_frozen(module: torch.nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def load_final_weights(context: TrainContext, model: Any, ema: dict[str, torch.Tensor] | None = None) -> int:
    """Load the weights of the best checkpoint (the last one if the recipe keeps no best) into a model; returns its
    step."""
    ema = init_ema(model, context.config) if ema is None else ema
    path = (best_checkpoint if context.keep_best else latest_checkpoint)(context.run_dir)
    assert path is not None, "there is a checkpoint after the last step"
    step = load_checkpoint(path, model, None, ema)
    use_ema_weights(model, ema)
    return step


def run_steps(context: TrainContext, state: TrainState, start: int) -> None:
    """The steps from `start` on."""
    config, plan, world = context.config, context.plan, context.world
    peak = world.size * peak_flops(world.device, config.precision)
    throughput = Throughput(flop_cost(state.model), peak, world.device, len(plan), start)
    background = world.device.type != "cpu" if config.async_checkpoint is None else config.async_checkpoint
    checkpointer = Checkpointer(context.run_dir, config.save_total_limit, world, background, context.keep_best)
    with MetricsLog(context, start) as log, StopSignals() as signals:
        for batch in prefetch(context.data, plan, start, config, world):
            is_last = batch.step + 1 == len(plan)
            metrics = train_step(context, state, batch)
            validation = run_validation(context, state, log) if validates_after(config, batch.step, is_last) else {}
            throughput.exclude_time(validation.get("validation_seconds", 0.0))
            work, stop_signal = reduce_step_stats(context, batch, signals.received)
            throughput.add(work)
            metrics |= {"samples": work.samples, "tokens": work.counts.tokens, **throughput.metrics(), **validation}
            if world.size > 1:
                metrics["imbalance"] = imbalance(batch.groups)
            write = is_last or bool(validation) or batch.step % config.logging_steps == 0
            log.log_step(metrics, write)
            if write:
                throughput.reset()
            save_if_due(context, state, checkpointer, batch.step + 1, validation, stop_signal)
            if stop_signal or is_last:
                checkpointer.close()
            raise_if_stopped(stop_signal, batch.step + 1, len(plan))


def train_step(context: TrainContext, state: TrainState, batch: StepBatch) -> dict[str, float]:
    """One optimizer step; returns its metrics. Raises RunError, with the weights unchanged, if loss or gradient is not
    finite."""
    config, step = context.config, batch.step
    started = time.perf_counter()
    set_learning_rates(state.optimizer, step_lr_factor(config, step, len(context.plan)))
    state.module.loss_scale = state.loss_scale.scale
    loss, answer_tokens = compute_step(context, state, batch)
    state.loss_scale.unscale(state.model.parameters())
    grad_norm = clip_gradients(context, state.model, batch)
    if state.loss_scale.accepts(grad_norm):
        state.optimizer.step()
        update_ema(state.ema, state.model, config.ema_decay, step)
    state.optimizer.zero_grad(set_to_none=True)
    scaling = {"loss_scale": state.loss_scale.scale, "skipped_steps": state.loss_scale.skipped}
    return {
        "step": step + 1,
        "loss": loss,
        "grad_norm": grad_norm,
        "rate": float(state.optimizer.param_groups[0]["lr"]),
        "answer_tokens": answer_tokens,
        "seconds": time.perf_counter() - started,
    } | (scaling if state.loss_scale.enabled else {})


def compute_step(context: TrainContext, state: TrainState, batch: StepBatch) -> tuple[float, int]:
    """`compute_gradients` from the step's own seed; once more, without compiled layers, if those fail in the backward
    pass. On many devices, where the others would wait in a reduction, their error ends the run."""
    seed = context.config.seed * 1_000_003 + batch.step + context.world.rank * 500_009
    compiled = compiled_forwards(language_of(state.model))
    torch.manual_seed(seed)
    try:
        return compute_gradients(context, state.module, batch)
    except OTHER_ERRORS:
        raise
    except Exception as error:
        if not compiled or context.world.size > 1:
            raise
        for forward in compiled:
            forward.stop(error)
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    return compute_gradients(context, state.module, batch)


def compute_gradients(context: TrainContext, module: ModelWithLoss, batch: StepBatch) -> tuple[float, int]:
    """Forward and backward of a step's packs; gradients are those of the loss times the module's loss scale.

    Returns (mean loss over all its answer tokens, their number).
    """
    config, world = context.config, context.world
    (total_tokens,) = world.sum([sum(len(pack.targets) for pack in batch.packs)])
    losses = []
    for number, pack in enumerate(batch.packs):
        set_gradient_sync(module, world, last_pack=number + 1 == len(batch.packs))
        with autocast_context(config.precision, pack.ids.device):
            loss = module(pack, augment_pack(pack, config, batch.step))
        if loss.requires_grad:  # text alone gives a projector no gradient
            (loss * (world.size * module.loss_scale) / total_tokens).backward()  # FSDP averages over devices
        losses.append(loss.detach())
    values = [float(loss) for loss in losses]
    (total_loss,) = world.sum([sum(values)])
    if not math.isfinite(total_loss):
        bad_packs = [pack for value, pack in zip(values, batch.packs, strict=True) if not math.isfinite(value)]
        sample_ids = world.gather([sample_id for pack in bad_packs for sample_id in pack.sample_ids])
        raise RunError(f"step {batch.step + 1}: the loss is {total_loss}; {bad_step_message(sample_ids)}")
    return total_loss / total_tokens, int(total_tokens)


def pack_loss(model: Any, pack: Pack, pixels: torch.Tensor | None) -> torch.Tensor:
    """The summed loss of one pack through the stock model."""
    return answer_loss(pack_hidden(model, pack, pixels), model.lm_head, pack.target_positions, pack.targets)


def pack_hidden(model: Any, pack: Pack, pixels: torch.Tensor | None) -> torch.Tensor:
    """The last hidden states of one pack, (T, D)."""
    hidden: torch.Tensor = model.model(
        **token_inputs(model.model, pack, pixels),
        position_ids=pack.positions,
        layout=pack.layout,
        use_cache=False,
        **pack.inputs,
    ).last_hidden_state[0]
    return hidden


def token_inputs(model: Any, pack: Pack, pixels: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """A pack's tokens and images as the model's forward pass takes them; for a Llava their embeddings.

    transformers itself looks for the image tokens on the device, which takes three waits for it per pack.
    """
    if pack.image_positions is None or pixels is None:
        return {"input_ids": pack.ids, "pixel_values": pixels}
    embeddings = model.get_input_embeddings()(pack.ids)
    features = torch.cat(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)  # (N, D)
    return {"inputs_embeds": embeddings.index_copy(1, pack.image_positions, features.to(embeddings.dtype)[None])}


def augment_pack(pack: Pack, config: TrainConfig, step: int) -> torch.Tensor | None:
    """The pack's images, augmented with a seed that depends on seed, step and sample alone. Images of any size have no
    seeds here: they were augmented as they were read."""
    if pack.pixels is None or not config.augment or not pack.augment_seeds:
        return pack.pixels
    seeds = [(config.seed * 1_000_003 + step) * 1_000_003 + seed for seed in pack.augment_seeds]
    drawn = [draw_changes(1, config.augment, torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
    changes = copy_together({"changes": torch.cat(drawn)}, pack.pixels.device)["changes"]
    images = zip(pack.pixels.split(1), changes.split(1), strict=True)
    return torch.cat([apply_changes(image, change) for image, change in images])


def clip_gradients(context: TrainContext, model: Any, batch: StepBatch) -> float:
    """Clip the gradient to max_grad_norm. Returns its norm before; raises RunError if that is not finite, except in
    fp16, where the loss scale is lowered instead."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(parameters, context.config.max_grad_norm)))
    if not math.isfinite(norm) and context.config.precision != "fp16":
        sample_ids = context.world.gather(batch.sample_ids)
        raise RunError(f"step {batch.step + 1}: the gradient norm is {norm}; {bad_step_message(sample_ids)}")
    return norm


def bad_step_message(sample_ids: Sequence[str]) -> str:
    """What to do about a step whose loss or gradient is not finite."""
    listed = ", ".join(sample_ids[:20]) + (" …" if len(sample_ids) > 20 else "")
    return f"the weights are those before this step. Samples: {listed}. Lower learning_rate, or check these samples"


def trainable_params(model: Any, config: TrainConfig) -> Iterator[TrainableParam]:
    """The trainable parameters with the learning rate of their part; only matrices have weight decay."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate: float | None = getattr(config.learning_rates, part_of(remove_peft_prefix(name)))
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            yield TrainableParam(name, parameter, config.learning_rate if rate is None else rate, decay)


def init_ema(model: Any, config: TrainConfig) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainable_weights(model).items()} if config.ema_decay else {}


@torch.no_grad()
def update_ema(ema: dict[str, torch.Tensor], model: Any, decay: float, step: int) -> None:
    """Update the moving average; its decay starts lower, so that the initial weights fade quickly."""
    if ema:
        current_decay = min(decay, (step + 1) / (step + 10))
        for name, weight in trainable_weights(model).items():
            ema[name].lerp_(weight, 1 - current_decay)


@torch.no_grad()
def use_ema_weights(model: Any, ema: dict[str, torch.Tensor]) -> None:
    """Replace the weights by their moving average, if there is one."""
    for name, weight in trainable_weights(model).items():
        if name in ema:
            weight.copy_(ema[name])


def validates_after(config: TrainConfig, step: int, is_last: bool) -> bool:
    return config.validate is not None and (is_last or (step + 1) % config.validate.interval == 0)


def run_validation(context: TrainContext, state: TrainState, log: MetricsLog) -> dict[str, float]:
    """The metrics of a validation."""
    assert context.validation is not None
    started = time.perf_counter()
    loss = validate(context, state, log.start_validation(len(context.validation.plan)))
    scores = {f"validation_{name}": value for name, value in generate_and_score(context, state).items()}
    return {"validation_loss": loss, **scores, "validation_seconds": time.perf_counter() - started}


def reduce_step_stats(context: TrainContext, batch: StepBatch, stop_signal: int) -> tuple[StepWork, int]:
    """The work of a step over all devices, and the stop signal if any process received one."""
    world, plan = context.world, context.plan
    tokens = sum(pack.ids.shape[1] for pack in batch.packs)
    computed, capacity = world.sum([tokens, len(batch.packs) * plan.pack_tokens])
    data_wait, stop_signal_max = world.max([batch.data_wait, stop_signal])
    counts = count_work([group for rank in batch.groups for pack in rank for group in pack], plan.lengths)
    work = StepWork(len(plan.samples(batch.step)), counts, int(computed), int(capacity), data_wait)
    return work, int(stop_signal_max)


def save_if_due(
    context: TrainContext,
    state: TrainState,
    checkpointer: Checkpointer,
    step: int,
    validation: Mapping[str, float],
    stop_signal: int,
) -> None:
    """Save a checkpoint every save_steps, for one of the best validations, before a stop, and after the last step."""
    config, is_last = context.config, step == len(context.plan)
    loss = validation.get("validation_loss")
    by_score = config.validate is not None and config.validate.metric == "score" and loss is not None
    score = validation[VALIDATION_SCORE] if by_score else None
    metadata: dict[str, Any] = {LOSS_SCALE: state.loss_scale.to_json()} if state.loss_scale.enabled else {}
    metadata |= {VALIDATION_SCORE: score} if by_score else {}
    due = bool(config.save_steps) and step % config.save_steps == 0
    rank = loss if score is None else -score
    due = due or (context.keep_best > 0 and rank is not None and checkpointer.is_among_best(rank))
    if (due and not is_last) or stop_signal:
        checkpointer.save(step, state.model, state.optimizer, state.ema, loss, metadata)
    elif is_last and (config.save_steps or context.keep_best or not context.can_save_directly):
        # if writing the model fails (a full disk), no step is lost
        join_weights(state.optimizer)
        checkpointer.save(step, state.model, None, state.ema, loss, metadata)


class Stopped(RunError):
    """The run stopped on SIGTERM or SIGHUP after saving a checkpoint."""

    def __init__(self, message: str, stop_signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + stop_signal


class StopSignals:
    """While open, SIGTERM, SIGHUP and Ctrl-C take effect after the current step, a second Ctrl-C at once."""

    def __init__(self) -> None:
        self.received = 0  # number of the signal; 0: none
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
                numbers.append(signal.SIGHUP)
            self.previous = {number: signal.signal(number, self.handle) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: Any) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        with contextlib.suppress(OSError):  # the terminal is gone after SIGHUP
            # print is not safe in a signal handler
            os.write(2, b"\nqilin: finishing this step, then saving a checkpoint\n")


def raise_if_stopped(stop_signal: int, step: int, num_steps: int) -> None:
    """End the run as the signal asks, after the checkpoint of `step`."""
    if stop_signal == signal.SIGINT:
        raise KeyboardInterrupt
    if stop_signal:
        name = signal.Signals(stop_signal).name
        raise Stopped(
            f"stopped by {name} after step {step} of {num_steps}; the same command continues from there", stop_signal
        )
