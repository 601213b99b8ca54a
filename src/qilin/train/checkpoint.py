"""Save a run so that it continues exactly, on as many devices as it began with or on others.

A checkpoint holds only what learns, the optimizer and the position (one integer: steps done), each device's share in a
file of its own (torch.distributed.checkpoint). It is written beside and renamed when whole: a full disk or a kill never
costs the one before.
"""

import json
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from qilin.core.errors import RunError
from qilin.train.distributed import ALONE, World
from qilin.train.optimizer import set_rate

FOLDER = "checkpoints"
STATE = "state.json"  # written last
LOSS = "validation_loss"
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one device saves in one process, as it means to


def learning_weights(model: Any) -> dict[str, torch.Tensor]:
    """The parameters that learn, by name; one that is tied to another appears once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def state_of(model: Any, optimizer: Any | None, average: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What is saved, by the names of parameters, so that any number of devices finds its share."""
    found: dict[str, Any] = {"weights": learning_weights(model)}
    if average:
        found["average"] = dict(average)
    if optimizer is not None:
        found["optimizer"] = {
            name: {key: value for key, value in optimizer.state[p].items() if isinstance(value, torch.Tensor)}
            for name, p in model.named_parameters()
            if p in optimizer.state
        }
    return found


class Saver:
    """Writes checkpoints; in the background where the recipe says so, one at a time."""

    def __init__(self, run: Path, keep: int, world: World = ALONE, background: bool = False, best: int = 0) -> None:
        self.run, self.keep, self.world, self.background, self.best = run, keep, world, background, best
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def save(
        self,
        step: int,
        model: Any,
        optimizer: Any | None,
        average: Mapping[str, torch.Tensor],
        loss: float | None = None,
    ) -> None:
        """Keep the state after `step` steps as it is now; once it is whole, those go that are neither among the `keep`
        last nor the `best` ones.

        After the last step no optimizer is needed (None): what is saved then only lets the model be written again.
        `loss`: on the validation samples, where it was looked at after this step.
        """
        self.wait()
        work = self.run / FOLDER / f".step-{step:07d}.unfinished"
        try:
            if self.world.first:
                sweep(self.run)
                work.mkdir(parents=True)
        except OSError as error:
            raise self.refused(step, error) from error
        self.world.wait()
        state = {"step": step, "finished": optimizer is None, "devices": self.world.size, LOSS: loss}
        options = {"checkpoint_id": work, "process_group": self.world.saving, "no_dist": self.world.size == 1}
        try:
            if self.background:
                begun: Any = dcp.async_save(state_of(model, optimizer, average), **options)  # copies before it returns
                self.writing = self.thread.submit(self.complete, work, state, begun)
            else:
                dcp.save(state_of(model, optimizer, average), **options)
                self.complete(work, state, None)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise self.refused(step, error) from error

    def complete(self, work: Path, state: Mapping[str, Any], begun: Any) -> None:
        """Give the folder its name once all have written, and remove what is too old."""
        if begun is not None:
            begun.result()
        if not self.world.first:
            return
        (work / STATE).write_text(json.dumps(state), encoding="utf-8")
        sync(work / STATE)  # the other files are synced as they are written
        final = self.run / FOLDER / f"step-{state['step']:07d}"
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        found = checkpoints(self.run)
        staying = {*found[-self.keep :], *(best_first(found)[: self.best] if self.best else ())}
        for old in found:
            if old not in staying:
                (old / STATE).unlink()  # first, so that one half removed is not taken for whole
                shutil.rmtree(old)

    def among_best(self, loss: float) -> bool:
        """Whether a checkpoint with this validation loss would be kept for it; all processes get the same answer."""
        self.wait()
        kept = [loss_of(path) for path in best_first(checkpoints(self.run))[: self.best]] if self.world.first else []
        mine = self.world.first and (len(kept) < self.best or any(loss < other for other in kept))
        return bool(self.world.most([mine])[0])

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole. Raises RunError where it could not be written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            try:
                writing.result()
            except (OSError, RuntimeError, CheckpointException) as error:
                raise self.refused(None, error) from error
        self.world.wait()

    def refused(self, step: int | None, error: BaseException) -> RunError:
        """A checkpoint that could not be written, in words; what there is of it goes."""
        if self.world.first:
            sweep(self.run)
        last = latest_checkpoint(self.run)
        kept = f"the checkpoint of step {step_of(last)} is whole" if last else "no earlier checkpoint exists"
        name = f"step-{step:07d}" if step is not None else "the checkpoint"
        return RunError(
            f"{self.run / FOLDER / name}: could not be written ({in_words(error)}); {kept}; free space and run again"
        )


