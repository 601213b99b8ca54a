"""The optimizer step, read down the page.

In: a model with its learning parts set, the feed, the plan. Out: the same model, trained; figures to the log,
checkpoints to the run folder. On the same number of devices a resumed run gives the same losses bit for bit: every
random choice of a step is seeded by (seed, step).
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qilin.core.errors import RunError
from qilin.imaging.augment import augment
from qilin.model.llava import part_of
from qilin.train.checkpoint import Saver, latest_checkpoint, learning_weights, load_best, load_checkpoint
from qilin.train.config import TrainConfig
from qilin.train.data_loader import Pack, PackedDataset, prefetch
from qilin.train.distributed import ALONE, Learner, World, send_gradients, whole
from qilin.train.flops import cost_of, peak_of
from qilin.train.loss import answer_loss
from qilin.train.metrics import Log, Meter, Work
from qilin.train.model_setup import arithmetic
from qilin.train.optimizer import Learning, make_optimizer, rate_share, set_rates
from qilin.train.plan import Plan, counts_of, imbalance
from qilin.train.validation import Held, validation_loss


def train(
    learner: Learner,
    feed: PackedDataset,
    plan: Plan,
    config: TrainConfig,
    run: Path,
    title: str,
    world: World = ALONE,
    held: Held | None = None,
) -> int:
    """Train a model through the whole plan, from the run folder's last checkpoint on if it has one.

    Where the recipe keeps the best checkpoints, the model is in the end the best of them. Returns the step it is of.
    """
    model = learner.model
    optimizer = make_optimizer(learning_parts(model, config), config.optimizer, config.betas)
    average = {n: p.clone() for n, p in learning_weights(model).items()} if config.ema_decay else {}
    last = latest_checkpoint(run)
    done = load_checkpoint(last, model, optimizer, average) if last else 0
    model.train()
    if done < len(plan):
        learn(learner, optimizer, average, feed, plan, config, run, title, done, world, held)
    step = load_best(run, model, average) if keeps_best(config) else len(plan)
    with torch.no_grad():
        for name, parameter in learning_weights(model).items():
            if name in average:
                parameter.copy_(average[name])
    return step


def learn(
    learner: Learner,
    optimizer: Any,
    average: dict[str, torch.Tensor],
    feed: PackedDataset,
    plan: Plan,
    config: TrainConfig,
    run: Path,
    title: str,
    done: int,
    world: World,
    held: Held | None,
) -> None:
    """The steps from `done` on."""
    model = learner.model
    warmup = math.ceil(config.warmup_ratio * len(plan))
    meter = Meter(cost_of(model), world.size * peak_of(world.device, config.precision), world.device, len(plan), done)
    best = config.validate.keep_best if config.validate else 0
    saver = Saver(run, config.save_total_limit, world, saves_in_background(config, world), best)
    with Log(run, title, len(plan), done, config, world.first) as log, Signals() as signals:
        for step, packs, waited in prefetch(feed, plan, done, config, world):
            started = time.perf_counter()
            torch.manual_seed(config.seed * 1_000_003 + step + world.rank * 500_009)
            set_rates(optimizer, rate_share(config.lr_scheduler_type, step, len(plan), warmup))
            loss, answer_tokens = learn_step(learner, packs, config, step, world)
            norm = clip(model, config.max_grad_norm, packs, step, world)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update_average(average, model, config.ema_decay, step)
            ends = step + 1 == len(plan)
            seconds = time.perf_counter() - started
            looked = {}
            if held is not None and due_to_validate(config, step, ends):
                looked = look_at_held(learner, held, average, config, world, log, meter)
            work, waited, asked = agree(plan, step, packs, waited, signals.asked, world)
            meter.add(work, waited)
            figures = {
                "step": step + 1,
                "loss": loss,
                "grad_norm": norm,
                "rate": float(optimizer.param_groups[0]["lr"]),
                "samples": work.samples,
                "answer_tokens": answer_tokens,
                "tokens": work.counts.tokens,
                "seconds": seconds,
                **meter.figures(),
                **looked,
            }
            if world.size > 1:
                figures["imbalance"] = imbalance(plan.shares(step, world.size))
            write = ends or bool(looked) or step % config.logging_steps == 0
            log.step(figures, write)
            if write:
                meter.reset()
            loss_held = looked.get("validation_loss")
            due = config.save_steps and (step + 1) % config.save_steps == 0
            due = due or (best > 0 and loss_held is not None and saver.among_best(loss_held))
            if (due and not ends) or asked:
                saver.save(step + 1, model, optimizer, average, loss_held)
            elif ends and (config.save_steps or best or not written_as_it_is(config, world)):
                # if the model cannot be written (a full disk), no step is lost
                saver.save(step + 1, model, None, average, loss_held)
            if asked or ends:
                saver.wait()
            stop_if_asked(asked, step + 1, len(plan))


def look_at_held(
    learner: Learner,
    held: Held,
    average: dict[str, torch.Tensor],
    config: TrainConfig,
    world: World,
    log: Log,
    meter: Meter,
) -> dict[str, float]:
    """The figures of a validation; its time is not counted as training."""
    started = time.perf_counter()
    loss = validation_loss(learner, held, average, config, world, log.begin_validation(len(held.plan)))
    seconds = time.perf_counter() - started
    meter.aside(seconds)
    return {"validation_loss": loss, "validation_seconds": seconds}


def due_to_validate(config: TrainConfig, step: int, ends: bool) -> bool:
    return config.validate is not None and (ends or (step + 1) % config.validate.interval == 0)


def keeps_best(config: TrainConfig) -> bool:
    return config.validate is not None and config.validate.keep_best > 0


def written_as_it_is(config: TrainConfig, world: World) -> bool:
    """Whether the model that learnt can be written. One in pieces or in few bits is put together from a checkpoint."""
    return world.size == 1 and config.frozen_weights == "plain"


def saves_in_background(config: TrainConfig, world: World) -> bool:
    """By default on an accelerator; on a CPU writing would only take turns with computing, and a copy needs memory."""
    return world.device.type != "cpu" if config.async_checkpoint is None else config.async_checkpoint


def agree(
    plan: Plan, step: int, packs: Sequence[Pack], waited: float, asked: int, world: World
) -> tuple[Work, float, int]:
    """What the step computed on all devices, how long the slowest waited for data, whether any was asked to stop."""
    computed, room = world.sum([sum(pack.ids.shape[1] for pack in packs), len(packs) * plan.pack_tokens])
    waited, signalled = world.most([waited, asked])
    counts = counts_of(plan.pieces(step), plan.lengths)
    return Work(len(plan.samples(step)), counts, int(computed), int(room)), waited, int(signalled)


class Stopped(RunError):
    """The run was asked to end (SIGTERM) and did so with a checkpoint."""

    exit_code = 128 + signal.SIGTERM


class Signals:
    """While open, SIGTERM and Ctrl-C wait for the end of the step; a second Ctrl-C does not."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number; 0: none came
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: Any) -> None:
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        os.write(2, b"\nqilin: finishing this step, then saving a checkpoint\n")  # print may be interrupted in itself


