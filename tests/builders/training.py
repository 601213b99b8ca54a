"""A folder with tiny parts and a tiny dataset for training tests, its recipe overrides, and the metrics of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders.tiny import tiny_dataset, tiny_language, tiny_vision


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
