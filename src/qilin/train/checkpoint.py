"""Save a run so that it continues exactly, and the finished model so that plain transformers loads it.

A checkpoint holds only what learns, the optimizer and the position (one integer: steps done). It is written beside and
renamed when whole: a full disk or a kill never costs the one before.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qilin.errors import RunError

FOLDER = "checkpoints"


def learning_weights(model: Any) -> dict[str, torch.Tensor]:
    """The parameters that learn, by name; one that is tied to another appears once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    run: Path, step: int, model: Any, optimizer: Any | None, average: Mapping[str, torch.Tensor], keep: int
) -> Path:
    """Write the state after `step` steps; older checkpoints beyond `keep` go once the new one is whole.

    After the last step no optimizer is needed (None): what is saved then only lets the model be written again.
    """
    final = run / FOLDER / f"step-{step:07d}"
    work = run / FOLDER / f".step-{step:07d}.unfinished"
    sweep(run)
    try:
        work.mkdir(parents=True)
        save_file({name: p.contiguous() for name, p in learning_weights(model).items()}, work / "weights.safetensors")
        if average:
            save_file({name: p.contiguous() for name, p in average.items()}, work / "average.safetensors")
        if optimizer is not None:
            torch.save(optimizer.state_dict(), work / "optimizer.pt")
        state = {"step": step, "finished": optimizer is None}
        (work / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in work.iterdir():
            sync(file)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        shutil.rmtree(work, ignore_errors=True)
        last = latest_checkpoint(run)
        kept = f"the checkpoint of step {step_of(last)} is whole" if last else "no earlier checkpoint exists"
        words = getattr(error, "strerror", None) or error
        raise RunError(f"{final}: could not be written ({words}); {kept}; free space and run again") from error
    shutil.rmtree(final, ignore_errors=True)
    work.rename(final)
    for old in checkpoints(run)[:-keep]:
        (old / "state.json").unlink()  # first, so that one half removed is not taken for whole
        shutil.rmtree(old)
    return final


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
    return sorted(path for path in (run / FOLDER).glob("step-*") if (path / "state.json").is_file())


def latest_checkpoint(run: Path) -> Path | None:
    found = checkpoints(run)
    return found[-1] if found else None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_checkpoint(path: Path, model: Any, optimizer: Any, average: dict[str, torch.Tensor]) -> int:
    """Put a checkpoint's state into model, optimizer and average; returns the steps done."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        weights = load_file(path / "weights.safetensors")
        averages = load_file(path / "average.safetensors") if average else {}
        if not state.get("finished"):
            optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path}: does not read ({error}); remove this folder and run again, to continue from the one before"
        ) from error
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != own.keys():
        raise RunError(
            f"{path}: its weights are not those that learn in this recipe; remove the run folder to start anew"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
        for name, tensor in averages.items():
            average[name].copy_(tensor)
    return int(state["step"])
