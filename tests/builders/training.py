"""Tiny homes for training tests: parts and a dataset, recipe overrides, whole runs, and what they changed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from builders.tiny import tiny_dataset, tiny_language, tiny_vision
from qilin.model.architectures import part_of
from qilin.model.llava import load_model
from qilin.train.config import read_recipe
from qilin.train.stage import run_stage

# twelve steps of a few samples in fp32, so that what should stay can be asked to stay bit for bit
SMALL_RUN = (
    "precision=fp32",
    "device=cpu",
    "template=v1",
    "kinds=[vqa]",
    "batch_size=4",
    "num_epochs=2",
    "save_steps=0",
    "logging_steps=1",
    "learning_rate=1e-2",
    "warmup_ratio=0",
    "trackers=[]",
)


class Crash(Exception):
    """Raised by a test in place of whatever ends a process between two lines."""


def tiny_home(
    folder: Path,
    *,
    language: str = "language",
    vision: str = "vision",
    images: int,
    questions: int = 3,
    extras: bool = True,
    splits: Sequence[str] = ("train", "test"),
    **shape: int,
) -> Path:
    """A Llama in FOLDER/`language`, a CLIP in FOLDER/`vision`, a dataset in FOLDER/data; `shape`: width and layers."""
    tiny_language(folder / language, **shape)
    tiny_vision(folder / vision)
    tiny_dataset(folder / "data", images=images, questions=questions, extras=extras, splits=splits)
    return folder


def source_options(home: Path) -> list[str]:
    """Recipe overrides that train the parts of a `tiny_home` on its dataset."""
    return [f"{key}={home / key}" for key in ("vision", "language", "data")]


def metrics_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stage_overrides(home: Path, out: Path, more: Sequence[str] = ()) -> list[str]:
    """Overrides of a small run on a `tiny_home`; `more` replaces those of the same key."""
    keys = {word.split("=")[0] for word in more}
    parts = [] if "model" in keys else [f"vision={home / 'vision'}", f"language={home / 'language'}"]
    usual = [word for word in (*SMALL_RUN, f"data={home / 'data'}", f"out={out}") if word.split("=")[0] not in keys]
    return [*parts, *usual, *more]


def train_stage(home: Path, out: Path, *more: str, recipe: str = "small/align", **options: Any) -> Path:
    """A small run; returns its folder."""
    assert run_stage(read_recipe(recipe, stage_overrides(home, out, more)), "test", **options) == out
    return out


def steps_of(run: Path) -> int:
    return int(json.loads((run / "plan.json").read_text())["steps"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters of a model folder, in fp32."""
    return dict(load_model(str(folder), device="cpu", dtype="fp32").model.named_parameters())


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, set[bool]]:
    """Part -> whether its parameters changed: {True} all of them, {False} none."""
    assert before.keys() == after.keys()
    result: dict[str, set[bool]] = {}
    for name, tensor in before.items():
        result.setdefault(part_of(name), set()).add(not torch.equal(tensor, after[name]))
    return result