def in_words(error: BaseException) -> str:
    """The reason that lies under torch's own errors, in a line."""
    if isinstance(error, CheckpointException):
        below = list(error.failures.values())
        if below:
            error = below[0][0]
    return str(getattr(error, "strerror", None) or error).strip().split("\n")[-1]


def sweep(run: Path) -> None:
    """Remove what a kill left half-written or half-removed: it would fill the disk in the end."""
    whole = set(checkpoints(run))
    for path in (run / FOLDER).glob("*") if (run / FOLDER).is_dir() else ():
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Make sure the bytes are on the disk before the folder gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-*") if (path / STATE).is_file())


def latest_checkpoint(run: Path) -> Path | None:
    found = checkpoints(run)
    return found[-1] if found else None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def loss_of(path: Path) -> float:
    """A checkpoint's validation loss; infinite where there was none."""
    found = said_of(path).get(LOSS)
    return math.inf if found is None else float(found)


def said_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    try:
        return dict(json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> RunError:
    return RunError(
        f"{path}: does not read ({in_words(error)}); remove this folder and run again, to continue from the one before"
    )


def best_first(found: Sequence[Path]) -> list[Path]:
    """Those of some checkpoints that have a validation loss, lowest first; of equal ones the earlier."""
    return sorted((path for path in found if loss_of(path) < math.inf), key=lambda p: (loss_of(p), step_of(p)))


def load_best(run: Path, model: Any, average: dict[str, torch.Tensor]) -> int:
    """Put the weights with the lowest validation loss into the model and its average; returns the step they are of."""
    return load_checkpoint(best_first(checkpoints(run))[0], model, None, average)


def load_checkpoint(path: Path, model: Any, optimizer: Any | None, average: dict[str, torch.Tensor]) -> int:
    """Put a checkpoint's state into model, optimizer (None: not wanted) and average; returns the steps done.

    Call it on all processes at once, or on one that is alone.
    """
    alone = not torch.distributed.is_initialized()
    state = said_of(path)
    try:
        kept = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        names = {name.removeprefix("weights.") for name in kept if name.startswith("weights.")}
        if names != learning_weights(model).keys():
            raise RunError(
                f"{path}: its weights are not those that learn in this recipe; remove the run folder to start anew"
            )
        if state["finished"]:
            optimizer = None
        if optimizer is not None:
            stepped = {
                name.rpartition(".")[0].removeprefix("optimizer.") for name in kept if name.startswith("optimizer.")
            }
            make_state(optimizer, [p for name, p in model.named_parameters() if name in stepped])
        wanted = state_of(model, optimizer, average)
        dcp.load(wanted, checkpoint_id=path, no_dist=alone)  # into the tensors themselves
        return int(state["step"])
    except RunError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        CheckpointException,
        pickle.UnpicklingError,
    ) as error:
        raise unreadable(path, error) from error


def make_state(optimizer: Any, parameters: Sequence[torch.Tensor]) -> None:
    """Let an optimizer that has taken no step make its state of `parameters` (others never had a gradient).

    One step at rate 0 with a gradient of zeros changes no weight.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        set_rate(group, 0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)