def stop_if_asked(asked: int, step: int, steps: int) -> None:
    """Called after a step's checkpoint: leave as the signal says."""
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    if asked:
        raise Stopped(f"stopped by SIGTERM after step {step} of {steps}; the same command continues from there")


def learn_step(
    learner: Learner, packs: list[Pack], config: TrainConfig, step: int, world: World = ALONE
) -> tuple[float, int]:
    """Forward and backward of a step's packs. Returns (mean loss over all its answer tokens, their number)."""
    (total,) = world.sum([sum(len(pack.targets) for pack in packs)])
    losses = []
    for number, pack in enumerate(packs):
        send_gradients(learner, world, now=number + 1 == len(packs))
        with arithmetic(config.precision, pack.ids.device):
            loss = learner(pack, changed(pack, config, step))
        if loss.requires_grad:  # no gradient reaches a projector from text alone
            (loss * world.size / total).backward()  # FSDP takes the mean over devices
        losses.append(loss.detach())
    values = [float(loss) for loss in losses]
    (summed,) = world.sum([sum(values)])
    if not math.isfinite(summed):
        mine = [
            name for value, pack in zip(values, packs, strict=True) if not math.isfinite(value) for name in pack.samples
        ]
        raise RunError(f"step {step + 1}: the loss is {summed}; {look_at(world.all_of(mine))}")
    return summed / total, int(total)


def changed(pack: Pack, config: TrainConfig, step: int) -> torch.Tensor | None:
    """The pack's images with their random changes, which follow from seed, step and sample alone."""
    if pack.pixels is None or not config.augment:
        return pack.pixels
    seeds = [(config.seed * 1_000_003 + step) * 1_000_003 + seed for seed in pack.seeds]
    one_by_one = zip(pack.pixels.split(1), seeds, strict=True)
    return torch.cat([augment(p, config.augment, torch.Generator().manual_seed(s % 2**63)) for p, s in one_by_one])


def look_at(names: Sequence[str]) -> str:
    """What to do when a step has gone wrong with these samples."""
    listed = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return f"the weights are as before this step. Its samples: {listed}. Lower the rate, or look at these samples"


def pack_loss(model: Any, pack: Pack, pixels: torch.Tensor | None) -> torch.Tensor:
    """The summed loss of one pack through the stock model."""
    hidden = model.model(
        input_ids=pack.ids,
        pixel_values=pixels,
        position_ids=pack.positions,
        layout=pack.layout,
        use_cache=False,
    ).last_hidden_state[0]  # (T, D)
    return answer_loss(hidden, model.lm_head, pack.where, pack.targets)


def learning_parts(model: Any, config: TrainConfig) -> Iterator[Learning]:
    """What learns, each part with its rate; matrices decay, biases and norms do not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(plain_name(name))
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            yield Learning(name, parameter, rate_of(config, part), decay)


def rate_of(config: TrainConfig, part: str) -> float:
    """A part's peak rate; its own may be 0."""
    own: float | None = getattr(config.learning_rates, part)
    return config.learning_rate if own is None else own


def plain_name(name: str) -> str:
    """A parameter's name without what adapters put before it."""
    return name.removeprefix("base_model.model.")


def clip(model: Any, largest: float, packs: list[Pack], step: int, world: World = ALONE) -> float:
    """Scale the gradient down to norm `largest`. Returns its norm before; a non-finite one stops the run."""
    learning = [p for p in model.parameters() if p.requires_grad]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(learning, largest)))
    if not math.isfinite(norm):
        names = world.all_of([name for pack in packs for name in pack.samples])
        raise RunError(f"step {step + 1}: the gradient's norm is {norm}; {look_at(names)}")
    return norm


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: Any, decay: float, step: int) -> None:
    """The running average of the weights; early on it follows closely, so that the start is soon forgotten."""
    if average:
        now = min(decay, (step + 1) / (step + 10))
        for name, parameter in learning_weights(model).items():
            average[name].lerp_(parameter, 1 - now)
